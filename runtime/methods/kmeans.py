"""k-means refinement: Lloyd's algorithm on the attention maps, initialised with the proposals.

It is our own code rather than scikit-learn's because it runs in the array's own namespace: attention on a GPU stays
there.
"""

from __future__ import annotations

from diffseg.arrays import Array, device, namespace, row_blocks, row_dot, to_host
from diffseg.cancellation import checkpoint


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
    height, width = tuple(attention.shape)[:2]
    if tuple(attention.shape) != (height, width) * 2 or tuple(proposals.shape[1:]) != (height, width):
        raise ValueError(
            "attention must be (h, w, h, w) and proposals (k, h, w) on the same grid, "
            f"found {tuple(attention.shape)} and {tuple(proposals.shape)}"
        )
    xp = namespace(attention, proposals)
    count = height * width
    maps = xp.reshape(attention, (count, count))
    means = xp.astype(xp.reshape(proposals, (-1, count)), xp.float32, copy=False)
    centre = xp.mean(maps, axis=0)  # subtracting it leaves distances unchanged and preserves their precision
    limit = tolerance * _mean_variance(maps, centre)
    labels, old = _assign(maps, means, centre), None
    for _ in range(iterations):
        checkpoint()
        moved = _means(maps, labels, means)
        shift = float(xp.sum((moved - means) ** 2))
        means = moved
        if old is not None and bool(xp.all(labels == old)):
            break
        old = labels
        labels = _assign(maps, means, centre)
        if shift <= limit:
            break
    member = _membership(labels, means.shape[0])
    sizes = xp.sum(member, axis=1)
    kept = xp.nonzero(sizes > 0)[0]
    means = (xp.take(member, kept, axis=0) @ maps) / xp.take(sizes, kept)[:, None]
    return xp.reshape(means, (-1, height, width))


def _mean_variance(maps: Array, centre: Array) -> float:
    xp = namespace(maps)
    total = 0.0
    for rows in row_blocks(maps.shape[0], 4 * maps.shape[1], maps):
        total += float(xp.sum((maps[rows, :] - centre) ** 2))
    return total / float(maps.shape[0] * maps.shape[1])


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
