"""Fill COCO's polygons and read its run lengths, pixel for pixel as pycocotools does.

diffseg has its own code, because pycocotools is a compiled package that is not available for every platform.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diffseg.formats.rle import CONTINUED, DIGIT_BITS, FIRST_CHARACTER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FINE = 5
"""Points per pixel, along each axis, on which the outline of a polygon is drawn."""
MOST_BITS = 40
"""Most bits of a compressed run length before its last character."""


def fill_polygon(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a polygon, as COCO's `rleFrPoly` does.

    The outline is drawn on a grid of 5 × 5 points per pixel. Along each column of pixels, every crossing of the outline
    begins or ends the polygon.

    Args:
        corners: (n, 2) x and y in pixels; the outline is closed.
        size: height and width of the image in pixels.

    Returns:
        (H, W) mask.
    """
    height, width = size
    fine = np.trunc(FINE * corners + 0.5).astype(np.int64)
    x, y = _outline(fine)
    steps = np.flatnonzero(x[1:] != x[:-1]) + 1  # where the outline passes to another column of the fine grid
    columns = (np.minimum(x[steps], x[steps - 1]) + 0.5) / FINE - 0.5
    rows = np.ceil(np.clip((np.minimum(y[steps], y[steps - 1]) + 0.5) / FINE - 0.5, 0, height))
    crossed = (np.floor(columns) == columns) & (columns >= 0) & (columns <= width - 1)
    places = (columns[crossed] * height + rows[crossed]).astype(np.int64)
    crossings = np.bincount(places, minlength=height * width + 1)[: height * width]
    inside = np.cumsum(crossings) % 2 == 1
    mask: NDArray[np.bool_] = inside.reshape(width, height).T
    return mask


def _outline(fine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the closed line through points (n, 2) → x and y of each point on it."""
    lines = []
    for start, end in zip(fine, np.roll(fine, -1, axis=0), strict=True):
        across, down = np.abs(end - start)
        count = int(max(across, down))
        if count == 0:
            continue  # a corner that is there twice
        flat = across >= down
        backwards = bool(start[0] > end[0] if flat else start[1] > end[1])
        first, last = (end, start) if backwards else (start, end)
        steps = np.arange(count + 1)
        main, other = (0, 1) if flat else (1, 0)
        slope = (last[other] - first[other]) / count
        line = np.empty((count + 1, 2), np.int64)
        line[:, main] = first[main] + steps
        line[:, other] = np.trunc(first[other] + slope * steps + 0.5).astype(np.int64)
        lines.append(line[::-1] if backwards else line)
    if not lines:
        return fine[:, 0], fine[:, 1]
    x, y = np.concatenate(lines).T
    return x, y


def fill_runs(counts: Sequence[int] | NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of run lengths in COCO's order: column by column, background first.

    Raises:
        ValueError: a run length is negative, or their sum is not the number of pixels.
    """
    height, width = size
    runs = np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths must sum to {height} × {width} pixels, found {int(runs.sum())}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decompress(text: str) -> NDArray[np.int64]:
    """Decode run lengths that pycocotools compressed; the reverse of `compress`.

    Raises:
        ValueError: the text is not such a string.
    """
    values: list[int] = []
    value = bits = 0
    for character in text:
        digit = ord(character) - FIRST_CHARACTER
        if not 0 <= digit < 2 * CONTINUED or bits > MOST_BITS:
            raise ValueError(f"{character!r} cannot be there in compressed run lengths")
        value |= (digit & (CONTINUED - 1)) << bits
        bits += DIGIT_BITS
        if digit & CONTINUED:
            continue
        if digit & (CONTINUED >> 1):
            value -= 1 << bits
        values.append(value + (values[-2] if len(values) > 2 else 0))  # noqa: PLR2004
        value = bits = 0
    if bits:
        raise ValueError("compressed run lengths end within a number")
    return np.array(values, np.int64)
