"""Pascal VOC, Pascal Context, COCO-Object and ADE20K in miniature."""

import json
import shutil

import numpy as np
import pytest
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.measure.evaluate import (
    Evaluation,
    Method,
    Protocol,
    coco_instances,
    coco_object,
    coco_stuff,
    make_report,
    pascal_context,
)
from diffseg.measure.evaluate.datasets import Layout
from diffseg.measure.evaluate.layouts import open_datasets

from tests.layouts import make_ade20k, make_coco, make_coco_instances, make_context, make_voc


def occurring(dataset):
    """Names of the classes in the first label map, without void."""
    label = dataset.read_label(dataset.samples[0])
    return {dataset.classes[c] for c in np.unique(label[label != 255])}


@pytest.mark.parametrize("within", ["VOC2012", "VOCdevkit"])
def test_voc(tmp_path, within):
    made = make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    (dataset,) = open_datasets([made if within == "VOC2012" else made.parent])
    assert (dataset.layout, dataset.name) == (Layout.VOC, "VOC2012")
    assert [sample.name for sample in dataset.samples] == ["2007_000000", "2007_000001"]
    assert (len(dataset.classes), dataset.classes[dataset.background]) == (21, "background")
    assert occurring(dataset) == {"aeroplane", "background", "car"}
    label = dataset.read_label(dataset.samples[0])
    assert (label[:2] == 255).all()
    assert not (label[2:] == 255).any()


@pytest.mark.parametrize("form", ["original", "mmsegmentation", "diffcut"])
def test_context(tmp_path, form):
    made = make_context(tmp_path / "VOC2010", form)
    (dataset,) = open_datasets([made])
    assert dataset.layout is Layout.CONTEXT
    assert len(dataset.samples) == 2
    assert (len(dataset.classes), dataset.classes[dataset.background]) == (60, "background")
    assert occurring(dataset) == {"sky", "grass", "car", "background"}
    label = dataset.read_label(dataset.samples[0])
    assert (label[:2] == dataset.background).all()


def test_the_development_kit_may_hold_both_years(tmp_path):
    make_voc(tmp_path / "VOC2012")
    make_context(tmp_path / "VOC2010")
    assert open_datasets([tmp_path])[0].layout is Layout.VOC
    assert open_datasets([tmp_path], Layout.CONTEXT)[0].name == "VOC2010"


def test_numbers_of_the_classes_of_context():
    converter = (  # of MMSegmentation, in the order of its source
        "0, 2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420, 454, 295, "
        "296, 427, 44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34, 207, 80, 355, 85, 347, "
        "220, 349, 360, 98, 187, 104, 105, 366, 189, 368, 113, 115"
    )
    assert sorted(pascal_context.IDS.values()) == sorted(int(n) for n in converter.split(", "))[1:]
    assert sorted(pascal_context.IDS) == sorted(pascal_context.CLASSES)
    assert list(pascal_context.IDS.values()) == sorted(pascal_context.IDS.values())


def test_coco_object(tmp_path):
    made = make_coco(tmp_path / "coco")
    (dataset,) = open_datasets([made], Layout.COCO_OBJECT)
    assert (len(dataset.classes), dataset.classes[dataset.background]) == (81, "background")
    assert occurring(dataset) == {"car", "background"}
    assert len(dataset.samples) == 2
    assert open_datasets([made])[0].layout is Layout.COCO_STUFF
    assert [d.name for d in open_datasets([made, made], Layout.COCO_OBJECT)] == ["coco-object", "coco-object #2"]


def test_coco_object_from_the_instances(tmp_path):
    (dataset,) = open_datasets([make_coco_instances(tmp_path / "coco")])
    assert (dataset.layout, dataset.name, dataset.background) == (Layout.COCO_OBJECT, "coco-object", 80)
    assert "2 of 2 images" in dataset.note
    assert [sample.name for sample in dataset.samples] == ["000000000000", "000000000001"]
    (other,) = open_datasets([make_coco(tmp_path / "maps")], Layout.COCO_OBJECT)
    for sample, same in zip(dataset.samples, other.samples, strict=True):
        label, expected = dataset.read_label(sample), other.read_label(same)
        expected[expected == 255] = dataset.background  # the frame; beyond objects, there is only background
        crowd = label == dataset.classes.index("person")
        assert crowd[:18].mean() > 0.8
        assert not crowd[18:].any()
        np.testing.assert_array_equal(label[18:], expected[18:])
        np.testing.assert_array_equal(label == 2, expected == 2)  # a car in front of a crowd


def test_the_list_is_heeded_with_instances(tmp_path):
    folder = make_coco_instances(tmp_path / "coco")
    (folder / coco_stuff.LIST).write_text("000000000001\n")
    (dataset,) = open_datasets([folder])
    assert [sample.name for sample in dataset.samples] == ["000000000001"]
    (folder / coco_stuff.LIST).write_text("000000000007\n")
    with pytest.raises(DatasetError, match="no image 000000000007, which .* names"):
        open_datasets([folder])


def test_label_maps_come_before_instances(tmp_path):
    folder = make_coco(tmp_path / "coco")
    (folder / "annotations").mkdir()
    (folder / "annotations" / coco_instances.FILE).write_text("{}")
    assert open_datasets([folder])[0].layout is Layout.COCO_STUFF
    assert open_datasets([folder], Layout.COCO_OBJECT)[0].samples[0].instances is None


def changed(path, where, value):
    """Change one value of an annotation file; `where` is the way to it."""
    content = json.loads(path.read_text())
    *way, last = where
    place = content
    for key in way:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["images"], 5, "not a file of COCO's instances"),
        (["categories", 0, "name"], "unicorn", "category 'unicorn' is not one of COCO's 80"),
        (["annotations", 0, "image_id"], 99, "unknown image_id 99"),
        (["annotations", 0, "category_id"], 12, "unknown category_id 12"),
        (["images", 0, "height"], 0, "has 96 × 0 pixels"),
        (["images", 0, "height"], 1 << 40, "has 96 × 1099511627776 pixels"),
    ],
)
def test_wrong_annotation_files(tmp_path, where, value, message):
    folder = make_coco_instances(tmp_path / "coco")
    changed(folder / "annotations" / coco_instances.FILE, where, value)
    with pytest.raises(DatasetError) as caught:
        open_datasets([folder])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1.0, 2.0, 3.0, 4.0, 5.0]], "an x without a y"),
        ([[1.0, 2.0, 3.0, 4.0, 1e300, 5.0]], "far outside the image"),
        ({"size": [64, 96], "counts": [5, 6]}, "must sum to 64 × 96 pixels, found 11"),
        ({"size": [64, 96], "counts": "!"}, "cannot be there in compressed run lengths"),
    ],
)
def test_damaged_masks_fail_one_image(tmp_path, segmentation, message):
    folder = make_coco_instances(tmp_path / "coco")
    changed(folder / "annotations" / coco_instances.FILE, ["annotations", 0, "segmentation"], segmentation)
    (dataset,) = open_datasets([folder])
    run = Evaluation([dataset], (Method.SUPERPIXELS,), None, Protocol.FULL, tmp_path / "out")
    first, second = [outcome.error for outcome in run]
    assert "the mask of a car is damaged" in str(first)
    assert message in str(first)
    assert "\n" not in str(first)
    assert second is None


def test_polygons_of_two_points_cover_nothing(tmp_path):
    folder = make_coco_instances(tmp_path / "coco")
    changed(folder / "annotations" / coco_instances.FILE, ["annotations", 0, "segmentation"], [[1.0, 30.0, 40.0, 30.0]])
    (dataset,) = open_datasets([folder])
    assert occurring(dataset) == {"person", "background"}


def test_objects_that_change_are_evaluated_again(tmp_path):
    folder = make_coco_instances(tmp_path / "coco")
    annotations = folder / "annotations" / coco_instances.FILE

    def kept():
        run = Evaluation(open_datasets([folder]), (Method.SUPERPIXELS,), None, Protocol.FULL, tmp_path / "out")
        return [outcome.kept for outcome in run]

    assert [kept(), kept()] == [[False, False], [True, True]]
    changed(annotations, ["annotations", 0, "segmentation", 0, 0], 20.0)
    assert kept() == [False, True]  # only the image whose object changed


def test_neither_label_maps_nor_instances(tmp_path):
    folder = make_coco(tmp_path / "coco")
    shutil.rmtree(folder / "stuffthingmaps")
    with pytest.raises(DatasetError, match=r"stuffthingmaps_trainval2017\.zip.*annotations_trainval2017\.zip"):
        open_datasets([folder], Layout.COCO_OBJECT)


def test_classes_of_coco_object():
    named = {1: "person", 11: "fire hydrant", 13: "stop sign", 44: "bottle", 62: "chair", 72: "tv", 90: "toothbrush"}
    assert {i: coco_object.CLASSES[coco_object.LABELS[i - 1]] for i in named} == named
    assert set(coco_object.LABELS) == set(range(81))
    assert set(coco_object.LABELS[90:]) == {80}
    assert [i + 1 for i in range(90) if coco_object.LABELS[i] == 80] == list(coco_object.UNUSED)


@pytest.mark.parametrize("named", [True, False])
def test_ade20k(tmp_path, named):
    (dataset,) = open_datasets([make_ade20k(tmp_path / "ADEChallengeData2016", named)])
    assert (dataset.layout, len(dataset.classes), dataset.background) == (Layout.ADE20K, 150, None)
    assert occurring(dataset) == ({"name 3", "name 10", "name 21"} if named else {"class 2", "class 9", "class 20"})
    assert (dataset.read_label(dataset.samples[0])[:2] == 255).all()


@pytest.mark.parametrize(
    ("make", "layout", "piece", "download"),
    [
        (make_voc, Layout.VOC, "JPEGImages", "VOCtrainval_11-May-2012.tar"),
        (make_voc, Layout.VOC, "SegmentationClass", "VOCtrainval_11-May-2012.tar"),
        (make_voc, Layout.VOC, "ImageSets", "VOCtrainval_11-May-2012.tar"),
        (make_context, Layout.CONTEXT, "JPEGImages", "VOCtrainval_03-May-2010.tar"),
        (make_context, Layout.CONTEXT, "trainval", "trainval.tar.gz from"),
        (make_context, Layout.CONTEXT, "ImageSets", "VOCtrainval_03-May-2010.tar"),
        (make_ade20k, Layout.ADE20K, "images", "ADEChallengeData2016.zip"),
        (make_ade20k, Layout.ADE20K, "annotations", "ADEChallengeData2016.zip"),
    ],
)
def test_missing_pieces_name_the_download(tmp_path, make, layout, piece, download):
    folder = make(tmp_path / "set")
    shutil.rmtree(folder / piece)
    with pytest.raises(DatasetError) as caught:
        open_datasets([folder], layout)
    assert download in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_lists(tmp_path):
    voc = make_voc(tmp_path / "voc")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"val\.txt: no image names"):
        open_datasets([voc])
    ade = make_ade20k(tmp_path / "ade")
    for path in (ade / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="validation: no images"):
        open_datasets([ade])


def test_damaged_label_maps_of_context(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    folder = make_context(tmp_path / "VOC2010")
    (dataset,) = open_datasets([folder])
    sample = dataset.samples[0]
    for damage, message in (
        (lambda: savemat(sample.label, {"LabelMap": np.full((4, 4), 460)}), "whole numbers from 0 to 459"),
        (lambda: savemat(sample.label, {"LabelMap": np.full((4, 4), 0.5)}), "whole numbers from 0 to 459"),
        (lambda: savemat(sample.label, {"other": np.zeros(3)}), "no matrix LabelMap"),
        (lambda: sample.label.write_bytes(b"MATLAB"), "cannot be decoded"),
        (sample.label.unlink, "does not exist"),
    ):
        damage()
        with pytest.raises(ImageError, match=message) as caught:
            dataset.read_label(sample)
        assert "\n" not in str(caught.value)


def test_every_layout_is_evaluated(tmp_path):
    made = [make_voc(tmp_path / "voc"), make_context(tmp_path / "context"), make_ade20k(tmp_path / "ade")]
    coco = [make_coco(tmp_path / "coco"), make_coco_instances(tmp_path / "instances")]
    datasets = [*open_datasets(made), *open_datasets(coco, Layout.COCO_OBJECT)]
    for protocol in (Protocol.FULL, Protocol.DIFFCUT):
        run = Evaluation([d.limited(1) for d in datasets], (Method.SUPERPIXELS,), None, protocol, tmp_path / "out")
        assert [outcome.error for outcome in run] == [None] * 5
        scores = [dataset.scores["superpixels"] for dataset in make_report(run).datasets]
        assert [len(score.class_iou) for score in scores] == [21, 60, 150, 81, 81]
        assert all(0 < score.miou <= 1 for score in scores)
