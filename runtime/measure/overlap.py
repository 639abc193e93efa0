"""Overlap of the masks of two label maps: table of common pixels, IoU, one-to-one matching, and scores from these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOID = 255
"""Value of the pixels of a label map that are ignored by all scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Overlap of the classes of one label map with the masks of another one.

    Attributes:
        classes: the classes that occur, in ascending order.
        table: (classes, masks) int64, numbers of common pixels without void pixels. Column i is for mask i.
    """

    classes: tuple[int, ...]
    table: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], void: int | None = VOID) -> Overlap:
        """Count the pixels that truth (H, W) and labels (H, W), numbered from 0, have in common.

        Args:
            truth: one class per pixel.
            labels: one mask per pixel.
            void: pixels of `truth` with this value are left out; None counts all pixels.
        """
        known = truth != void if void is not None else np.ones(truth.shape, np.bool_)
        classes, rows = np.unique(truth[known], return_inverse=True)
        masks = int(labels.max()) + 1
        flat = rows.astype(np.int64) * masks + labels[known].astype(np.int64)
        table = np.bincount(flat, minlength=len(classes) * masks).reshape(len(classes), masks)
        return cls(tuple(int(c) for c in classes), table.astype(np.int64))

    @property
    def masks(self) -> int:
        """Number of masks that cover at least one pixel that is not void."""
        return int(np.count_nonzero(self.table.sum(axis=0)))

    def iou(self) -> NDArray[np.float64]:
        """Return the intersection over union of each pair, (classes, masks). It is 0 for unused mask numbers."""
        union = self.table.sum(axis=1, keepdims=True) + self.table.sum(axis=0, keepdims=True) - self.table
        return np.asarray(self.table / np.maximum(union, 1), dtype=np.float64)


def match(scores: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair rows and columns of a table one to one so that the sum of the pairs' scores is maximal (Hungarian).

    Returns:
        The row and the column of each of the min(rows, columns) pairs.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingPackageError(f"scipy is not installed: {install_command('eval')}") from None
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return np.asarray(rows), np.asarray(columns)


def image_iou(overlap: Overlap) -> float:
    """Return the mean IoU over the classes of one image, each paired with at most one mask so that the mean is maximal.

    Masks that remain unpaired do not count. The result does not depend on the numbering of masks or classes.
    """
    iou = overlap.iou()
    return float(iou[match(iou)].sum() / len(overlap.classes))


def mask_iou(expected: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]) -> float:
    """Return the mean IoU of the masks of two label maps (H, W), paired so that it is maximal. Equal partitions give 1.

    A mask that remains unpaired, in either map, counts as 0.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    overlap = Overlap.of(expected, found, void=None)
    iou = overlap.iou()
    return float(iou[match(iou)].sum() / max(len(overlap.classes), overlap.masks))


def covering(overlap: Overlap) -> float:
    """Return the covering of the classes by the masks: Σ |R| max IoU(R, R') / Σ |R|.

    See Arbeláez et al., PAMI 2011, equation 1. A region R contains all pixels of one label, connected or not.
    """
    sizes = overlap.table.sum(axis=1)
    return float((sizes * overlap.iou().max(axis=1)).sum() / sizes.sum())


def adjusted_rand(overlap: Overlap) -> float:
    """Return the adjusted Rand index (Hubert and Arabie, 1985): 1 for equal partitions, about 0 for random ones."""
    table = overlap.table.astype(np.float64)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, true, found = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    total = pairs(table.sum(keepdims=True))
    chance = true * found / total if total else 0.0
    most = (true + found) / 2
    return (both - chance) / (most - chance) if most != chance else 1.0
