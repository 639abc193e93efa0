"""Open Pascal VOC 2012 and Pascal Context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffseg.engines.errors import DatasetError
from diffseg.measure.evaluate import pascal_context
from diffseg.measure.evaluate.datasets import Dataset, Layout, Sample, first_folder, label_mapping
from diffseg.measure.overlap import VOID

SITE = "http://host.robots.ox.ac.uk/pascal/VOC"
VOC = f"{SITE}/voc2012/VOCtrainval_11-May-2012.tar"
VOC_2010 = f"{SITE}/voc2010/VOCtrainval_03-May-2010.tar"
CONTEXT = "trainval.tar.gz from https://www.cs.stanford.edu/~roozbeh/pascal-context"
CONTEXT_LABEL_FOLDERS = ("SegmentationClassContext", "trainval")
CONVERTED_LABELS = "annotations_ctx59"
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def open_voc(folder: Path) -> Dataset:
    """Open the 1,449 validation images of Pascal VOC 2012: 20 classes, and the background as the last one.

    Args:
        folder: `VOCdevkit` or `VOC2012`.

    Raises:
        DatasetError: a part is missing; the message names the download.
    """
    folder = _within(folder, "VOC2012")
    images = first_folder(folder, ("JPEGImages",), f"images of Pascal VOC 2012: unpack {VOC}")
    labels = first_folder(folder, ("SegmentationClass",), f"label maps of Pascal VOC 2012: unpack {VOC}")
    names = _listed(folder / "ImageSets" / "Segmentation" / "val.txt", VOC)
    count = len(VOC_CLASSES)
    mapping = label_mapping([(0, count), *((value + 1, value) for value in range(count))])
    note = f"Pascal VOC 2012, val: {count} classes and background, 255 = void"
    return Dataset(
        folder.name, Layout.VOC, _samples(names, images, labels), (*VOC_CLASSES, "background"), mapping, note, count
    )


def open_context(folder: Path) -> Dataset:
    """Open the validation images of Pascal Context: 59 classes, and the background as the last one.

    Three forms are known. The original one is VOC 2010 with `trainval/*.mat`, whose 459 classes are reduced to 59.
    MMSegmentation's converter writes `SegmentationClassContext/*.png` (0 = background) into the same folder. That of
    DiffCut and FC-CLIP writes `images/validation` and `annotations_ctx59/validation` (255 = background).

    Args:
        folder: `VOCdevkit`, `VOC2010`, or the folder of the last form.

    Raises:
        DatasetError: a part is missing; the message names the download.
    """
    classes, background = (*pascal_context.CLASSES, "background"), pascal_context.BACKGROUND
    if (folder / CONVERTED_LABELS).is_dir():
        images = first_folder(folder, ("images/validation",), "images of Pascal Context's validation set")
        labels = first_folder(folder, (f"{CONVERTED_LABELS}/validation",), "label maps of Pascal Context")
        names = sorted(path.stem for path in images.glob("*.jpg"))
        if not names:
            raise DatasetError(f"{images}: no images")
        mapping = label_mapping((value, value) for value in range(background))
        mapping[VOID] = background
        samples = _samples(names, images, labels)
    else:
        folder = _within(folder, "VOC2010")
        images = first_folder(folder, ("JPEGImages",), f"images of Pascal VOC 2010: unpack {VOC_2010}")
        labels = first_folder(folder, CONTEXT_LABEL_FOLDERS, f"label maps of Pascal Context: unpack {CONTEXT}")
        original = labels.name == "trainval"
        part = "Main" if original else "SegmentationContext"
        names = _listed(folder / "ImageSets" / part / "val.txt", VOC_2010)
        by_number = sorted(pascal_context.IDS, key=lambda name: pascal_context.IDS[name])
        numbered = ((value + 1, classes.index(name)) for value, name in enumerate(by_number))
        mapping = label_mapping([(0, background), *numbered])
        samples = _samples(names, images, labels, ".mat" if original else ".png")
    note = f"Pascal Context, val: {background} classes and background"
    return Dataset(folder.name, Layout.CONTEXT, samples, classes, np.asarray(mapping), note, background)


def _within(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _samples(names: list[str], images: Path, labels: Path, suffix: str = ".png") -> tuple[Sample, ...]:
    return tuple(Sample(name, images / f"{name}.jpg", labels / f"{name}{suffix}") for name in names)


def _listed(path: Path, download: str) -> list[str]:
    """Return the names in a list of images."""
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise DatasetError(f"{path}: the list of validation images cannot be read; unpack {download}") from None
    if not names:
        raise DatasetError(f"{path}: no image names; unpack {download} again")
    return names
