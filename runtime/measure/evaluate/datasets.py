"""Labelled images on disk, in the layouts of their official downloads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.engines.text import first_line
from diffseg.image import FORMATS, open_lazily
from diffseg.measure.evaluate import pascal_context
from diffseg.measure.overlap import VOID

if TYPE_CHECKING:
    from diffseg.measure.evaluate.coco_instances import Instances
    from numpy.typing import NDArray

UNKNOWN = 254
"""Entry of `Dataset.mapping` for label values that the data set does not define."""


class Layout(StrEnum):
    """Layout of a data set on disk."""

    AUTO = "auto"
    COCO_STUFF = "coco-stuff"
    COCO_OBJECT = "coco-object"
    CITYSCAPES = "cityscapes"
    VOC = "voc"
    CONTEXT = "context"
    ADE20K = "ade20k"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its label map.

    Attributes:
        name: name of the image, without suffix.
        image: the image file.
        label: the file of the label map, or the annotation file that has the objects.
        instances: the objects from which the label map is made; None if `label` is one.
    """

    name: str
    image: Path
    label: Path
    instances: Instances | None = None

    def label_bytes(self) -> bytes:
        """Return bytes that are equal for equal label maps of one data set.

        Raises:
            OSError: the label map cannot be read.
        """
        return self.label.read_bytes() if self.instances is None else self.instances.to_bytes()


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
        background: class of the background, the last one, to which DiffCut's protocol matches any number of masks; None
            if there is none.
    """

    name: str
    layout: Layout
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    mapping: NDArray[np.uint8]
    note: str = ""
    background: int | None = None

    def limited(self, limit: int | None) -> Dataset:
        """Return the data set with at most `limit` images, spread evenly over the set."""
        if limit is None or limit >= len(self.samples):
            return self
        return replace(self, samples=tuple(self.samples[i * len(self.samples) // limit] for i in range(limit)))

    def read_label(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the class of each pixel (H, W), or VOID where there is none.

        Raises:
            ImageError: the label map is missing, damaged, not 8-bit, or has a value that the data set does not define;
                or the mask of an object is damaged.
        """
        if sample.instances is not None:
            return sample.instances.classes()
        if sample.label.suffix == ".mat":
            return pascal_context.read_mat(sample.label)
        try:
            with open_lazily(sample.label, FORMATS) as image:
                mode, values = image.mode, np.asarray(image)
        except FileNotFoundError:
            raise ImageError(f"{sample.label}: the label map of {sample.image.name} does not exist") from None
        except Exception as error:  # a damaged file makes a decoder raise anything  # noqa: BLE001
            reason = first_line(error)
            raise ImageError(f"{sample.label}: cannot be decoded ({reason})") from None
        if mode not in ("L", "P"):
            raise ImageError(f"{sample.label}: a label map must be 8-bit with one channel, found mode {mode}")
        classes: NDArray[np.uint8] = self.mapping[values]
        if UNKNOWN in classes:
            value = int(values[classes == UNKNOWN][0])
            raise ImageError(f"{sample.label}: value {value} is not a label of {self.layout.value}")
        return classes


def label_mapping(pairs: Iterable[tuple[int, int]], other: int = UNKNOWN) -> NDArray[np.uint8]:
    """Return the `Dataset.mapping` of pairs of label value and class. Other values become `other`, and 255 is void."""
    mapping = np.full(256, other, dtype=np.uint8)
    for value, label in pairs:
        mapping[value] = label
    mapping[VOID] = VOID
    return mapping


def first_folder(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """Return the first of these sub-folders that exists.

    Raises:
        DatasetError: there is none; the message ends with `what`.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(f"{folder}: no {' or '.join(f'{name}/' for name in names)}, the {what}")
