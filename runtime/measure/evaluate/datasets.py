"""Labelled images on disk, in the layouts of their official downloads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.engines.files import expand_user
from diffseg.image import FORMATS, SUFFIXES, open_lazily
from diffseg.measure.evaluate import coco_stuff
from diffseg.measure.overlap import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = 254
"""Entry of `Dataset.mapping` for label values that the data set does not define."""

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
NAMED_CLASSES = re.compile(r"^(?:coarse )?classes: *(0 *=.+)$", re.IGNORECASE | re.MULTILINE)


class Layout(StrEnum):
    """Layout of a data set on disk."""

    AUTO = "auto"
    COCO_STUFF = "coco-stuff"
    CITYSCAPES = "cityscapes"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its label map."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images, in a fixed order.

    Attributes:
        name: name of the folder.
        layout: layout on disk.
        samples: the images to evaluate.
        classes: names of the classes. Empty if the labels have no names; they may then be regions whose numbers have
            different meanings in different images.
        mapping: (256,) uint8: for each value of a label map, its class, VOID or UNKNOWN.
        note: a remark for readers of the scores.
    """

    name: str
    layout: Layout
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    mapping: NDArray[np.uint8]
    note: str = ""

    def limited(self, limit: int | None) -> Dataset:
        """Return the data set with at most `limit` images, spread evenly over the set."""
        if limit is None or limit >= len(self.samples):
            return self
        return replace(self, samples=tuple(self.samples[i * len(self.samples) // limit] for i in range(limit)))

    def read_label(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the class of each pixel (H, W), or VOID where there is none.

        Raises:
            ImageError: the label map is missing, damaged, not 8-bit, or has a value that the data set does not define.
        """
        try:
            with open_lazily(sample.label, FORMATS) as image:
                mode, values = image.mode, np.asarray(image)
        except FileNotFoundError:
            raise ImageError(f"{sample.label}: the label map of {sample.image.name} does not exist") from None
        except Exception as error:  # a damaged file makes a decoder raise anything  # noqa: BLE001
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ImageError(f"{sample.label}: cannot be decoded ({reason})") from None
        if mode not in ("L", "P"):
            raise ImageError(f"{sample.label}: a label map must be 8-bit with one channel, found mode {mode}")
        classes: NDArray[np.uint8] = self.mapping[values]
        if UNKNOWN in classes:
            value = int(values[classes == UNKNOWN][0])
            raise ImageError(f"{sample.label}: value {value} is not a label of {self.layout.value}")
        return classes


def open_datasets(
    folders: Iterable[Path], layout: Layout = Layout.AUTO, *, image_list: Path | None = None
) -> list[Dataset]:
    """Open data sets. If several have the same name, a number is added to the name.

    Args:
        folders: one folder per data set.
        layout: layout of all folders; `auto` derives it from the sub-folders.
        image_list: for COCO-Stuff: file with the names of the images. If it is None, a file
            `Coco164kFull_Stuff_Coarse_7.txt` in the folder or in its `curated/val2017` is used, otherwise every image
            that the rule of that list selects (`coco_stuff.is_curated`).

    Raises:
        DatasetError: a folder or a part of it is missing; the message names the official download.
    """
    opened: list[Dataset] = []
    for given in folders:
        folder = expand_user(given)
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; give the folder of a data set ({_forms()})")
        kind = _recognise(folder) if layout is Layout.AUTO else layout
        if kind is Layout.COCO_STUFF:
            dataset = _open_coco(folder, image_list)
        elif kind is Layout.CITYSCAPES:
            dataset = _open_cityscapes(folder)
        else:
            dataset = _open_folder(folder)
        same = sum(other.name.partition(" #")[0] == dataset.name for other in opened)
        opened.append(replace(dataset, name=f"{dataset.name} #{same + 1}") if same else dataset)
    return opened


def _forms() -> str:
    return (
        "COCO-Stuff: val2017/ and stuffthingmaps/val2017/; Cityscapes: leftImg8bit/val/ and gtFine/val/; "
        "any other: images/ and labels/ with an 8-bit PNG of the same stem for each image, 255 = void"
    )


def _recognise(folder: Path) -> Layout:
    if (folder / "leftImg8bit").is_dir() or (folder / "gtFine").is_dir():
        return Layout.CITYSCAPES
    if any((folder / name).is_dir() for name in (*COCO_IMAGE_FOLDERS, *COCO_LABEL_FOLDERS)):
        return Layout.COCO_STUFF
    if (folder / "images").is_dir() or (folder / "labels").is_dir():
        return Layout.FOLDER
    raise DatasetError(f"{folder}: unknown layout; known are {_forms()}")


def _mapping(pairs: Iterable[tuple[int, int]], other: int) -> NDArray[np.uint8]:
    mapping = np.full(256, other, dtype=np.uint8)
    for value, label in pairs:
        mapping[value] = label
    mapping[VOID] = VOID
    return mapping


def _open_coco(folder: Path, image_list: Path | None) -> Dataset:
    images = _first(folder, COCO_IMAGE_FOLDERS, f"images of COCO val2017: unpack {COCO_IMAGES}")
    labels = _first(folder, COCO_LABEL_FOLDERS, f"label maps of COCO-Stuff: unpack {COCO_LABELS} in stuffthingmaps/")
    places = (folder / coco_stuff.LIST, folder / "curated" / "val2017" / coco_stuff.LIST)
    image_list = image_list or next((path for path in places if path.is_file()), None)
    if image_list is not None:
        names = coco_stuff.read_list(image_list)
        note = f"COCO-Stuff-27, val2017: the {len(names)} images of {image_list.name}"
    else:
        everything = sorted(path for path in labels.glob("*.png") if (images / f"{path.stem}.jpg").is_file())
        names = [path.stem for path in everything if _curated(path)]
        note = (
            f"COCO-Stuff-27, val2017: {len(names)} of {len(everything)} images, derived by IIC's rule (both sides at "
            f"least {coco_stuff.LEAST_SIDE} px, at least {coco_stuff.LEAST_STUFF:.0%} of all pixels stuff); "
            f"may differ from the 2,175 images of {coco_stuff.LIST}, which can be passed with --list"
        )
    if not names:
        raise DatasetError(f"{labels}: no label map that meets the rule for the curated list; pass one with --list")
    samples = tuple(Sample(name, images / f"{name}.jpg", labels / f"{name}.png") for name in names)
    return Dataset(
        folder.name,
        Layout.COCO_STUFF,
        samples,
        coco_stuff.CLASSES,
        _mapping(enumerate(coco_stuff.FINE_TO_COARSE), UNKNOWN),
        note,
    )


def _curated(path: Path) -> bool:
    try:
        return coco_stuff.is_curated(path)
    except ImageError:
        return True  # keep it, so that its evaluation reports the error


def _open_cityscapes(folder: Path) -> Dataset:
    images = _first(
        folder, ("leftImg8bit/val",), f"leftImg8bit_trainvaltest.zip from {CITYSCAPES_SITE} (needs a login)"
    )
    labels = _first(folder, ("gtFine/val",), f"gtFine_trainvaltest.zip from {CITYSCAPES_SITE} (needs a login)")
    samples = []
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        stem = image.name.removesuffix("_leftImg8bit.png")
        samples.append(Sample(stem, image, labels / image.parent.name / f"{stem}_gtFine_labelIds.png"))
    if not samples:
        raise DatasetError(f"{images}: no <city>/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip again")
    classes = ((value, value - CITYSCAPES_FIRST) for value in range(CITYSCAPES_FIRST, CITYSCAPES_LAST + 1))
    mapping = _mapping(classes, UNKNOWN)
    mapping[:CITYSCAPES_FIRST] = VOID
    note = "Cityscapes val, gtFine labelIds 7 to 33 as 27 classes, the others void"
    return Dataset(folder.name, Layout.CITYSCAPES, tuple(samples), CITYSCAPES_CLASSES, mapping, note)


def _open_folder(folder: Path) -> Dataset:
    images = _first(folder, ("images",), "images")
    labels = _first(folder, ("labels",), "label maps: an 8-bit PNG of the same stem for each image, 255 = void")
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


def _first(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(f"{folder}: no {' or '.join(f'{name}/' for name in names)}, the {what}")
