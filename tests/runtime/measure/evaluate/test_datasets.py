"""Small copies of the official layouts, and the errors if a part is missing."""

import os
import shutil
import sys

import numpy as np
import pytest
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.measure.evaluate import coco_stuff
from diffseg.measure.evaluate.datasets import Layout
from diffseg.measure.evaluate.layouts import CITYSCAPES_CLASSES, open_datasets
from PIL import Image


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture(params=["stuffthingmaps/val2017", "annotations/val2017", "annotation_val2017"])
def coco_folder(request, tmp_path):
    """Four images: all stuff; half things; too small; all stuff but without an image."""
    folder = tmp_path / "coco"
    grass, person = np.full((360, 400), 123), np.full((360, 400), 123)
    person[:, 99:] = 0
    small = np.full((359, 400), 123)
    for name, label in (("000000000001", grass), ("000000000002", person), ("000000000003", small)):
        save(folder / "val2017" / f"{name}.jpg", np.zeros((*label.shape, 3)))
        save(folder / request.param / f"{name}.png", label)
    save(folder / request.param / "000000000004.png", grass)
    return folder


def test_the_mapping_of_coco_stuff():
    assert len(coco_stuff.FINE_TO_COARSE) == 182
    assert len(coco_stuff.CLASSES) == 27
    named = {0: "person-things", 2: "vehicle-things", 12: "outdoor-things", 16: "animal-things", 52: "food-things"}
    named |= {26: "accessory-things", 71: "electronic-things", 78: "appliance-things", 83: "indoor-things"}
    named |= {91: "textile-stuff", 94: "building-stuff", 101: "ceiling-stuff", 105: "sky-stuff", 117: "floor-stuff"}
    named |= {123: "plant-stuff", 131: "rawmaterial-stuff", 145: "structural-stuff", 148: "ground-stuff"}
    named |= {154: "water-stuff", 164: "furniture-stuff", 169: "food-stuff", 176: "wall-stuff", 181: "solid-stuff"}
    assert {fine: coco_stuff.CLASSES[coco_stuff.FINE_TO_COARSE[fine]] for fine in named} == named
    things, stuff = coco_stuff.FINE_TO_COARSE[:91], coco_stuff.FINE_TO_COARSE[91:]
    assert set(things) == set(range(12))
    assert set(stuff) == set(range(12, 27))
    sizes = [6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]  # STEGO's
    assert np.bincount(coco_stuff.FINE_TO_COARSE).tolist() == sizes


def test_coco_stuff_derives_the_curated_list(coco_folder):
    (dataset,) = open_datasets([coco_folder])
    assert dataset.layout is Layout.COCO_STUFF
    assert [sample.name for sample in dataset.samples] == ["000000000001"]
    assert "1 of 3 images, derived by IIC's rule" in dataset.note
    assert "may differ" in dataset.note
    label = dataset.read_label(dataset.samples[0])
    assert set(np.unique(label)) == {coco_stuff.CLASSES.index("plant-stuff")}


def test_the_curated_rule_counts_all_pixels(tmp_path):
    label = np.full((400, 400), 123, np.uint8)
    label[300:] = 0  # exactly three quarters are stuff
    save(tmp_path / "a.png", label)
    assert coco_stuff.is_curated(tmp_path / "a.png")
    label[299, 0] = 255
    save(tmp_path / "b.png", label)
    assert not coco_stuff.is_curated(tmp_path / "b.png")


@pytest.mark.parametrize("given", [True, False])
def test_coco_stuff_takes_the_usual_list(coco_folder, tmp_path, given):
    path = tmp_path / "mine.txt" if given else coco_folder / "curated" / "val2017" / coco_stuff.LIST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("000000000003\n000000000002.jpg\n\n")
    (dataset,) = open_datasets([coco_folder], image_list=path if given else None)
    assert [sample.name for sample in dataset.samples] == ["000000000003", "000000000002"]
    assert f"the 2 images of {path.name}" in dataset.note


def test_missing_pieces_of_coco_stuff_name_the_download(coco_folder):
    empty = coco_folder / "empty.txt"
    empty.touch()
    with pytest.raises(DatasetError, match="no image names"):
        open_datasets([coco_folder], image_list=empty)
    shutil.move(coco_folder / "val2017", coco_folder / "elsewhere")
    with pytest.raises(DatasetError, match=r"images\.cocodataset\.org/zips/val2017\.zip"):
        open_datasets([coco_folder], Layout.COCO_STUFF)
    shutil.move(coco_folder / "elsewhere", coco_folder / "val2017")
    for name in ("stuffthingmaps", "annotations", "annotation_val2017"):
        shutil.rmtree(coco_folder / name, ignore_errors=True)
    with pytest.raises(DatasetError, match=r"stuffthingmaps_trainval2017\.zip"):
        open_datasets([coco_folder])


@pytest.fixture
def cityscapes_folder(tmp_path):
    folder = tmp_path / "cityscapes"
    label = np.arange(34, dtype=np.uint8).reshape(2, 17).repeat(4, 0)
    for city, number in (("lindau", 1), ("frankfurt", 0)):
        stem = f"{city}_{number:06d}_000019"
        save(folder / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", np.zeros((8, 17, 3)))
        save(folder / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png", label)
        save(folder / "gtFine" / "val" / city / f"{stem}_gtFine_color.png", np.zeros((8, 17, 3)))
    return folder


def test_cityscapes(cityscapes_folder):
    (dataset,) = open_datasets([cityscapes_folder])
    assert [sample.name for sample in dataset.samples] == ["frankfurt_000000_000019", "lindau_000001_000019"]
    assert len(dataset.classes) == 27
    label = dataset.read_label(dataset.samples[0])
    assert label[0, :7].tolist() == [255] * 7
    assert label[0, 7] == CITYSCAPES_CLASSES.index("road")
    assert label[4, 26 - 17] == CITYSCAPES_CLASSES.index("car")
    assert label[4, 33 - 17] == CITYSCAPES_CLASSES.index("bicycle")


@pytest.mark.parametrize(("piece", "archive"), [("leftImg8bit", "leftImg8bit_trainvaltest"), ("gtFine", "gtFine_tr")])
def test_missing_pieces_of_cityscapes_name_the_download(cityscapes_folder, piece, archive):
    shutil.rmtree(cityscapes_folder / piece)
    with pytest.raises(DatasetError, match=f"{archive}.*cityscapes-dataset.com"):
        open_datasets([cityscapes_folder])


def test_any_folder(labelled):
    (dataset,) = open_datasets([labelled])
    assert dataset.layout is Layout.FOLDER
    assert dataset.classes == ("sky", "ground", "red box")
    assert [sample.name for sample in dataset.samples] == ["photo0", "photo1", "photo2"]
    assert set(np.unique(dataset.read_label(dataset.samples[0]))) == {0, 1, 2, 255}
    (labelled / "classes.txt").write_text("a\nb\nc\n")
    assert open_datasets([labelled])[0].classes == ("a", "b", "c")
    (labelled / "classes.txt").unlink()
    (labelled / "README.txt").write_text("Regions without names.")
    assert open_datasets([labelled])[0].classes == ()
    assert "labels without names" in open_datasets([labelled])[0].note


def test_folders_of_one_name_are_told_apart(labelled):
    assert [d.name for d in open_datasets([labelled, labelled])] == ["labelled", "labelled #2"]


def test_a_limit_spreads_over_the_set(labelled):
    (dataset,) = open_datasets([labelled])
    assert [s.name for s in dataset.limited(2).samples] == ["photo0", "photo1"]
    assert dataset.limited(None) is dataset
    assert len(dataset.limited(99).samples) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "the label map of photo0.png does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be decoded"),
        (lambda path: save(path, np.zeros((64, 96, 3))), "8-bit with one channel, found mode RGB"),
        (lambda path: save(path, np.full((64, 96), 7)), "value 7 is not a label of folder"),
    ],
)
def test_damaged_labels(labelled, damage, message):
    damage(labelled / "labels" / "photo0.png")
    (dataset,) = open_datasets([labelled])
    with pytest.raises(ImageError, match=message):
        dataset.read_label(dataset.samples[0])


def test_folders_that_are_no_data_set(tmp_path, labelled):
    with pytest.raises(DatasetError, match="no such folder"):
        open_datasets([tmp_path / "none"])
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match="unknown layout"):
        open_datasets([tmp_path / "other"])
    shutil.rmtree(labelled / "labels")
    with pytest.raises(DatasetError, match="no labels/"):
        open_datasets([labelled])


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
def test_a_label_map_is_read_like_any_untrusted_image(labelled):
    data = open_datasets([labelled])[0]
    sample = data.samples[0]
    sample.label.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ImageError, match="cannot identify"):
        data.read_label(sample)
    sample.label.unlink()
    os.mkfifo(sample.label)
    with pytest.raises(ImageError, match="not a regular file"):
        data.read_label(sample)
