"""Recursive normalised cuts of a graph of places (DiffCut): one label per place of the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diffseg.arrays import Array, from_host, namespace, to_host
from diffseg.cancellation import checkpoint
from diffseg.methods.eigenvector import second_eigenvector
from numpy.typing import NDArray

THRESHOLDS = 100
"""Candidate thresholds at which the eigenvector is divided."""

LEAST_SPREAD = 1e-9
"""Features whose cosines differ by less than this are equal: there is nothing to cut."""


def recursive_normalized_cut(
    features: Array, tau: float = 0.5, alpha: float = 10, grid: tuple[int, int] | None = None
) -> Array:
    """Divide the places of an image into regions of similar features (Couairon et al., 2024, arXiv 2406.02842).

    Args:
        features: `(h·w, C)` float, one row per place in row-major order.
        tau: a region is divided while the normalised cut costs less than this; from 0 to 1 in practice.
        alpha: exponent of the affinity.
        grid: `(h, w)`; None: the places form a square.

    Returns:
        `(h, w)` int64 labels from 0 to k-1 without gaps, in the numbering of the reference implementation. The sign of
        an eigenvector is ambiguous where its largest entries tie, so compare partitions rather than labels.

    Raises:
        ValueError: `features` is not two-dimensional or does not fit `grid`, or `tau` or `alpha` is not a number.
    """
    height, width = _grid(features, grid)
    labels = CutTree.of_features(features, alpha).labels(tau)
    return namespace(features).reshape(from_host(labels, features), (height, width))


@dataclass(slots=True, eq=False)
class Region:
    """Places that belong together, and the best way to divide them.

    Attributes:
        places: indices of the places that take part in the division.
        upper: for each of `places`, whether it lies on the side that is numbered higher; None: indivisible.
        cost: the normalised cut of that division, from 0 to 2; infinite if the region is indivisible.
        parts: the upper and the lower side; None until they are needed.
    """

    places: NDArray[np.int64]
    upper: NDArray[np.bool_] | None = None
    cost: float = math.inf
    parts: tuple[Region, Region] | None = None


@dataclass(slots=True, eq=False)
class CutTree:
    """A graph of places, and all of its divisions found so far.

    Each division costs an eigenproblem. The tree keeps them, so labels for a second `tau` cost no more than the
    regions that only the second one divides.

    Attributes:
        affinity: (N, N) symmetric, non-negative weights.
        dropped: places that take part in the first division only, as in the reference implementation.
    """

    affinity: Array
    dropped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _root: Region | None = None

    @classmethod
    def of_features(cls, features: Array, alpha: float = 10) -> CutTree:
        """Build the graph of `(N, C)` features: cosines, scaled to the range 0 to 1, to the power of `alpha`.

        The reference implementation leaves out, below the first division, every place with an affinity of exactly 0.
        At least the two places with the smallest cosine have one.

        Raises:
            ValueError: `features` is not two-dimensional, or `alpha` is not a number.
        """
        _grid(features, (features.shape[0], 1))
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be a number, found {alpha}")
        normed = normalized(features)
        affinity = normed @ normed.T
        xp = namespace(affinity)
        least, most = float(xp.min(affinity)), float(xp.max(affinity))
        if most - least < LEAST_SPREAD:
            return cls(xp.ones_like(affinity), np.arange(features.shape[0]))
        affinity -= least
        affinity /= most - least
        affinity = _power(affinity, alpha)
        return cls(affinity, np.flatnonzero(to_host(xp.any(affinity == 0, axis=1))))

    @property
    def size(self) -> int:
        """Number of places."""
        return int(self.affinity.shape[0])

    def labels(self, tau: float) -> NDArray[np.int64]:
        """Label every place, dividing each region whose cut costs less than `tau`.

        Returns:
            (N,) labels from 0 to k-1 without gaps.

        Raises:
            ValueError: `tau` is NaN.
        """
        if math.isnan(tau):
            raise ValueError("tau must be a number, found NaN")
        sides = [np.zeros(self.size, dtype=bool)]
        for region in self.divided(tau):
            side = np.zeros(self.size, dtype=bool)
            side[region.places[region.upper]] = True
            sides.append(side)
        # The reference adds the sides up, each with a weight above the sum of all before it. So the sides are the
        # digits of a binary number, the last one the highest. Sorting by digits works for any number of sides.
        digits = np.stack(sides)  # (s, N)
        order = np.lexsort(digits)
        new = np.any(digits[:, order[1:]] != digits[:, order[:-1]], axis=0)
        labels = np.empty(self.size, dtype=np.int64)
        labels[order] = np.concatenate([[0], np.cumsum(new)])
        return labels

    def divided(self, tau: float) -> list[Region]:
        """Return the regions whose cut costs less than `tau`, each before its parts, the upper part first."""
        self._root = self._root or self._region(np.arange(self.size))
        found, waiting = [], [self._root]
        while waiting:
            checkpoint()
            region = waiting.pop()
            if region.upper is None or not region.cost < tau:
                continue
            found.append(region)
            if region.parts is None:
                upper, lower = region.places[region.upper], region.places[~region.upper]
                region.parts = self._region(self._kept(upper)), self._region(self._kept(lower))
            waiting += reversed(region.parts)
        return found

    def hierarchy(self, tau: float) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
        """Return the divisions that lead to the labels for `tau`.

        Returns:
            The labels (N,), and the regions as a flat list of which the first is the whole graph. A divided region has
            its `cost` and the indices of its `parts`, the upper one first; any other has its `label`, or None if it has
            no place left.

        Raises:
            ValueError: `tau` is NaN.
        """
        labels = self.labels(tau)
        divided = {id(region) for region in self.divided(tau)}
        assert self._root is not None  # noqa: S101 - `divided` made it
        regions, nodes = [self._root], list[dict[str, Any]]()
        for region in regions:  # grows
            if id(region) in divided and region.parts is not None:
                nodes.append({"cost": region.cost, "parts": [len(regions), len(regions) + 1]})
                regions += region.parts
            else:
                nodes.append({"label": int(labels[region.places[0]]) if len(region.places) else None})
        return labels, nodes

    def _kept(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.setdiff1d(places, self.dropped, assume_unique=True) if len(self.dropped) else places

    def _region(self, places: NDArray[np.int64]) -> Region:
        """Find the best division of `places`."""
        if len(places) < 2:  # noqa: PLR2004
            return Region(places)
        affinity = self.affinity
        if len(places) < self.size:
            xp, where = namespace(affinity), from_host(places, affinity)
            affinity = xp.take(xp.take(affinity, where, axis=0), where, axis=1)
        vector = second_eigenvector(affinity)
        if vector is None:
            return Region(places)
        upper, cost = best_division(affinity, vector)
        return Region(places, upper, cost) if math.isfinite(cost) else Region(places)


def best_division(affinity: Array, vector: Array) -> tuple[NDArray[np.bool_], float]:
    """Divide a graph where its eigenvector exceeds the best of 100 thresholds (Shi and Malik, 2000, equation 5).

    Args:
        affinity: (m, m).
        vector: (m,), solution of (D - A) v = λ D v for the second smallest λ.

    Returns:
        For each place whether it lies above the threshold, (m,), and the cost of that cut. The cost is infinite
        if no threshold leaves places on both sides.
    """
    xp = namespace(affinity)
    values = to_host(vector)
    candidates = np.linspace(values.min() * 0.99, values.max() * 0.99, THRESHOLDS)
    above = values[:, None] > candidates  # (m, 100)
    sides = xp.astype(from_host(above, affinity), affinity.dtype)
    degrees = xp.sum(affinity, axis=1)
    # Σ A over the places above a threshold, for all thresholds in one product; the other sums follow from it.
    inside = to_host(xp.sum(sides * (affinity @ sides), axis=0))
    volume, total = to_host(degrees @ sides), float(xp.sum(degrees))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = volume / total
        b = share / (1 - share)  # y = 2 above and -2b below; cost = yᵀ(D - A)y / yᵀDy
        between = volume - inside
        outside = total - volume - between
        degree_term = volume + b**2 * (total - volume)
        cost = (degree_term - (inside - 2 * b * between + b**2 * outside)) / degree_term
    cost[~np.isfinite(cost) | above.all(0) | ~above.any(0)] = math.inf
    best = int(np.argmin(cost))
    return above[:, best], float(cost[best])


def normalized(features: Array) -> Array:
    """Return `(N, C)` features as float64 rows of length 1. What is not finite counts as 0; zero rows stay zero."""
    xp = namespace(features)
    rows = xp.astype(features, xp.float64, copy=False)
    rows = xp.where(xp.isfinite(rows), rows, xp.zeros_like(rows))
    most = xp.max(xp.abs(rows), axis=1, keepdims=True)  # squares of very large or small numbers leave float64's range
    rows = rows / xp.where(most > 0, most, xp.ones_like(most))
    length = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    return rows / xp.where(length > 0, length, xp.ones_like(length))


def _power(base: Array, exponent: float) -> Array:
    """`base ** exponent`; whole exponents by squaring, which takes a sixth of the time."""
    if exponent < 1 or exponent != int(exponent):
        return base**exponent
    result, rest = None, int(exponent)
    while rest:
        if rest & 1:
            result = base if result is None else result * base
        rest >>= 1
        base = base * base if rest else base
    return result


def _grid(features: Array, grid: tuple[int, int] | None) -> tuple[int, int]:
    shape = tuple(features.shape)
    if len(shape) != 2 or 0 in shape:  # noqa: PLR2004
        raise ValueError(f"features must be (places, channels), found {shape}")
    if grid is None:
        side = math.isqrt(shape[0])
        grid = (side, side)
    if grid[0] * grid[1] != shape[0]:
        raise ValueError(f"{shape[0]} places do not fill a grid of {grid[0]} × {grid[1]}: pass grid=(h, w)")
    return grid
