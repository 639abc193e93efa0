"""Connected parts of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def label_parts(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected parts of a mask. Pixels that touch only at a corner are not connected.

    Horizontal runs of pixels are joined with the runs that they touch in the next row, because a mask has far fewer
    runs than pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) int32: 1, 2, … in each part, in the order of their first pixels, and 0 outside the mask.
    """
    width = mask.shape[1] + 2
    flat = np.pad(mask, ((0, 0), (1, 1))).ravel()  # a column of background ends the runs of each row
    starts = np.flatnonzero(flat[1:] & ~flat[:-1]) + 1
    ends = np.flatnonzero(flat[:-1] & ~flat[1:]) + 1
    part = _joined(len(starts), *_touching(starts, ends, width))
    labels = np.repeat(part, ends - starts)
    numbered = np.zeros(mask.shape, dtype=np.int32)
    numbered[mask] = labels
    return numbered


def _touching(
    starts: NDArray[np.int64], ends: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of runs that touch between one row and the next, as two arrays of their indices."""
    first = np.searchsorted(ends, starts + width, side="right")
    last = np.searchsorted(starts, ends + width, side="left")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
    return upper, first[upper] + within


def _joined(count: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of the part of each run, from 1, given the pairs of runs that touch."""
    parent = np.arange(count)
    while True:
        a, b = parent[left], parent[right]
        if (a == b).all():
            break
        least = np.minimum(a, b)
        np.minimum.at(parent, a, least)
        np.minimum.at(parent, b, least)
        while (parent[parent] != parent).any():
            parent = parent[parent]
    return (np.unique(parent, return_inverse=True)[1] + 1).astype(np.int32)
