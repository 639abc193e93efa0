"""Measures of a label map against classes or regions. All are made from two small records an image.

The paper's measure (`match_classes`) gives each class of an image at most one mask and depends on the masks'
numbers; `covering`, `adjusted_rand` and the boundary F-score do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.measure.evaluate.datasets import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 2.0
"""Pixels between boundaries that still count as the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """How the classes and the masks of one image overlap.

    Attributes:
        classes: the classes that occur, ascending.
        table: (classes, masks) int64, pixels in common; void pixels are left out. Columns are the masks' numbers.
    """

    classes: tuple[int, ...]
    table: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[np.uint8], labels: NDArray[np.integer]) -> Overlap:
        """Count truth (H, W), void 255, against labels (H, W) from 0."""
        known = truth != VOID
        classes, rows = np.unique(truth[known], return_inverse=True)
        masks = int(labels.max()) + 1
        flat = rows.astype(np.int64) * masks + labels[known].astype(np.int64)
        table = np.bincount(flat, minlength=len(classes) * masks).reshape(len(classes), masks)
        return cls(tuple(int(c) for c in classes), table.astype(np.int64))

    @property
    def masks(self) -> int:
        """Masks that cover at least one pixel that is not void."""
        return int((self.table.sum(axis=0) > 0).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Pixels of each class: found, wrongly given to it, and missed; each (classes,) int64, summed over images."""

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @classmethod
    def none(cls, count: int) -> Matches:
        """Of no image."""
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

    Its result depends on the order of the labels, in two ways. Up to `count` masks, all are dealt out; those that no
    class of the image wants go to classes that are not in it, all equally good since the overlap is zero, and so the
    masks' numbers decide which class is charged with their pixels as false positives. Beyond `count` masks, the
    surplus ones are dropped and charged to nobody. Over-segmentation is therefore cheap, and mIoU moves by some points
    when the same masks are numbered otherwise; accuracy does not.

    Args:
        overlap: of one image.
        count: number of classes of the data set.
        order: a permutation of the masks, to see what their numbers do; None: as they are.
    """
    from scipy.optimize import linear_sum_assignment

    found = overlap.table if order is None else overlap.table[:, order]
    table = np.zeros((count, max(count, found.shape[1])), dtype=np.int64)
    table[list(overlap.classes), : found.shape[1]] = found
    rows, columns = linear_sum_assignment(table, maximize=True)
    hits = table[rows, columns]
    return Matches(hits, table[:, columns].sum(axis=0) - hits, table.sum(axis=1) - hits)


def image_iou(overlap: Overlap) -> float:
    """Mean IoU over the classes of one image, each with at most one mask (Hungarian matching on the IoU).

    What no class of the image takes is charged to none; numbers of masks and classes play no part.
    """
    from scipy.optimize import linear_sum_assignment

    iou = _iou(overlap.table)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum() / len(overlap.classes))


def covering(overlap: Overlap) -> float:
    """Covering of the classes by the masks (Arbeláez et al., PAMI 2011, equation 1): Σ |R| max IoU(R, R') / Σ |R|.

    A region is all that has one label, connected or not.
    """
    sizes = overlap.table.sum(axis=1)
    return float((sizes * _iou(overlap.table).max(axis=1)).sum() / sizes.sum())


def adjusted_rand(overlap: Overlap) -> float:
    """Adjusted Rand index (Hubert and Arabie, 1985) over the pixels: 1 for equal partitions, 0 as by chance."""
    table = overlap.table.astype(np.float64)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, true, found = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    total = pairs(table.sum(keepdims=True))
    chance = true * found / total if total else 0.0
    most = (true + found) / 2
    return (both - chance) / (most - chance) if most != chance else 1.0


def _iou(table: NDArray[np.int64]) -> NDArray[np.float64]:
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return np.asarray(table / union, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class BoundaryCounts:
    """Boundary pixels of one image: found and how many of them are near a true one, true and how many are found."""

    found: int
    found_right: int
    true: int
    true_found: int

    def f_score(self) -> float:
        """Harmonic mean of precision and recall; 1 where neither map has a boundary, 0 where only one has."""
        if not self.found and not self.true:
            return 1.0
        precision = self.found_right / self.found if self.found else 0.0
        recall = self.true_found / self.true if self.true else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class Boundary:
    """The boundaries of one image's classes, with which label maps are compared.

    A boundary pixel differs from its right or lower neighbour. It counts as found if the other map has one within
    2 pixels (Euclidean, by distance transform): no one-to-one matching as in BSDS's own tool, so thick or doubled
    boundaries gain nothing but lose nothing either. Borders of void are not known: true boundaries lie between two
    classes only, and found ones in void or within 2 pixels of it are not counted.
    """

    def __init__(self, truth: NDArray[np.uint8], tolerance: float = TOLERANCE) -> None:
        known = truth != VOID
        self.tolerance = tolerance
        self.edges = _edges(truth) & ~_edges(known) & known
        self.near = _within(self.edges, tolerance)
        self.counted = ~_within(~known, tolerance)

    def counts(self, labels: NDArray[np.integer]) -> BoundaryCounts:
        """Compare with labels (H, W)."""
        edges = _edges(labels)
        counted = edges & self.counted
        return BoundaryCounts(
            found=int(counted.sum()),
            found_right=int((counted & self.near).sum()),
            true=int(self.edges.sum()),
            true_found=int((self.edges & _within(edges, self.tolerance)).sum()),
        )


def _edges(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    edges = np.zeros(labels.shape, dtype=np.bool_)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1, :] |= labels[:-1, :] != labels[1:, :]
    return edges


def _within(mask: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Pixels at most `distance` from a set one."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.zeros_like(mask)
    return np.asarray(distance_transform_edt(~mask) <= distance)
