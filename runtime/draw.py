"""Draw masks as images."""

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
"""Longest image side, in pixels, with thin outlines. Larger images get outlines widened by a 3 × 3 filter."""


def palette() -> NDArray[np.uint8]:
    """Return 256 RGB colours, uint8 (256, 3). Successive colours differ strongly in hue and vary in lightness."""
    rows = [
        colorsys.hsv_to_rgb((0.58 + i * GOLDEN_ANGLE) % 1, (0.85, 0.6, 0.95)[i % 3], (0.95, 1.0, 0.7)[i % 3])
        for i in range(COLOURS)
    ]
    return np.round(np.array(rows) * 255).astype(np.uint8)


def colourise(labels: NDArray[np.uint16]) -> Image.Image:
    """Draw a label map (H, W) as an RGB image with one colour per label. Colours repeat after 256 labels."""
    image = Image.fromarray((labels % COLOURS).astype(np.uint8))
    image.putpalette(palette().tobytes())
    return image.convert("RGB")


def overlay(
    image: Image.Image, labels: NDArray[np.uint16], opacity: float = 0.5, *, outline: bool = True
) -> Image.Image:
    """Lay coloured masks over an image.

    Args:
        image: RGB image of the same size as the labels.
        labels: label map (H, W).
        opacity: opacity of the colours, 0 to 1.
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
