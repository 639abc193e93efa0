"""Masks as images: each one cut out of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from diffseg.labels import Segment
from numpy.typing import NDArray
from PIL import Image


def cutouts(image: Image.Image, labels: NDArray[np.uint16], segments: Sequence[Segment]) -> tuple[Image.Image, ...]:
    """Cut each mask out of an image, within its box. Pixels outside the mask are transparent.

    Args:
        image: RGB image of the size of the labels.
        labels: (H, W).
        segments: the masks.

    Returns:
        One RGBA image per segment, in their order.
    """
    found = []
    for segment in segments:
        left, top, width, height = segment.bbox
        part = image.crop((left, top, left + width, top + height)).convert("RGBA")
        inside = labels[top : top + height, left : left + width] == segment.label
        part.putalpha(Image.fromarray(inside.astype(np.uint8) * np.uint8(255)))
        found.append(part)
    return tuple(found)
