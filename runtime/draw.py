"""Pictures of masks."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = 256
GOLDEN_ANGLE = 0.381966
OUTLINE_PIXELS = 1200
"""Longest side up to which an outline is one pixel wide on each side of the border."""


def palette() -> NDArray[np.uint8]:
    """256 colours (256, 3), neighbours far apart in hue and alternating in lightness."""
    rows = [
        colorsys.hsv_to_rgb((0.58 + i * GOLDEN_ANGLE) % 1, (0.85, 0.6, 0.95)[i % 3], (0.95, 1.0, 0.7)[i % 3])
        for i in range(COLOURS)
    ]
    return np.round(np.array(rows) * 255).astype(np.uint8)


def colourise(labels: NDArray[np.uint16]) -> Image.Image:
    """Picture of a label map (H, W), a colour a label; colours repeat after 256."""
    image = Image.fromarray((labels % COLOURS).astype(np.uint8))
    image.putpalette(palette().tobytes())
    return image.convert("RGB")


def overlay(
    image: Image.Image, labels: NDArray[np.uint16], opacity: float = 0.5, *, outline: bool = True
) -> Image.Image:
    """Lay coloured masks over a picture.

    Args:
        image: RGB, of the labels' size.
        labels: (H, W).
        opacity: of the colours, 0 to 1.
        outline: draw white borders between masks.
    """
    blended = Image.blend(image, colourise(labels), opacity)
    if outline:
        border = np.zeros(labels.shape, dtype=np.uint8)
        border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        border[1:, :] |= labels[1:, :] != labels[:-1, :]
        mask = Image.fromarray(border * np.uint8(255))
        if max(labels.shape) > OUTLINE_PIXELS:
            mask = mask.filter(ImageFilter.MaxFilter(3))
        blended.paste((255, 255, 255), mask=mask)
    return blended
