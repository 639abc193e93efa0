"""Agreement of the boundaries of a label map with those of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.measure.overlap import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 2.0
"""Largest distance, in pixels, of boundaries that count as the same."""


@dataclass(frozen=True, slots=True)
class BoundaryCounts:
    """Numbers of boundary pixels of one image."""

    found: int  # in the label map
    found_right: int  # of these, near a true boundary
    true: int  # in the classes
    true_found: int  # of these, near a boundary of the label map

    def f_score(self) -> float:
        """Return the harmonic mean of precision and recall: 1 if neither map has a boundary, 0 if only one has."""
        if not self.found and not self.true:
            return 1.0
        precision = self.found_right / self.found if self.found else 0.0
        recall = self.true_found / self.true if self.true else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class Boundary:
    """The boundaries of one image's classes. Label maps are compared with them.

    A boundary pixel differs from its right or lower neighbour. It counts as found if the other map has a boundary pixel
    within 2 pixels (Euclidean, by distance transform). Unlike BSDS's own tool, this does not match pixels one to one,
    so thick or doubled boundaries are neither rewarded nor punished. The borders of void areas are unknown. Therefore,
    true boundaries lie only between two classes, and found boundary pixels in void areas or within 2 pixels of them
    are not counted.
    """

    def __init__(self, truth: NDArray[np.uint8], tolerance: float = TOLERANCE) -> None:
        known = truth != VOID
        self.tolerance = tolerance
        self.edges = _edges(truth) & ~_edges(known) & known
        self.near = _within(self.edges, tolerance)
        self.counted = ~_within(~known, tolerance)

    def counts(self, labels: NDArray[np.integer]) -> BoundaryCounts:
        """Compare labels (H, W) with the boundaries."""
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
    """Return the pixels that are at most `distance` from a pixel of the mask."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.zeros_like(mask)
    return np.asarray(distance_transform_edt(~mask) <= distance)
