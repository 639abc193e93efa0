"""The paper's measure: each class of an image gets at most one mask, and pixels are summed up over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.measure.overlap import Overlap, match

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Pixels of each class: found, wrongly given to it, and missed; each (classes,) int64, summed over images."""

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @classmethod
    def none(cls, count: int) -> Matches:
        """Return zero pixels for `count` classes."""
        zeros = np.zeros(count, dtype=np.int64)
        return cls(zeros, zeros, zeros)

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    def accuracy(self) -> float:
        """Pixel accuracy: found pixels of all that are not void."""
        total = self.true_positives.sum() + self.false_negatives.sum()
        return float(self.true_positives.sum() / total) if total else float("nan")

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class; NaN for one that never occurred and was never given a pixel."""
        union = self.true_positives + self.false_positives + self.false_negatives
        iou = np.full(len(union), np.nan)
        np.divide(self.true_positives, union, out=iou, where=union > 0)
        return iou

    def mean_iou(self) -> float:
        """Mean over the classes that are not NaN."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def match_classes(overlap: Overlap, count: int, order: NDArray[np.integer] | None = None) -> Matches:
    """Give each of `count` classes one mask so that most pixels agree (Hungarian matching), as google/diffseg does.

    Its result depends on the order of the labels, in two ways. Up to `count` masks, all are dealt out; those that fit
    no class of the image go to classes that are not in it, all equally good since the overlap is zero, and so the
    masks' numbers decide which class gets their pixels as false positives. Beyond `count` masks, the surplus ones are
    dropped and count for no class. Over-segmentation is therefore cheap, and mIoU moves by some points when the same
    masks are numbered otherwise; accuracy does not.

    Args:
        overlap: of one image.
        count: number of classes of the data set.
        order: a permutation of the masks, to measure the effect of their numbers; None leaves them as they are.
    """
    found = overlap.table if order is None else overlap.table[:, order]
    table = np.zeros((count, max(count, found.shape[1])), dtype=np.int64)
    table[list(overlap.classes), : found.shape[1]] = found
    rows, columns = match(table)
    hits = table[rows, columns]
    return Matches(hits, table[:, columns].sum(axis=0) - hits, table.sum(axis=1) - hits)
