"""Open labelled images in the layouts of their official downloads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.engines.files import expand_user
from diffseg.image import SUFFIXES
from diffseg.measure.evaluate import coco_instances, coco_object, coco_stuff, pascal
from diffseg.measure.evaluate.datasets import UNKNOWN, Dataset, Layout, Sample, first_folder, label_mapping
from diffseg.measure.overlap import VOID

COCO_IMAGES = "http://images.cocodataset.org/zips/val2017.zip"
COCO_LABELS = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
COCO_IMAGE_FOLDERS = ("val2017", "images/val2017")
COCO_LABEL_FOLDERS = ("stuffthingmaps/val2017", "annotations/val2017", "annotation_val2017")
CITYSCAPES_SITE = "https://www.cityscapes-dataset.com/downloads"
CITYSCAPES_FIRST, CITYSCAPES_LAST = 7, 33
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ADE20K_CLASSES = 150
NAMED_CLASSES = re.compile(r"^(?:coarse )?classes: *(0 *=.+)$", re.IGNORECASE | re.MULTILINE)


def open_datasets(
    folders: Iterable[Path], layout: Layout = Layout.AUTO, *, image_list: Path | None = None
) -> list[Dataset]:
    """Open data sets. If several have the same name, a number is added to the name.

    Args:
        folders: one folder per data set.
        layout: layout of all folders; `auto` derives it from the sub-folders.
        image_list: for COCO-Stuff and COCO-Object: file with the names of the images. If it is None, a file
            `Coco164kFull_Stuff_Coarse_7.txt` in the folder or in its `curated/val2017` is used, otherwise every image
            that the rule of that list selects (`coco_stuff.is_curated`). Without label maps, COCO-Object then has all
            images of its annotation file.

    Raises:
        DatasetError: a folder or a part of it is missing; the message names the official download.
    """
    opened: list[Dataset] = []
    for given in folders:
        folder = expand_user(given)
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; give the folder of a data set ({_forms()})")
        kind = recognise(folder) if layout is Layout.AUTO else layout
        if kind in (Layout.COCO_STUFF, Layout.COCO_OBJECT):
            dataset = _open_coco(folder, image_list, kind)
        else:
            dataset = OPENERS[kind](folder)
        same = sum(other.name.partition(" #")[0] == dataset.name for other in opened)
        opened.append(replace(dataset, name=f"{dataset.name} #{same + 1}") if same else dataset)
    return opened


def _forms() -> str:
    return (
        "COCO-Stuff: val2017/ and stuffthingmaps/val2017/; COCO-Object: the same, or val2017/ and "
        f"annotations/{coco_instances.FILE}; Cityscapes: leftImg8bit/val/ and gtFine/val/; "
        "Pascal VOC 2012: JPEGImages/ and SegmentationClass/; Pascal Context: JPEGImages/ and trainval/; "
        "ADE20K: images/validation/ and annotations/validation/; "
        "any other: images/ and labels/ with an 8-bit PNG of the same stem for each image, 255 = void"
    )


def recognise(folder: Path) -> Layout:
    """Return the layout of a folder by its sub-folders. COCO with instances, but without label maps, is COCO-Object.

    Raises:
        DatasetError: the layout is unknown.
    """

    def has(*names: str) -> bool:
        return any((folder / name).is_dir() for name in names)

    if has("leftImg8bit", "gtFine"):
        return Layout.CITYSCAPES
    if has(*COCO_IMAGE_FOLDERS, *COCO_LABEL_FOLDERS):
        instances_only = not _has_label_maps(folder) and coco_instances.find_file(folder) is not None
        return Layout.COCO_OBJECT if instances_only else Layout.COCO_STUFF
    if has(pascal.CONVERTED_LABELS, "VOC2010") or (has(*pascal.CONTEXT_LABEL_FOLDERS) and has("JPEGImages")):
        return Layout.CONTEXT if not has("VOC2012") else Layout.VOC
    if has("JPEGImages", "SegmentationClass", "VOC2012"):
        return Layout.VOC
    if has("images/validation", "annotations/validation"):
        return Layout.ADE20K
    if has("images", "labels"):
        return Layout.FOLDER
    raise DatasetError(f"{folder}: unknown layout; known are {_forms()}")


def _open_coco(folder: Path, image_list: Path | None, layout: Layout) -> Dataset:
    images = first_folder(folder, COCO_IMAGE_FOLDERS, f"images of COCO val2017: unpack {COCO_IMAGES}")
    places = (folder / coco_stuff.LIST, folder / "curated" / "val2017" / coco_stuff.LIST)
    image_list = image_list or next((path for path in places if path.is_file()), None)
    if layout is Layout.COCO_OBJECT and not _has_label_maps(folder):
        annotations = coco_instances.find_file(folder)
        if annotations is not None:
            return _open_instances(folder, images, annotations, image_list)
    download = f"label maps of COCO-Stuff: unpack {COCO_LABELS} in stuffthingmaps/"
    if layout is Layout.COCO_OBJECT:
        download += f"; nor annotations/{coco_instances.FILE}, in {coco_instances.DOWNLOAD}"
    labels = first_folder(folder, COCO_LABEL_FOLDERS, download)
    if image_list is not None:
        names = coco_stuff.read_list(image_list)
        note = f"val2017: the {len(names)} images of {image_list.name}"
    else:
        everything = sorted(path for path in labels.glob("*.png") if (images / f"{path.stem}.jpg").is_file())
        names = [path.stem for path in everything if _curated(path)]
        note = (
            f"val2017: {len(names)} of {len(everything)} images, derived by IIC's rule (both sides at "
            f"least {coco_stuff.LEAST_SIDE} px, at least {coco_stuff.LEAST_STUFF:.0%} of all pixels stuff); "
            f"may differ from the 2,175 images of {coco_stuff.LIST}, which can be passed with --list"
        )
    if not names:
        raise DatasetError(f"{labels}: no label map that meets the rule for the curated list; pass one with --list")
    samples = tuple(Sample(name, images / f"{name}.jpg", labels / f"{name}.png") for name in names)
    if layout is Layout.COCO_OBJECT:
        return _coco_object(folder, samples, note)
    mapping = label_mapping(enumerate(coco_stuff.FINE_TO_COARSE))
    return Dataset(folder.name, layout, samples, coco_stuff.CLASSES, mapping, f"COCO-Stuff-27, {note}")


def _coco_object(folder: Path, samples: tuple[Sample, ...], note: str) -> Dataset:
    classes, background = (*coco_object.CLASSES, "background"), len(coco_object.CLASSES)
    mapping = label_mapping(enumerate(coco_object.LABELS))
    return Dataset(
        f"{folder.name}-object",
        Layout.COCO_OBJECT,
        samples,
        classes,
        mapping,
        f"COCO-Object, {note}",
        background=background,
    )


def _open_instances(folder: Path, images: Path, annotations: Path, image_list: Path | None) -> Dataset:
    """Open COCO-Object from the annotations of COCO's instances, for folders without the label maps of COCO-Stuff."""
    instances = coco_instances.read_instances(annotations)
    if image_list is not None:
        names = coco_stuff.read_list(image_list)
        if missing := [name for name in names if name not in instances]:
            raise DatasetError(f"{annotations}: no image {missing[0]}, which {image_list} names")
        note = f"val2017: the {len(names)} images of {image_list.name}"
    else:
        names = [name for name in instances if (images / f"{name}.jpg").is_file()]
        note = (
            f"val2017: {len(names)} of {len(instances)} images; the papers use the 2,175 images of {coco_stuff.LIST}, "
            "which can be passed with --list"
        )
    if not names:
        raise DatasetError(f"{images}: none of the images of {annotations}; unpack {COCO_IMAGES}")
    samples = tuple(Sample(name, images / f"{name}.jpg", annotations, instances[name]) for name in names)
    return _coco_object(folder, samples, f"{note}; classes from the masks of {annotations.name}")


def _has_label_maps(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in COCO_LABEL_FOLDERS)


def _curated(path: Path) -> bool:
    try:
        return coco_stuff.is_curated(path)
    except ImageError:
        return True  # keep it, so that its evaluation reports the error


def _open_cityscapes(folder: Path) -> Dataset:
    images = first_folder(
        folder, ("leftImg8bit/val",), f"leftImg8bit_trainvaltest.zip from {CITYSCAPES_SITE} (needs a login)"
    )
    labels = first_folder(folder, ("gtFine/val",), f"gtFine_trainvaltest.zip from {CITYSCAPES_SITE} (needs a login)")
    samples = []
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        stem = image.name.removesuffix("_leftImg8bit.png")
        samples.append(Sample(stem, image, labels / image.parent.name / f"{stem}_gtFine_labelIds.png"))
    if not samples:
        raise DatasetError(f"{images}: no <city>/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip again")
    classes = ((value, value - CITYSCAPES_FIRST) for value in range(CITYSCAPES_FIRST, CITYSCAPES_LAST + 1))
    mapping = label_mapping(classes)
    mapping[:CITYSCAPES_FIRST] = VOID
    note = "Cityscapes val, gtFine labelIds 7 to 33 as 27 classes, the others void"
    return Dataset(folder.name, Layout.CITYSCAPES, tuple(samples), CITYSCAPES_CLASSES, mapping, note)


def _open_folder(folder: Path) -> Dataset:
    images = first_folder(folder, ("images",), "images")
    labels = first_folder(folder, ("labels",), "label maps: an 8-bit PNG of the same stem for each image, 255 = void")
    samples = tuple(
        Sample(path.stem, path, labels / f"{path.stem}.png")
        for path in sorted(images.iterdir())
        if path.suffix.lower() in SUFFIXES
    )
    if not samples:
        raise DatasetError(f"{images}: no images")
    classes = _class_names(folder)
    note = (
        f"{len(classes)} classes"
        if classes
        else "labels without names: if they are regions, mIoU over the set has no meaning, but the other columns have"
    )
    mapping = np.arange(256, dtype=np.uint8)
    if classes:
        mapping[len(classes) : VOID] = UNKNOWN
    return Dataset(folder.name, Layout.FOLDER, samples, classes, mapping, note)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names in `classes.txt`, one per line, or in a line `Classes: 0=sky, 1=road, …` of `README.txt`."""
    listed = folder / "classes.txt"
    if listed.is_file():
        return tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    readme = folder / "README.txt"
    found = NAMED_CLASSES.search(readme.read_text(encoding="utf-8")) if readme.is_file() else None
    if found is None:
        return ()
    names = dict(re.findall(r"(\d+) *= *([^,=.]+?) *(?=[,.]|$)", found.group(1)))
    names.pop(str(VOID), None)
    return tuple(names.get(str(i), f"class {i}") for i in range(max(map(int, names), default=-1) + 1))


def _open_ade20k(folder: Path) -> Dataset:
    images = first_folder(folder, ("images/validation",), f"images of ADE20K: unpack {ADE20K}")
    labels = first_folder(folder, ("annotations/validation",), f"label maps of ADE20K: unpack {ADE20K}")
    samples = tuple(Sample(path.stem, path, labels / f"{path.stem}.png") for path in sorted(images.glob("*.jpg")))
    if not samples:
        raise DatasetError(f"{images}: no images; unpack {ADE20K} again")
    mapping = label_mapping((value, value - 1) for value in range(1, ADE20K_CLASSES + 1))
    mapping[0] = VOID
    note = f"ADE20K, validation: {ADE20K_CLASSES} classes of SceneParse150, 0 = void"
    return Dataset(folder.name, Layout.ADE20K, samples, _ade20k_names(folder / "objectInfo150.txt"), mapping, note)


def _ade20k_names(path: Path) -> tuple[str, ...]:
    """Return the first name of each class in the table of the download, or numbers if there is none."""
    rows = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()]
    return tuple(names) if len(names) == ADE20K_CLASSES else tuple(f"class {i}" for i in range(ADE20K_CLASSES))


OPENERS: dict[Layout, Callable[[Path], Dataset]] = {
    Layout.CITYSCAPES: _open_cityscapes,
    Layout.VOC: pascal.open_voc,
    Layout.CONTEXT: pascal.open_context,
    Layout.ADE20K: _open_ade20k,
    Layout.FOLDER: _open_folder,
}
"""The function that opens a folder, by layout. Those of COCO also take a list of images."""
