"""Recursive normalised cuts of the attention itself: regions that a random walk along attention seldom leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffseg.arrays import Array, from_host, namespace
from diffseg.methods.cut import CutTree

SIDE = 32
"""Largest number of places along the shorter side. An eigenproblem takes time with the third power of the places."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCut:
    """The graph of an image's attention, all of its divisions found so far, and the maps of its places.

    After "Diffusing, walking and cutting" (2024, arXiv 2412.04678): attention is the transition matrix P of a random
    walk over the image, and W = (P + Pᵀ) / 2 the affinity of its places.

    Attributes:
        tree: the divisions of the places.
        maps: (m, h·w) float32, the mean attention map of each place. A place is a square of cells of the finest grid.
        grid: h and w of the finest grid.
        places: rows and columns of the places.
    """

    tree: CutTree
    maps: Array
    grid: tuple[int, int]
    places: tuple[int, int]

    @classmethod
    def of(cls, attention: Array) -> AttentionCut:
        """Build the graph of aggregated attention.

        Args:
            attention: (h, w, h, w) float, every map sums to 1. It is averaged over squares of the grid, so that the
                shorter side has at most 32 places.
        """
        xp = namespace(attention)
        height, width = attention.shape[:2]
        factor = pooling_factor((height, width))
        rows, columns = height // factor, width // factor
        maps = xp.reshape(attention, (rows, factor, columns, factor, height * width))
        maps = xp.reshape(xp.mean(xp.mean(maps, axis=3), axis=1), (rows * columns, height * width))
        walk = xp.reshape(maps, (-1, rows, factor, columns, factor))
        walk = xp.astype(xp.reshape(xp.sum(walk, axis=(2, 4)), (rows * columns, rows * columns)), xp.float64)
        return cls(CutTree((walk + walk.T) / 2), maps, (height, width), (rows, columns))

    @property
    def nbytes(self) -> int:
        """Size of the graph and the maps, in bytes."""
        return int(self.tree.affinity.nbytes) + int(self.maps.nbytes)

    def proposals(self, tau: float) -> Array:
        """Return the mean attention map of each region: (k, h, w) float32.

        Args:
            tau: a region is divided while the normalised cut costs less than this. The tree keeps the divisions, so a
                second `tau` solves eigenproblems only for the regions that no earlier one divided.
        """
        xp = namespace(self.maps)
        labels = self.tree.labels(tau)
        one_hot = labels == np.arange(labels.max() + 1)[:, None]  # (k, m)
        shares = from_host((one_hot / one_hot.sum(1, keepdims=True)).astype(np.float32), self.maps)
        return xp.reshape(shares @ self.maps, (-1, *self.grid))


def pooling_factor(grid: tuple[int, int]) -> int:
    """Return the least common divisor of both sides that leaves at most 32 places along the shorter one."""
    divisors = (factor for factor in range(1, min(grid) + 1) if grid[0] % factor == grid[1] % factor == 0)
    return next(factor for factor in divisors if min(grid) // factor <= SIDE or factor == np.gcd(*grid))
