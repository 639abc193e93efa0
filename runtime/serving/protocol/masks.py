"""Write a segmentation as JSON: its segments, each with its mask as COCO run lengths."""

from __future__ import annotations

from typing import Any, Literal

from diffseg.formats.rle import compress, run_lengths
from diffseg.segmentation import Segmentation

Counts = Literal["string", "list"]


def to_json(result: Segmentation, counts: Counts = "string") -> dict[str, Any]:
    """Return a segmentation as a JSON object.

    Args:
        result: its labels and segments are written.
        counts: run lengths as the string that pycocotools writes, or as a list of integers.
    """
    document = result.to_dict()
    size = list(result.labels.shape)
    runs = run_lengths(result.labels, len(result.segments))
    for segment in document["segments"]:
        lengths = runs[segment["label"]]
        segment["segmentation"] = {
            "size": size,
            "counts": compress(lengths) if counts == "string" else lengths.tolist(),
        }
    return document
