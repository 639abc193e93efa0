"""Pixel-adaptive mask refinement (PAMR): masks averaged with neighbours of similar colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from diffseg.arrays import Array, cpu_workers, device, namespace, prefetched, row_blocks, to_host
from diffseg.cancellation import checkpoint
from diffseg.methods.reduction import surroundings

NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def pamr_refine(labels: Array, image: Array, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8)) -> Array:
    """Move the borders of masks to where the colours change (Araslanov and Roth, 2020, arXiv 2005.08104, section 4.2).

    Each mask, 1 inside and 0 outside, is averaged with its eight neighbours at each dilation, `iterations` times. The
    weights are the softmax over all neighbours of the mean over the channels of -|x - xₙ| / (1e-8 + 0.1 σ), where σ is
    the unbiased standard deviation of the channel over the neighbours and the pixel itself. Borders are replicated.
    The largest mask wins a pixel, the lowest label in a tie.

    The authors of DiffCut use the defaults at 128 × 128 pixels; their demo uses 30 iterations and dilations of 1, 2,
    4, 8, 12, 24, 32 and 64 at 1024 × 1024.

    Args:
        labels: `(H, W)` non-negative integers.
        image: `(H, W, 3)` float, 0 to 1, of the same library and device.
        iterations: number of averages; 0 returns the labels.
        dilations: distances of the neighbours, in pixels.

    Returns:
        `(H, W)` of the dtype of `labels`. A label that wins no pixel is missing.

    Raises:
        ValueError: labels and image differ in size, or an argument is out of range.
    """
    if tuple(labels.shape) != tuple(image.shape[:2]) or image.ndim != 3 or 0 in labels.shape:  # noqa: PLR2004
        raise ValueError(
            f"labels must be (H, W) and the image (H, W, 3) of the same size, "
            f"found {tuple(labels.shape)} and {tuple(image.shape)}"
        )
    if iterations < 0 or not dilations or min(dilations) < 1:
        raise ValueError(
            f"iterations must be at least 0 and dilations at least 1, found {iterations} and {tuple(dilations)}"
        )
    xp = namespace(labels)
    shifts = [(d * y, d * x) for d in dilations for y, x in NEIGHBOURS]
    weights = _weights(xp.astype(image, xp.float32, copy=False), shifts)
    margin = max(dilations) * iterations
    best = xp.full(labels.shape, -1.0, dtype=xp.float32, device=device(labels))
    result = xp.zeros_like(labels)

    def refine(label: int) -> tuple[int, tuple[slice, slice], Array]:
        inside = labels == label
        window = surroundings(to_host(inside), margin)  # beyond what the averages can reach, a mask stays 0
        mask = xp.astype(inside[window], xp.float32)
        part = weights[:, *window]
        for _ in range(iterations):
            mask = _average(mask, part, shifts)
        return label, window, mask

    for label, window, mask in prefetched(refine, np.unique(to_host(labels)).tolist(), cpu_workers(labels)):
        checkpoint()
        better = mask > best[window]
        best[window] = xp.where(better, mask, best[window])
        number = xp.asarray(label, dtype=labels.dtype, device=device(labels))
        result[window] = xp.where(better, number, result[window])
    return result


def median_filter(labels: Array) -> Array:
    """Take the median of each 3 × 3 window of `(H, W)` labels; borders are mirrored.

    The authors of DiffCut do this to the numbers of the masks. It removes single pixels, but the median of unlike
    numbers is a matter of chance, so nothing here does it by default.
    """
    xp = namespace(labels)
    height, width = labels.shape
    padded = _pad(labels, 1)
    taps = xp.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return xp.sort(taps, axis=0)[4, ...]


def _weights(image: Array, shifts: list[tuple[int, int]]) -> Array:
    """Return the weights of the neighbours of an image (H, W, 3): (P, H, W) float32, sum 1 over the first axis."""
    xp = namespace(image)
    height, width, channels = image.shape
    margin = max(max(abs(y), abs(x)) for y, x in shifts)
    dilations = len(shifts) // len(NEIGHBOURS)
    total = xp.zeros((len(shifts), height, width), dtype=xp.float32, device=device(image))
    for channel in range(channels):
        plane = image[..., channel]
        padded = _pad(plane, margin)
        taps = [
            padded[margin + y : margin + y + height, margin + x : margin + x + width] - plane for y, x in shifts
        ]  # relative to the pixel, which is a tap of its own at each dilation
        count = len(shifts) + dilations
        mean = sum(taps[1:], start=taps[0]) / count
        square = sum(((tap - mean) ** 2 for tap in taps), start=dilations * mean**2)
        spread = 1e-8 + 0.1 * xp.sqrt(square / (count - 1))
        for i, tap in enumerate(taps):
            total[i, ...] -= xp.abs(tap) / spread
    total /= channels
    total -= xp.max(total, axis=0)
    total = xp.exp(total)
    total /= xp.sum(total, axis=0)
    return total


def _average(mask: Array, weights: Array, shifts: list[tuple[int, int]]) -> Array:
    """Average (h, w) with its neighbours by (P, h, w) weights."""
    xp = namespace(mask)
    height, width = mask.shape
    margin = max(max(abs(y), abs(x)) for y, x in shifts)
    padded = _pad(mask, margin)
    total = xp.zeros_like(mask)
    for rows in row_blocks(height, 4 * width * len(shifts), mask):  # a block's weights stay in the cache
        for i, (y, x) in enumerate(shifts):
            first = margin + y + rows.start
            tap = padded[first : first + rows.stop - rows.start, margin + x : margin + x + width]
            total[rows, :] += weights[i, rows, :] * tap
    return total


def _pad(plane: Array, margin: int) -> Array:
    """Repeat the border of (H, W) on all sides."""
    xp = namespace(plane)
    for axis in (0, 1):
        last = plane.shape[axis] - 1
        first_row, last_row = (plane[:1, :], plane[last:, :]) if axis == 0 else (plane[:, :1], plane[:, last:])
        plane = xp.concat([first_row] * margin + [plane] + [last_row] * margin, axis=axis)
    return plane
