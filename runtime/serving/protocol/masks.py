"""Write a segmentation as JSON: its segments, each with its mask as COCO run lengths."""

from __future__ import annotations

from typing import Any

from diffseg.formats.rle import Counts
from diffseg.segmentation import Segmentation


def to_json(result: Segmentation, counts: Counts = "string") -> dict[str, Any]:
    """Return a segmentation as a JSON object.

    Args:
        result: its labels and segments are written.
        counts: run lengths as the string that pycocotools writes, or as a list of integers.
    """
    document = result.to_dict(counts)
    del document["origin"]  # responses name the model and provider elsewhere, and a request's image has no file
    return document
