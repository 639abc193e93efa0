"""The paper's measure: each class of an image gets at most one mask, and pixels are summed over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.measure.overlap import Overlap, match

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Numbers of true positive, false positive and false negative pixels per class, summed over images.

    Each is (classes,) int64.
    """

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
        """Return the pixel accuracy: the share of correct pixels among all that are not void."""
        total = self.true_positives.sum() + self.false_negatives.sum()
        return float(self.true_positives.sum() / total) if total else float("nan")

    def iou(self) -> NDArray[np.float64]:
        """Return the intersection over union of each class. It is NaN for a class without true or assigned pixels."""
        union = self.true_positives + self.false_positives + self.false_negatives
        iou = np.full(len(union), np.nan)
        np.divide(self.true_positives, union, out=iou, where=union > 0)
        return iou

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes whose IoU is not NaN."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def match_classes(overlap: Overlap, count: int, order: NDArray[np.integer] | None = None) -> Matches:
    """Assign one mask to each of `count` classes so that most pixels agree (Hungarian matching), as in google/diffseg.

    The result depends on the numbering of the masks in two ways. If there are at most `count` masks, all are assigned.
    Masks that match no class of the image are assigned to classes that are not in it. As the overlap is zero for all of
    these classes, the masks' numbers decide which class gets their pixels as false positives. If there are more than
    `count` masks, the surplus masks are dropped and count for no class. Over-segmentation is therefore cheap, and mIoU
    changes by some points if the same masks are numbered differently; accuracy does not.

    Args:
        overlap: the overlap in one image.
        count: number of classes of the data set.
        order: a permutation of the masks, to measure the effect of their numbering; None keeps the numbering.
    """
    found = overlap.table if order is None else overlap.table[:, order]
    table = np.zeros((count, max(count, found.shape[1])), dtype=np.int64)
    table[list(overlap.classes), : found.shape[1]] = found
    rows, columns = match(table)
    hits = table[rows, columns]
    return Matches(hits, table[:, columns].sum(axis=0) - hits, table.sum(axis=1) - hits)


def merge_background(labels: NDArray[np.integer], truth: NDArray[np.integer], background: int) -> NDArray[np.integer]:
    """Join all masks that are matched to no class of an image: many-to-one matching of the background, as in DiffCut.

    This follows `Benchmark_Segmentation.evaluate` of PaulCouairon/DiffCut. Masks are matched with all classes but the
    background, without the pixels of the background (Hungarian matching). The masks that are paired with a class that
    occurs in the image keep their numbers, even where they have no pixel in common with it. All other masks become one
    mask with a new number, the highest. The protocol then matches the result with all classes.

    Args:
        labels: (H, W) masks from 0.
        truth: (H, W) classes. The background is the last class.
        background: number of the background's class, which is the number of the other classes.

    Returns:
        (H, W) masks, of the type of `labels`.
    """
    overlap = Overlap.of(truth, labels, void=background)
    masks = overlap.table.shape[1]
    table = np.zeros((background, max(background, masks)), dtype=np.int64)
    table[list(overlap.classes), :masks] = overlap.table
    rows, columns = match(table)
    occurring = table[:, columns].max(axis=1)[rows] > 0
    kept = columns[occurring]
    return np.where(np.isin(labels, kept), labels, labels.max() + 1).astype(labels.dtype)
