"""Label maps at the size of an image, and their segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from diffseg.arrays import row_blocks
from diffseg.placement import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of an image."""

    label: int
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # left, top, width, height in pixels, as in COCO


Masks: TypeAlias = "tuple[NDArray[np.uint16], tuple[Segment, ...]]"
"""(H, W) labels from 0 to k-1 without gaps, at the size of the image, and one segment per label, largest first."""


def place_labels(labels: NDArray[np.uint16], placement: Placement) -> Masks:
    """Bring a label map from the network's input size to the size of the image by nearest neighbour.

    Args:
        labels: (h, w) uint16, at the network's input size.
        placement: which box of the image the network saw.

    Returns:
        See `finish_labels`.
    """
    (rows, columns), (in_rows, in_columns) = placement.indices(), placement.seen()
    whole = np.empty(placement.target, dtype=np.uint16)
    across = labels.take(columns[in_columns], axis=1)
    across.take(rows[in_rows], axis=0, out=whole[in_rows, in_columns])
    return finish_labels(whole, placement)


def finish_labels(labels: NDArray[np.uint16], placement: Placement) -> Masks:
    """Renumber a label map and describe its segments, in blocks of rows.

    Args:
        labels: (H, W) uint16, the size of the result; overwritten. Values where the network sees nothing are ignored.
        placement: which box of the image the network saw.

    Returns:
        `labels` with the numbers 0 to k-1 in their old order, without gaps, and one segment per label, largest first.
        If the network does not see the whole image, the pixels that it does not see have the last label, k-1.
    """
    rows, columns = placement.seen()
    seen = labels[rows, columns]
    areas, boxes = _measured(seen)
    kept = np.flatnonzero(areas)
    boxes[:, :2] += columns.start, rows.start
    segments = [
        Segment(i, int(areas[label]), tuple(map(int, boxes[label])))  # type: ignore[arg-type]
        for i, label in enumerate(kept)
    ]
    if len(kept) <= kept[-1]:  # there are gaps
        dense = np.zeros(int(kept[-1]) + 1, dtype=np.uint16)
        dense[kept] = np.arange(len(kept), dtype=np.uint16)
        for block in row_blocks(seen.shape[0], 2 * seen.shape[1], seen):
            seen[block] = dense[seen[block]]
    if placement.hides:
        for hidden in (np.s_[: rows.start], np.s_[rows.stop :], np.s_[:, : columns.start], np.s_[:, columns.stop :]):
            labels[hidden] = len(kept)
        segments.append(_void(placement, len(kept)))
    return labels, tuple(sorted(segments, key=lambda s: (-s.area, s.label)))


def _measured(labels: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the area of each label of (H, W), 0 if it does not occur, and its box: (n,) and (n, 4) as in COCO.

    They are added up from the horizontal runs of equal labels, which are far fewer than the pixels.
    """
    height, width = labels.shape
    count = int(labels.max()) + 1
    areas = np.zeros(count, dtype=np.int64)
    left, top = np.full(count, width), np.full(count, height)
    right, bottom = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for rows in row_blocks(height, 2 * width, labels):
        block = labels[rows]
        begins = np.ones(block.shape, dtype=bool)
        np.not_equal(block[:, 1:], block[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        found = block[begins]
        y, x = np.divmod(starts, width)
        lengths = np.diff(starts, append=block.size)  # a run ends with its row
        areas += np.bincount(found, lengths, count).astype(np.int64)
        for edges, at, choose in (
            (left, x, np.minimum),
            (right, x + lengths, np.maximum),
            (top, y + rows.start, np.minimum),
            (bottom, y + (rows.start + 1), np.maximum),
        ):
            choose.at(edges, found, at)
    return areas, np.stack([left, top, right - left, bottom - top], axis=1)


def _void(placement: Placement, label: int) -> Segment:
    """Return the segment of the pixels that the network does not see."""
    (height, width), (rows, columns) = placement.target, placement.seen()
    hidden_rows, hidden_columns = np.ones(height, dtype=bool), np.ones(width, dtype=bool)
    hidden_rows[rows], hidden_columns[columns] = False, False
    # A hidden column hides a pixel of every row, and a hidden row one of every column.
    y = np.arange(height) if hidden_columns.any() else np.flatnonzero(hidden_rows)
    x = np.arange(width) if hidden_rows.any() else np.flatnonzero(hidden_columns)
    box = int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)
    return Segment(label, height * width - (rows.stop - rows.start) * (columns.stop - columns.start), box)
