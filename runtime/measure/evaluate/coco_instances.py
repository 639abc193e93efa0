"""COCO-Object from COCO's own annotations, `instances_val2017.json`: the masks of objects become label maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from diffseg.engines.errors import DatasetError, ImageError
from diffseg.engines.text import first_line
from diffseg.formats.filling import decompress, fill_polygon, fill_runs
from diffseg.measure.evaluate import coco_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "instances_val2017.json"
DOWNLOAD = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
MOST_PIXELS = 178_956_970
"""Largest image, as for image files."""
CORNERS = 3
"""Least number of corners of a polygon. COCO's file has some with fewer, which cover no pixel."""


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Runs(msgspec.Struct):
    size: tuple[int, int]
    counts: str | list[int]


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    segmentation: list[list[float]] | _Runs
    area: float = 0.0
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotations(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The objects of one image.

    Attributes:
        where: the file that lists them, for messages.
        size: height and width of the image in pixels.
        objects: class and mask of each object, in the order in which they are drawn.
    """

    where: Path
    size: tuple[int, int]
    objects: tuple[tuple[int, list[list[float]] | _Runs], ...]

    def classes(self) -> NDArray[np.uint8]:
        """Return the class of each pixel (H, W); where there is no object, it is background.

        Raises:
            ImageError: the mask of an object is damaged.
        """
        labels = np.full(self.size, len(coco_object.CLASSES), np.uint8)
        for label, mask in self.objects:
            try:
                if isinstance(mask, _Runs):
                    counts = decompress(mask.counts) if isinstance(mask.counts, str) else mask.counts
                    labels[fill_runs(counts, self.size)] = label
                    continue
                for polygon in mask:
                    corners = _corners(polygon, self.size)
                    if len(corners) >= CORNERS:
                        labels[fill_polygon(corners, self.size)] = label
            except ValueError as error:
                name = coco_object.CLASSES[label]
                raise ImageError(f"{self.where}: the mask of a {name} is damaged ({first_line(error)})") from None
        return labels

    def to_bytes(self) -> bytes:
        """Return bytes that are equal for equal label maps of the same file."""
        return msgspec.json.encode((self.size, self.objects))


def _corners(polygon: list[float], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the corners (n, 2) of a polygon, x and y in pixels."""
    if len(polygon) % 2:
        raise ValueError("a polygon has an x without a y")
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    if not (np.abs(corners) <= 2 * max(size)).all():
        raise ValueError("a corner is far outside the image")
    return corners


def find_file(folder: Path) -> Path | None:
    """Return the annotation file of a COCO folder; None if there is none."""
    places = (folder / "annotations" / FILE, folder / FILE)
    return next((path for path in places if path.is_file()), None)


def read_instances(path: Path) -> dict[str, Instances]:
    """Read an annotation file → the objects of each image, by the name of the image without its suffix.

    Where objects overlap, the smaller one is drawn over the larger one, and any object over a crowd.

    Raises:
        DatasetError: the file cannot be read, or is not COCO's.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Annotations)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a file of COCO's instances ({first_line(error)}); unpack {DOWNLOAD}") from None
    classes = {}
    for category in found.categories:
        if category.name not in coco_object.CLASSES:
            raise DatasetError(f"{path}: category {category.name!r} is not one of COCO's {len(coco_object.CLASSES)}")
        classes[category.id] = coco_object.CLASSES.index(category.name)
    objects: dict[int, list[_Annotation]] = {image.id: [] for image in found.images}
    for annotation in found.annotations:
        if annotation.image_id not in objects or annotation.category_id not in classes:
            kind = "image_id" if annotation.image_id not in objects else "category_id"
            raise DatasetError(f"{path}: an annotation has the unknown {kind} {getattr(annotation, kind)}")
        objects[annotation.image_id].append(annotation)
    instances = {}
    for image in sorted(found.images, key=lambda image: image.id):
        if min(image.height, image.width) < 1 or image.height * image.width > MOST_PIXELS:
            raise DatasetError(f"{path}: {image.file_name} has {image.width} × {image.height} pixels")
        drawn = sorted(objects[image.id], key=lambda found: (not found.iscrowd, -found.area))
        masks = tuple((classes[one.category_id], one.segmentation) for one in drawn)
        instances[Path(image.file_name).stem] = Instances(path, (image.height, image.width), masks)
    return instances
