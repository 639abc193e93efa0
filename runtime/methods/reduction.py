"""Label maps and images at a lower resolution, where refinements by colour are fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
"""Least side, in pixels, that an image is reduced to. Doubling it refines borders but takes four times as long."""


def reduction_factor(shape: tuple[int, ...]) -> int:
    """Return the largest power of two that divides both sides of (H, W) and leaves at least SIDE pixels of each."""
    factor = 1
    while all(side % (2 * factor) == 0 and side >= 2 * factor * SIDE for side in shape):
        factor *= 2
    return factor


def reduced(
    labels: NDArray[np.uint16], pixels: NDArray[np.uint8], factor: int
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Reduce a label map by nearest neighbour, and its image by the mean of squares of `factor` pixels per side.

    Args:
        labels: (H, W).
        pixels: (H, W, 3) uint8.
        factor: divides H and W.

    Returns:
        (h, w) uint16, a copy, and (h, w, 3) float32 from 0 to 1.
    """
    small = labels[factor // 2 :: factor, factor // 2 :: factor].astype(np.uint16, order="C")
    return small, reduced_image(pixels, factor)


def reduced_image(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float32]:
    """Reduce an image (H, W, 3) by the mean of squares of `factor` pixels per side, which divides H and W.

    Returns:
        (h, w, 3) float32 from 0 to 1.
    """
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    means: NDArray[np.float32] = pixels.reshape(height, factor, width, factor, 3).mean((1, 3), dtype=np.float32)
    return means / np.float32(255)


def enlarged(labels: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Repeat each label of (h, w) in a square of `factor` pixels per side."""
    return labels.repeat(factor, 0).repeat(factor, 1)


def present(labels: NDArray[np.uint16]) -> list[int]:
    """Return the labels that a label map contains, in order.

    `numpy.unique` would import `numpy.ma`, which takes longer than all calls for an image.
    """
    found: list[int] = np.flatnonzero(np.bincount(labels.reshape(-1))).tolist()
    return found


def surroundings(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Return the bounding box of a mask (H, W), enlarged by `margin` pixels on every side within the image."""
    sides = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    rows, columns = (
        slice(max(int(side[0]) - margin, 0), min(int(side[-1]) + margin + 1, length))
        for side, length in zip(sides, mask.shape, strict=True)
    )
    return rows, columns
