"""Fused kernels for CuPy arrays: few launches per image, and no wait until its labels are copied to the host.

Other libraries take the code of `aggregate`, `merge` and `suppress`, which these kernels match to float32 rounding.
Arrays are float32 and C-contiguous unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np
from diffseg.arrays import Array, cached_from_host, from_host, row_blocks, to_host
from diffseg.cancellation import checkpoint
from diffseg.methods.fused_source import SOURCE
from diffseg.methods.tiles import GridPositions, Points

if TYPE_CHECKING:
    from numpy.typing import NDArray

THREADS = 256
OPTIONS = ("--std=c++14", "--fmad=false")
"""Without fused multiply-add, resizes round as NumPy does, so that ties between proposals end alike."""


class Kernels:
    """Launches the kernels of `SOURCE`.

    Args:
        xp: CuPy.
        load: returns a kernel by name: a function of (blocks,), (threads,) and its arguments.
        threads: per block, as the kernels were compiled.
    """

    def __init__(self, xp: Any, load: Any, threads: int = THREADS) -> None:  # noqa: ANN401 - untyped upstream
        self.xp = xp
        self._load = load
        self._threads = threads

    def _launch(self, name: str, blocks: int, *arguments: Any) -> None:  # noqa: ANN401
        typed = [np.int32(a) if type(a) is int else np.float32(a) if type(a) is float else a for a in arguments]
        self._load(name)((blocks,), (self._threads,), tuple(typed))

    def aggregate(
        self,
        maps: Sequence[Array],
        grids: Sequence[tuple[int, int]],
        shares: Sequence[float],
        out: Array | None,
    ) -> tuple[Array, Array]:
        """Aggregate maps (n², n²), coarse to fine → (N, N), and the () int32 number of mended rows."""
        height, width = grids[-1]
        mended = self.xp.zeros((), dtype=np.int32)
        total, covered = None, (1, 1)
        for attention, grid, share in zip(maps, grids, shares, strict=True):
            queries = grid[0] * grid[1]
            target = out if out is not None and grid == grids[-1] and attention is maps[-1] else None
            if target is None:
                target = self.xp.empty((queries, height * width), dtype=np.float32)
            parents = np.uintp(0) if total is None else total
            sizes = (*grid, height, width, *covered)
            self._launch("aggregate_level", queries, attention, parents, target, mended, *sizes, float(share))
            total, covered = target, grid
        return total, mended

    def anchor_distances(self, maps: Array, where: Array) -> Array:
        """Distances of maps (N, N), which are distributions, to those at `where` (m,) int64 → (N, m)."""
        count, anchors = maps.shape[0], where.shape[0]
        centres = self.xp.take(maps, where, axis=0)
        centre_logs, centre_terms = self._log_terms(centres)
        values = self.xp.empty((count, anchors), dtype=np.float32)
        for rows in row_blocks(count, 4 * maps.shape[1], maps, least=512):
            block = maps[rows, :]
            logs, terms = self._log_terms(block)
            products = logs @ centres.T, block @ centre_logs.T
            blocks = block.shape[0]
            self._launch("distances", blocks, terms, centre_terms, *products, where, values, rows.start, anchors)
        return values

    def merge(self, maps: Array, distances: Array, thresholds: Sequence[float]) -> tuple[Array, Array]:
        """Merge maps (N, N) → (m, N), of which the first `count` are proposals and the others zeros; () int32 count."""
        xp, (rows, anchors) = self.xp, distances.shape
        count = xp.empty((), dtype=np.int32)
        weights = xp.empty((anchors, rows), dtype=np.float32)
        self._launch("near_weights", anchors, distances, weights, count, rows, anchors, _limit(thresholds[0]))
        merged = weights @ maps
        for threshold in thresholds[1:]:
            logs, terms = self._log_terms(merged)
            cross = merged @ logs.T
            old, count = count, xp.empty((), dtype=np.int32)
            weights = xp.empty((anchors, anchors), dtype=np.float32)
            matched = xp.empty((anchors,), dtype=np.int32)
            limit = _limit(threshold)
            self._launch("greedy_weights", 1, terms, cross, old, weights, matched, count, anchors, limit)
            merged = weights @ merged
        return merged, count

    def suppress(
        self, proposals: Array, count: Array | int, mended: Array | int, rows: Points, columns: Points
    ) -> Iterator[tuple[slice, Array]]:
        """Let the first `count` of proposals (m, h, w) compete for H × W pixels, in blocks of rows.

        `count` and `mended` are () int32, or integers.

        Yields:
            The rows of a block, and (r·W + 2,) uint16 on the device: their labels, then `mended`, its low half first.
        """
        count, mended = (self.xp.full((), n, dtype=np.int32) if isinstance(n, int) else n for n in (count, mended))
        grid, height, width = tuple(proposals.shape[1:]), len(rows.places), len(columns.places)
        if rows.step and columns.step:
            sides = int(rows.length), int(columns.length), rows.step, columns.step
            (positions,) = cached_from_host(_regular_positions, *grid, *sides, like=proposals)
        else:
            positions = from_host(_positions(grid, rows, columns), proposals)
        for block in row_blocks(height, 2 * width, proposals):
            size = (block.stop - block.start) * width
            labels = self.xp.empty((size + 2,), dtype=np.uint16)
            sizes = (*grid, height, width, block.start, size)
            self._launch("suppress", -(-size // self._threads), proposals, count, mended, positions, labels, *sizes)
            yield block, labels

    def _log_terms(self, maps: Array) -> tuple[Array, Array]:
        """Logarithms of maps (r, N) relative to the uniform map, and Σ x log x of each → (r, N) and (r,)."""
        logs, terms = self.xp.empty_like(maps), self.xp.empty((maps.shape[0],), dtype=np.float32)
        self._launch("log_terms", maps.shape[0], maps, logs, terms, maps.shape[1], math.log(maps.shape[1]))
        return logs, terms


def kernels(*arrays: Array) -> Kernels | None:
    """Return the kernels for `arrays`, or None if one of them is not a C-contiguous float32 array of CuPy."""
    if not all(map(array_api_compat.is_cupy_array, arrays)):
        return None
    if not all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays):
        return None
    return _of_cupy()


def label_by_maps(
    maps: Array, count: Array | None, mended: Array | int, rows: Points, columns: Points, out: NDArray[np.uint16]
) -> int | None:
    """Label pixels as `tiles.label_by_maps` does, on the device; only the labels are copied to the host.

    That is one wait for the device, or one per block of 64 megapixels.

    Args:
        maps: (m, h, w).
        count: number of maps that count, () int32 on the device; None for all.
        mended: () int32, brought to the host with the labels.
        rows: the H rows of pixels, from the top of the area that the maps cover.
        columns: the W columns, from its left.
        out: (H, W), receives the labels.

    Returns:
        `mended`, or None if nothing was labelled, because there are no kernels for these maps.
    """
    found = kernels(maps)
    if found is None:
        return None
    total = 0
    for block, labels in found.suppress(maps, maps.shape[0] if count is None else count, mended, rows, columns):
        checkpoint()
        packed = to_host(labels)
        out[block] = packed[:-2].reshape(-1, len(columns.places))
        total = int(packed[-2]) + (int(packed[-1]) << 16)
    return total


def _positions(grid: tuple[int, int], rows: Points, columns: Points) -> NDArray[np.float32]:
    """Where pixels lie on a grid (h, w): (2, H + W), the cells before them and the weights of the next cells."""
    axes = [GridPositions.of(points, cells) for points, cells in zip((rows, columns), grid, strict=True)]
    lower = np.concatenate([axis.lower for axis in axes]).astype(np.float32)
    return np.stack([lower, np.concatenate([axis.fraction for axis in axes])])


def _regular_positions(
    h: int, w: int, height: int, width: int, row_step: int, column_step: int
) -> tuple[NDArray[np.float32]]:
    rows, columns = Points.evenly(height, row_step), Points.evenly(width, column_step)
    return (_positions((h, w), rows, columns),)


@cache
def _of_cupy() -> Kernels:
    import cupy

    module = cupy.RawModule(code=SOURCE, options=OPTIONS)
    return Kernels(cupy, cache(module.get_function))


def _limit(threshold: float) -> float:
    """Twice the threshold, as the sum over both directions is compared with it; within float32."""
    return min(2 * threshold, float(np.finfo(np.float32).max))
