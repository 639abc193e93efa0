"""Masks as a COCO data set: run lengths or polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from diffseg.formats.polygons import polygons
from diffseg.formats.rle import compress, run_lengths
from diffseg.labels import Segment
from numpy.typing import NDArray

Shape = Literal["rle", "polygon"]
CATEGORY = {"id": 1, "name": "segment", "supercategory": ""}
"""DiffSeg does not classify masks, so all of them have the same category."""


def coco_dataset(
    labels: NDArray[np.uint16],
    segments: Sequence[Segment],
    *,
    image_id: int = 1,
    file_name: str = "",
    shape: Shape = "rle",
    tolerance: float = 1.0,
) -> dict[str, Any]:
    """Describe the masks of one image as a COCO data set, which `pycocotools.coco.COCO` reads.

    Args:
        labels: (H, W).
        segments: the masks.
        image_id: number of the image. The annotation ids are derived from it; they are unique for up to 65,536 masks
            per image.
        file_name: file name of the image.
        shape: `rle` keeps every pixel, `polygon` writes outlines. COCO's polygons have no holes, so holes are filled.
        tolerance: tolerance of the polygons, in pixels.

    Returns:
        `images`, `annotations` in the order of `segments`, and `categories`.

    Raises:
        ValueError: an unknown shape, or a negative tolerance.
    """
    height, width = labels.shape
    if shape == "rle":
        runs = run_lengths(labels, len(segments))
        shapes: dict[int, Any] = {
            segment.label: {"size": [height, width], "counts": compress(runs[segment.label])} for segment in segments
        }
    elif shape == "polygon":
        shapes = {segment.label: [] for segment in segments}
        for polygon in polygons(labels, segments, tolerance):
            shapes[polygon.label].append(polygon.exterior.ravel().tolist())
    else:
        raise ValueError(f"shape must be rle or polygon, found {shape!r}")
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": [
            {
                "id": (image_id << 16) + segment.label,
                "image_id": image_id,
                "category_id": CATEGORY["id"],
                "segmentation": shapes[segment.label],
                "area": segment.area,
                "bbox": list(segment.bbox),
                "iscrowd": 0,
            }
            for segment in segments
        ],
        "categories": [dict(CATEGORY)],
    }
