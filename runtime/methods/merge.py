"""Iterative attention merging: reduce thousands of attention maps to a few object proposals."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from diffseg.arrays import (
    Array,
    cached_from_host,
    cpu_workers,
    device,
    from_host,
    namespace,
    prefetched,
    row_blocks,
    row_dot,
    to_host,
)
from diffseg.cancellation import checkpoint
from diffseg.methods import fused

FLOOR = float(np.finfo(np.float32).tiny)
"""Least probability in a logarithm. Zeros are raised to it; the reference implementation divides by zero instead."""


@dataclass(frozen=True, slots=True, eq=False)
class AnchorDistances:
    """The distances of all attention maps from the anchors, which round 1 of merging compares with its threshold.

    Attributes:
        values: (h·w, anchors) float32, Σ (x - y)(log x - log y) for every map and anchor, in nats. The distance of
            an anchor from itself is -inf.
        unclean: blocks of rows of the attention that contain NaN or infinity, or a row of zeros.
    """

    values: Array
    unclean: Collection[slice]


def merge_attention(
    attention: Array,
    thresholds: Sequence[float] | float = (1.0,) * 3,
    anchors: int = 16,
    *,
    distances: AnchorDistances | None = None,
) -> Array:
    """Merge self-attention maps into object proposals (DiffSeg, section 3.3, algorithm 1).

    The distance of two maps is half their symmetric KL divergence, ½ Σ (x - y)(log x - log y), in nats.
    Round 1 replaces every anchor by the mean of all maps within the first threshold of it. Each later round visits
    the merged maps in order. It replaces each map that is still unmatched by the mean of all maps within the round's
    threshold of it, and marks those as matched. Each round takes two matrix products, computed in blocks of rows.
    Besides the input, merging takes under 100 MB at 64 × 64 and under 200 MB at 128 × 128.

    Args:
        attention: `(h, w, h, w)`, queries then keys; every map sums to 1. float32 is fastest.
        thresholds: one threshold per round, in nats; a single number is used for three rounds.
        anchors: number of anchors per side; at most one per row and column of the grid.
        distances: the result of `anchor_distances(attention, anchors)`, if available. Computing it is two thirds of
            the work.

    Returns:
        `(k, h, w)` float32 proposals, k ≥ 1, in the order of their anchors.

    Raises:
        ValueError: `attention` does not have the shape of attention, a threshold is negative or NaN, there is no
            threshold, or `anchors` is less than 1.
    """
    proposals, count = merge_on_device(attention, thresholds, anchors, distances=distances)
    return proposals if count is None else proposals[: int(count), ...]


def merge_on_device(
    attention: Array,
    thresholds: Sequence[float] | float = (1.0,) * 3,
    anchors: int = 16,
    *,
    distances: AnchorDistances | None = None,
) -> tuple[Array, Array | None]:
    """Merge as `merge_attention` does, but leave the number of proposals on the device, so that nothing waits for it.

    Returns:
        `(m, h, w)` float32, and the number of proposals: an int32 array of shape (), after which the maps are zeros.
        None where the fused kernels do not run: all m are proposals.
    """
    rounds = [float(t) for t in np.atleast_1d(np.asarray(thresholds, dtype=np.float64))]
    if np.ndim(thresholds) == 0:
        rounds *= 3
    if not rounds or not all(t >= 0 for t in rounds):
        raise ValueError(f"thresholds must be numbers of at least 0, one per round, found {rounds}")
    distances = distances or anchor_distances(attention, anchors)
    height, width = attention.shape[:2]
    xp = namespace(attention)
    maps = xp.reshape(attention, (height * width, -1))
    kernels = fused.kernels(maps, distances.values)
    if kernels is not None and not distances.unclean:
        merged, count = kernels.merge(maps, distances.values, rounds)
        return xp.reshape(merged, (-1, height, width)), count
    merged = _merge_anchors(maps, distances, rounds[0])
    for threshold in rounds[1:]:
        merged = _merge_greedily(merged, threshold)
    return xp.reshape(merged, (-1, height, width)), None


def anchor_distances(attention: Array, anchors: int = 16, *, clean: bool = False) -> AnchorDistances:
    """Compute the distances that the first round of `merge_attention` needs. They do not depend on the threshold.

    Args:
        attention: `(h, w, h, w)`, queries then keys; every map sums to 1.
        anchors: number of anchors per side.
        clean: all maps are known to be distributions, as those of `aggregate_attention` are. Then nothing is checked,
            which would wait for a GPU, and fused kernels are used if the library has them.

    Raises:
        ValueError: `attention` does not have the shape of attention, or `anchors` is less than 1.
    """
    shape = tuple(attention.shape)
    if len(shape) != 4 or shape[:2] != shape[2:] or 0 in shape:  # noqa: PLR2004
        raise ValueError(f"attention must be (h, w, h, w), found {shape}; see aggregate_attention")
    if anchors < 1:
        raise ValueError(f"anchors must be at least 1 per side, found {anchors}")
    xp = namespace(attention)
    maps = xp.reshape(attention, (shape[0] * shape[1], -1))
    (where,) = cached_from_host(_anchor_indices, *shape[:2], anchors, like=maps)
    kernels = fused.kernels(maps) if clean else None
    if kernels is not None:
        return AnchorDistances(kernels.anchor_distances(maps, where), ())
    centres = _clean(xp.take(maps, where, axis=0))
    centre_logs = _log(centres)
    centre_terms = _entropy_terms(centres, centre_logs)
    values = xp.empty((maps.shape[0], centres.shape[0]), dtype=xp.float32, device=device(maps))
    unclean = []

    def prepare(rows: slice) -> tuple[slice, Array, Array, Array]:
        block = xp.astype(maps[rows, :], xp.float32, copy=False)
        logs = _log(block)
        terms = _entropy_terms(block, logs)
        if not bool(xp.isfinite(xp.sum(terms))) or bool(xp.any(terms == 0)):  # NaN or empty rows: rare
            unclean.append(rows)
            block = _clean(block)
            logs = _log(block)
            terms = _entropy_terms(block, logs)
        return rows, block, logs, terms

    # On a CPU, threads take the logarithms of the next blocks while the products of this one run on all cores.
    for rows, block, logs, terms in prefetched(prepare, _blocks(maps), cpu_workers(maps)):
        checkpoint()
        # (r, anchors): these products are faster in this orientation, a tall matrix times a narrow one
        distance = terms[:, None] + centre_terms[None, :]
        distance -= logs @ centres.T
        distance -= block @ centre_logs.T
        values[rows, :] = distance
    column = xp.arange(maps.shape[0], dtype=where.dtype, device=device(where))
    itself = xp.asarray(-math.inf, dtype=xp.float32, device=device(maps))
    return AnchorDistances(xp.where(column[:, None] == where[None, :], itself, values), unclean)


def anchor_indices(height: int, width: int, anchors: int = 16) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the row-major indices of the anchor grid. On each axis, m of n positions, (n-1)//(m-1) apart, centred."""
    rows, columns = (_anchor_axis(n, min(anchors, n)) for n in (height, width))
    return (rows[:, None] * width + columns[None, :]).reshape(-1)


def _anchor_indices(height: int, width: int, anchors: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return (anchor_indices(height, width, anchors),)


def _anchor_axis(n: int, m: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    step = (n - 1) // (m - 1) if m > 1 else 0
    start = (n - 1 - step * (m - 1)) // 2
    return start + step * np.arange(m, dtype=np.int64)


def _log(maps: Array) -> Array:
    """Return the logarithms of (r, N) maps relative to the uniform map, log N·x.

    The offset log N cancels in the divergence. It keeps the products near 0, where float32 is most precise.
    """
    xp = namespace(maps)
    logs = xp.maximum(maps, xp.asarray(FLOOR, dtype=maps.dtype, device=device(maps)))
    logs = np.log(logs, out=logs) if isinstance(logs, np.ndarray) else xp.log(logs)
    logs += math.log(maps.shape[1])
    return logs


def _entropy_terms(maps: Array, logs: Array) -> Array:
    """Return Σ x log x of each of the (r, N) maps."""
    return row_dot(maps, logs)


def _clean(maps: Array) -> Array:
    """Return a copy of (r, N) maps as float32, with invalid entries set to 0 and rows without any valid one uniform."""
    xp = namespace(maps)
    maps = xp.astype(maps, xp.float32, copy=False)
    maps = xp.where(xp.isfinite(maps) & (maps > 0), maps, xp.zeros_like(maps))
    empty = xp.sum(maps, axis=1) <= 0
    return xp.where(empty[:, None], xp.full_like(maps, 1 / maps.shape[1]), maps)


def _merge_anchors(maps: Array, distances: AnchorDistances, threshold: float) -> Array:
    """Round 1: (N, N) maps → (anchors, N), the mean of all maps within `threshold` of each anchor."""
    xp = namespace(maps)
    near = xp.astype(distances.values < 2 * threshold, xp.float32)
    total = xp.zeros((near.shape[1], maps.shape[1]), dtype=xp.float32, device=device(maps))
    for rows in _blocks(maps):
        checkpoint()
        block = xp.astype(maps[rows, :], xp.float32, copy=False)
        total += near[rows, :].T @ (_clean(block) if rows in distances.unclean else block)
    total /= xp.sum(near, axis=0)[:, None]
    return total


def _blocks(maps: Array) -> list[slice]:
    """Divide the rows into blocks of at least 512, because products of fewer rows are slow."""
    return row_blocks(maps.shape[0], 4 * maps.shape[1], maps, least=512)


def _merge_greedily(maps: Array, threshold: float) -> Array:
    """Later rounds: (m, N) maps → (k, N), k ≤ m. The greedy loop runs on the host, over a small (m, m) matrix."""
    xp = namespace(maps)
    logs = _log(maps)
    terms = _entropy_terms(maps, logs)
    cross = _product(maps, logs.T)
    near = np.empty(tuple(cross.shape), dtype=bool)
    for rows in row_blocks(maps.shape[0], 4 * maps.shape[0], maps):  # a single block, except of thousands of maps
        distance = terms[rows, None] + terms[None, :] - cross[rows, :] - cross[:, rows].T
        near[rows] = to_host(distance < 2 * threshold)
    matched = np.zeros(len(near), dtype=bool)
    groups: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    for i, row in enumerate(near):
        if matched[i]:
            continue
        row[i] = True
        matched |= row
        groups.append(row.astype(np.float32) / np.float32(row.sum()))
    return xp.astype(_product(from_host(np.stack(groups), maps), maps), xp.float32, copy=False)


def _product(left: Array, right: Array) -> Array:
    """Return left @ right. Products of thousands of rows are computed in blocks, between which work can be stopped."""
    xp = namespace(left, right)
    blocks = row_blocks(left.shape[0], 4 * right.shape[1], left, least=512)
    if len(blocks) == 1:
        checkpoint()
        return left @ right
    product = xp.empty((left.shape[0], right.shape[1]), dtype=xp.float32, device=device(left))
    for rows in blocks:
        checkpoint()
        product[rows, :] = left[rows, :] @ right
    return product
