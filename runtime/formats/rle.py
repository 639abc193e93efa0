"""Encode masks as COCO run lengths.

diffseg has its own encoder, because pycocotools is a compiled package that is not available for every platform, and
because it reads only one mask at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Counts = Literal["string", "list"]
"""Form of the run lengths: as pycocotools compresses them, or as integers."""

DIGIT_BITS = 5
CONTINUED = 0x20
FIRST_CHARACTER = 48


def run_lengths(labels: NDArray[np.uint16], count: int) -> list[NDArray[np.int64]]:
    """Return the run lengths of every mask of a label map in COCO order: column by column, background first.

    Args:
        labels: label map (H, W) with values from 0 to `count` - 1.
        count: number of masks.

    Returns:
        One array of run lengths per label. The run lengths of a label sum to H·W.
    """
    flat = labels.ravel(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], borders])
    ends = np.concatenate([borders, [flat.size]])
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    edges = np.searchsorted(values[order], np.arange(count + 1))
    runs = []
    for label in range(count):
        mine = order[edges[label] : edges[label + 1]]
        # 0, start, end, start, end, …, size: the differences are alternating runs of background and mask
        turns = np.concatenate([[0], np.stack([starts[mine], ends[mine]], axis=1).ravel(), [flat.size]])
        counts = np.diff(turns)
        runs.append(counts[:-1] if counts[-1] == 0 else counts)
    return runs


def compress(counts: NDArray[np.int64]) -> str:
    """Encode run lengths as a string, as pycocotools does.

    The first three run lengths are stored as they are, each later one as its difference from the run length two places
    before it. A character holds 5 bits.
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    digits = []
    active = np.ones(len(rest), dtype=bool)
    while active.any():
        digit = rest & 0x1F
        rest >>= DIGIT_BITS
        more = active & np.where(digit & 0x10, rest != -1, rest != 0)
        digits.append(np.where(active, digit + CONTINUED * more + FIRST_CHARACTER, 0))
        active = more
    characters = np.stack(digits, axis=1).ravel()
    return characters[characters > 0].astype(np.uint8).tobytes().decode("ascii")
