"""k-means refinement: Lloyd's algorithm on the attention maps, initialised with the proposals.

It is our own code rather than scikit-learn's because it runs in the array's own namespace: attention on a GPU stays
there.
"""

from __future__ import annotations

import numpy as np
from diffseg.arrays import Array, device, namespace, row_blocks, row_dot, to_host
from diffseg.cancellation import checkpoint

EVERY = 4
"""Iterations on a device between two looks at whether the labels have settled.

Each look waits for the device, and up to three further iterations are in vain. That a wait costs about half an
iteration is an estimate.
"""


def kmeans_refine(attention: Array, proposals: Array, *, iterations: int = 300, tolerance: float = 1e-4) -> Array:
    """Replace proposals by the cluster means that k-means finds from them (DiffSeg's optional last step).

    This is the algorithm of scikit-learn's `KMeans(n_clusters=k, init=proposals, n_init=1)`, with two matrix products
    per iteration. An empty cluster restarts at the map that is farthest from the mean of its cluster. The iterations
    end when no label changes, or when the squared movement of the means is at most `tolerance` times the mean
    variance of the keys.

    Args:
        attention: `(h, w, h, w)`: the h·w maps to cluster.
        proposals: `(k, h, w)`: the initial means.
        iterations: maximum number of iterations.
        tolerance: same as scikit-learn's `tol`.

    Returns:
        `(k, h, w)` float32 means, in the order of `proposals`. Clusters that remain empty are left out.

    Raises:
        ValueError: attention and proposals do not have the same grid.
    """
    means, count = kmeans_on_device(attention, proposals, iterations=iterations, tolerance=tolerance)
    return means if count is None else means[: int(count), ...]


def kmeans_on_device(
    attention: Array, proposals: Array, *, iterations: int = 300, tolerance: float = 1e-4
) -> tuple[Array, Array | None]:
    """Refine as `kmeans_refine` does, but wait for a device only once in `EVERY` iterations.

    An iteration in which a cluster becomes empty waits a few times more.

    Returns:
        `(k, h, w)` float32, and the number of means: an int32 array of shape (), after which the maps are zeros. None
        for NumPy arrays: all are means.
    """
    height, width = tuple(attention.shape)[:2]
    if tuple(attention.shape) != (height, width) * 2 or tuple(proposals.shape[1:]) != (height, width):
        raise ValueError(
            "attention must be (h, w, h, w) and proposals (k, h, w) on the same grid, "
            f"found {tuple(attention.shape)} and {tuple(proposals.shape)}"
        )
    xp = namespace(attention, proposals)
    maps = xp.reshape(attention, (height * width, height * width))
    means = xp.astype(xp.reshape(proposals, (-1, height * width)), xp.float32, copy=False)
    clusters = _Clusters(maps, tolerance)
    on_host = isinstance(maps, np.ndarray)
    labels = (clusters.settle if on_host else clusters.settle_on_device)(means, iterations)
    member = _membership(labels, means.shape[0])
    sizes = xp.sum(member, axis=1)
    if on_host:
        kept, count = xp.nonzero(sizes > 0)[0], None
    else:  # the number of means that are left would have to be waited for
        kept = xp.argsort(xp.astype(sizes == 0, xp.int8), stable=True)
        count = xp.sum(xp.astype(sizes > 0, xp.int32), dtype=xp.int32)
    sizes = xp.take(sizes, kept)
    means = (xp.take(member, kept, axis=0) @ maps) / xp.maximum(sizes, xp.ones_like(sizes))[:, None]
    return xp.reshape(means, (-1, height, width)), count


class _Clusters:
    """The iterations over maps (N, N)."""

    def __init__(self, maps: Array, tolerance: float) -> None:
        self.maps = maps
        self.centre = namespace(maps).mean(maps, axis=0)  # subtracting it keeps distances and preserves their precision
        self.limit = tolerance * _mean_variance(maps, self.centre)

    def settle(self, means: Array, iterations: int) -> Array:
        """Iterate from means (k, N) → labels (N,)."""
        labels = _assign(self.maps, means, self.centre)
        for _ in range(iterations):
            checkpoint()
            moved = _means(self.maps, labels, means)
            labels, over = self._step(means, moved, labels)
            means = moved
            if bool(over):
                break
        return labels

    def settle_on_device(self, means: Array, iterations: int) -> Array:
        """Iterate likewise: the device itself stops changing labels, and the host asks now and then.

        Where a cluster becomes empty, the device stops before that iteration, which the host then takes part in.
        """
        xp, here = namespace(self.maps), device(self.maps)
        labels = _assign(self.maps, means, self.centre)
        going = True
        while going and iterations > 0:
            checkpoint()
            goes = xp.ones((), dtype=xp.bool, device=here)
            stuck = xp.zeros((), dtype=xp.bool, device=here)
            taken = xp.zeros((), dtype=xp.int32, device=here)
            for _ in range(min(EVERY, iterations)):
                moved, filled = _full_means(self.maps, labels, means.shape[0])
                stuck = stuck | (goes & ~filled)
                goes = goes & filled
                following, over = self._step(means, moved, labels)
                means, labels = xp.where(goes, moved, means), xp.where(goes, following, labels)
                taken = taken + xp.astype(goes, xp.int32)
                goes = goes & ~over
            told = to_host(xp.stack([taken, xp.astype(goes, xp.int32), xp.astype(stuck, xp.int32)]))
            iterations, going = iterations - int(told[0]), bool(told[1])
            if told[2]:
                moved = _means(self.maps, labels, means)
                labels, over = self._step(means, moved, labels)
                means, iterations, going = moved, iterations - 1, not bool(over)
        return labels

    def _step(self, means: Array, moved: Array, labels: Array) -> tuple[Array, Array]:
        """The labels (N,) of means that have moved, and whether the iterations are over: () bool."""
        xp = namespace(self.maps)
        following = _assign(self.maps, moved, self.centre)
        return following, (xp.sum((moved - means) ** 2) <= self.limit) | xp.all(following == labels)


def _mean_variance(maps: Array, centre: Array) -> Array:
    """() float64."""
    xp = namespace(maps)
    blocks = row_blocks(maps.shape[0], 4 * maps.shape[1], maps)
    sums = (xp.astype(xp.sum((maps[rows, :] - centre) ** 2), xp.float64) for rows in blocks)
    return sum(sums, start=xp.zeros((), dtype=xp.float64, device=device(maps))) / float(maps.shape[0] * maps.shape[1])


def _assign(maps: Array, means: Array, centre: Array) -> Array:
    """Return the index of the mean nearest to each map: the least ‖mean‖² - 2 map·mean, both centred."""
    xp = namespace(maps)
    offsets = means - centre  # (k, N)
    norms = row_dot(offsets, offsets)
    # (map - centre)·offset = map·offset - centre·offset: avoids a centred copy of the maps
    cross = offsets @ maps.T - (offsets @ centre)[:, None]
    return xp.argmin(norms[:, None] - 2 * cross, axis=0)


def _membership(labels: Array, count: int) -> Array:
    xp = namespace(labels)
    return xp.astype(
        xp.arange(count, dtype=labels.dtype, device=device(labels))[:, None] == labels[None, :], xp.float32
    )


def _full_means(maps: Array, labels: Array, count: int) -> tuple[Array, Array]:
    """Return the means of `count` clusters, and whether none of them is empty: () bool."""
    xp = namespace(maps)
    member = _membership(labels, count)
    sizes = xp.sum(member, axis=1)
    return (member @ maps) / xp.maximum(sizes, xp.ones_like(sizes))[:, None], xp.all(sizes > 0)


def _means(maps: Array, labels: Array, means: Array) -> Array:
    """Return the mean of each cluster. An empty one takes the map farthest from its own mean, as in scikit-learn."""
    xp = namespace(maps)
    member = _membership(labels, means.shape[0])
    sizes = xp.sum(member, axis=1)
    empty = [int(i) for i in to_host(xp.nonzero(sizes == 0)[0])]
    if empty:
        distance = xp.concat(
            [_squared(maps, labels, means, rows) for rows in row_blocks(maps.shape[0], 4 * maps.shape[1], maps)]
        )
        farthest = to_host(xp.argsort(-distance, stable=True)[: len(empty)])
        for cluster, far in zip(empty, farthest, strict=True):
            member[:, int(far)] = 0
            member[cluster, int(far)] = 1
        sizes = xp.sum(member, axis=1)
    return (member @ maps) / xp.maximum(sizes, xp.ones_like(sizes))[:, None]


def _squared(maps: Array, labels: Array, means: Array, rows: slice) -> Array:
    xp = namespace(maps)
    difference = maps[rows, :] - xp.take(means, labels[rows], axis=0)
    return row_dot(difference, difference)
