"""A slow float64 implementation of the method, with which the fast code is compared."""

import numpy as np


def upsample(maps, n):
    """(…, m, m) → (…, n, n): bilinear, half-pixel centres, border repeated."""
    m = maps.shape[-1]
    position = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(m)))  # (n, m) hat functions
    return np.einsum("yi,...ij,xj->...yx", weights, maps, weights)


def aggregate(maps):
    sides = [round(m.shape[-1] ** 0.5) for m in maps]
    n = max(sides)
    total = np.zeros((n, n, n, n))
    for attention, side in zip(maps, sides, strict=True):
        keys = upsample(attention.astype(np.float64).mean(0).reshape(side, side, side, side), n)
        keys /= keys.sum((2, 3), keepdims=True)
        total += keys.repeat(n // side, 0).repeat(n // side, 1) * side / sum(sides)
    return total


def distance(x, y):
    return 0.5 * ((x - y) * (np.log(x) - np.log(y))).sum()


def merge(attention, thresholds, anchors):
    n = attention.shape[0]
    maps = attention.astype(np.float64).reshape(n * n, n * n)
    step = (n - 1) // (anchors - 1)
    start = (n - 1 - step * (anchors - 1)) // 2
    grid = [start + step * i for i in range(anchors)]
    current = []
    for y in grid:
        for x in grid:
            near = [m for m in maps if distance(maps[y * n + x], m) < thresholds[0]]
            current.append(np.mean(near, 0))
    for threshold in thresholds[1:]:
        matched, merged = set(), []
        for i, anchor in enumerate(current):
            if i in matched:
                continue
            near = [j for j, m in enumerate(current) if distance(anchor, m) < threshold]
            matched |= {i, *near}
            merged.append(np.mean([current[j] for j in near], 0))
        current = merged
    return np.stack(current).reshape(-1, n, n)


def suppress(proposals, size):
    return upsample(proposals.astype(np.float64), size).argmax(0)
