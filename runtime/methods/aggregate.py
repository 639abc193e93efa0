"""Aggregate the self-attention of several resolutions into one tensor at the finest resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffseg.arrays import Array, cpu_workers, device, namespace, prefetched, resize_last, row_blocks
from diffseg.methods import fused

LEAST_SUM = 1e-30
"""Rows with a smaller sum are computed in float64, where the reciprocal of the sum does not overflow."""

TEMPORARIES = 8
"""Number of arrays of a block's size that are in use at once: up to four on each of two or more threads."""


def aggregate_attention(
    maps: Sequence[Array],
    weights: Sequence[float] | None = None,
    *,
    grids: Sequence[tuple[int, int]] | None = None,
    out: Array | None = None,
) -> Array:
    """Aggregate the self-attention of one image over resolutions (DiffSeg, section 3.2, equation 2).

    At each resolution, the heads are averaged, the keys of each query are upsampled bilinearly (half-pixel
    centres) to the finest grid and divided by their sum, and the queries are repeated to the finest grid. The
    results are then added with `weights`. In a row that is not a distribution, NaN, infinite and negative entries
    are set to 0; a row without any positive entry becomes uniform. `aggregate_and_count` also counts these rows. The
    maps are processed in blocks of rows, on several threads: besides the result, this takes about 40 MB at 64 × 64.

    Args:
        maps: one tensor per resolution, in any order: `(heads, n², n²)` or `(n², n²)`, any float dtype.
        weights: one weight per map, rescaled to sum to 1. None uses weights proportional to n, as in the paper.
        grids: `(rows, columns)` of each map, for images that are not square. None means that all grids are square.
        out: `(n², n²)` float32 array for the result. To save memory, it may be the finest map, which is then
            overwritten.

    Returns:
        `(h, w, h, w)` float32 on the finest grid: queries, then keys. Every map `[i, j]` sums to 1.

    Raises:
        ValueError: there are no maps, a map does not have the shape of attention, a grid does not divide the next
            finer one, or the weights are invalid.
    """
    return aggregate_and_count(maps, weights, grids=grids, out=out)[0]


def aggregate_and_count(
    maps: Sequence[Array],
    weights: Sequence[float] | None = None,
    *,
    grids: Sequence[tuple[int, int]] | None = None,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Aggregate as `aggregate_attention` does, and count the rows that were not distributions.

    On a device the count stays there, so that nothing waits for it.

    Returns:
        The aggregated attention, and the number of mended rows of all maps as an int32 array of shape () on the
        same device.
    """
    if not maps:
        raise ValueError("aggregate_attention: no attention maps given; pass one tensor for each resolution")
    shapes = [_grid(m, g) for m, g in zip(maps, grids if grids is not None else [None] * len(maps), strict=True)]
    shares = _shares(shapes, weights)
    xp = namespace(*maps)
    order = sorted(range(len(maps)), key=lambda i: shapes[i])  # coarse to fine
    height, width = finest = shapes[order[-1]]

    ordered = [maps[i] for i in order]
    kernels = fused.kernels(*ordered, *([] if out is None else [out]))
    if kernels is not None and all(m.ndim == 2 for m in ordered):  # noqa: PLR2004
        result, mended = kernels.aggregate(ordered, [shapes[i] for i in order], [shares[i] for i in order], out)
        return xp.reshape(result, (height, width, height, width)), mended
    mended = xp.zeros((), dtype=xp.int32, device=device(maps[0]))
    total: Array | None = None  # (queries of this level, h·w): the sum over this level and all coarser ones
    covered: tuple[int, int] = finest
    for i in order:
        queries = shapes[i][0] * shapes[i][1]
        here = out if i == order[-1] else None
        if here is None:
            here = xp.empty((queries, height * width), dtype=xp.float32, device=device(maps[i]))
        parents = None if total is None else _repeat_index(xp, covered, shapes[i], total)
        level = _Level(maps[i], shapes[i], finest, shares[i], total, parents, here)
        blocks = row_blocks(queries, 4 * height * width * TEMPORARIES, here)
        for bad in prefetched(level.fill, blocks, cpu_workers(here)):
            mended += bad
        total, covered = here, shapes[i]
    return xp.reshape(total, (height, width, height, width)), mended


def _grid(attention: Array, grid: tuple[int, int] | None) -> tuple[int, int]:
    shape = tuple(attention.shape)
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
        raise ValueError(f"attention must be (heads, n², n²) or (n², n²), found {shape}")
    if grid is None:
        side = math.isqrt(shape[-1])
        grid = (side, side)
    if grid[0] * grid[1] != shape[-1]:
        raise ValueError(
            f"attention of shape {shape} has {shape[-1]} queries, which is no grid of {grid[0]} × {grid[1]}; "
            "pass grids=[(rows, columns), …] for images that are not square"
        )
    return grid


def _shares(shapes: list[tuple[int, int]], weights: Sequence[float] | None) -> list[float]:
    height, width = max(shapes)
    for rows, columns in shapes:
        if height % rows or width % columns:
            raise ValueError(f"attention of {rows} × {columns} does not divide the finest, {height} × {width}")
    for fine, coarse in zip(sorted(shapes)[1:], sorted(shapes), strict=False):
        if fine[0] % coarse[0] or fine[1] % coarse[1]:
            raise ValueError(f"attention grids must divide each other, found {coarse} and {fine}")
    shares = [float(w) for w in (weights if weights is not None else [rows for rows, _ in shapes])]
    if len(shares) != len(shapes):
        raise ValueError(f"{len(shapes)} attention maps need as many weights, found {len(shares)}")
    if not all(math.isfinite(w) and w >= 0 for w in shares) or sum(shares) <= 0:
        raise ValueError(f"weights must be finite, not negative and not all zero, found {shares}")
    return [w / sum(shares) for w in shares]


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """One resolution, of which blocks of rows are added to the coarser ones, on any thread.

    Attributes:
        attention: (heads, q, h·w) or (q, h·w) on `grid`, any float dtype.
        grid: its rows and columns.
        target: rows and columns of the result, H and W.
        share: the sum of each row.
        coarser: (p, H·W) float32, the sum over the coarser resolutions; None if there is none.
        parents: (q,) row of `coarser` that covers each query; None if there is none.
        out: (q, H·W) float32, receives the sum. It may be `attention`.
    """

    attention: Array
    grid: tuple[int, int]
    target: tuple[int, int]
    share: float
    coarser: Array | None
    parents: Array | None
    out: Array

    def fill(self, rows: slice) -> Array | int:
        """Compute some rows, and return how many of them had to be mended."""
        bad = self._upsample(rows)
        if self.coarser is not None and self.parents is not None:
            self.out[rows, :] += namespace(self.out).take(self.coarser, self.parents[rows], axis=0)
        return bad

    def _upsample(self, rows: slice) -> Array | int:
        """Write rows on `target` that sum to `share`, and return how many of them had to be mended."""
        attention, out = self.attention[..., rows, :], self.out[rows, :]
        xp = namespace(attention)
        with np.errstate(over="ignore", invalid="ignore"):  # mended below
            if not isinstance(attention, np.ndarray):
                block = _upsample_keys(_mean_heads(_scaled(attention)), self.grid, self.target)
                self.out[rows, :], bad = _mended(block, self.share)
                return bad
            block = _upsample_keys(_mean_heads(attention), self.grid, self.target)
            total = xp.sum(block, axis=1)
            # A negative or infinite entry shows in the sum only if it is not cancelled: the minimum settles it.
            usable = xp.isfinite(total) & (total > LEAST_SUM) & (xp.min(block, axis=1) >= 0)
            if usable.all():
                np.multiply(block, (self.share / total)[:, None], out=out)
                return 0
            unusable = np.flatnonzero(~usable)
            block = xp.where(usable[:, None], block, xp.zeros_like(block))
            block *= (self.share / xp.where(usable, total, xp.ones_like(total)))[:, None]
            rare = _mean_heads(attention[..., unusable, :], xp.float64)
            block[unusable], bad = _mended(_upsample_keys(rare, self.grid, self.target), self.share)
            out[...] = block
        return bad


def _scaled(attention: Array) -> Array:
    """(heads, r, n²) or (r, n²) → float32, each row of all heads divided by its largest finite entry.

    Sums over heads and keys then neither overflow nor vanish. The CPU treats such rare rows
    in a second pass, but deciding whether one is needed would wait for the device.
    """
    xp = namespace(attention)
    attention = xp.astype(attention, xp.float64 if attention.dtype == xp.float64 else xp.float32, copy=False)
    finite = xp.where(xp.isfinite(attention), attention, xp.zeros_like(attention))
    largest = xp.max(finite, axis=-1, keepdims=True)
    if attention.ndim == 3:  # noqa: PLR2004
        largest = xp.max(largest, axis=0, keepdims=True)
    return attention / xp.where(largest > 0, largest, xp.ones_like(largest))


def _mean_heads(attention: Array, dtype: Any = None) -> Array:  # noqa: ANN401 - a dtype of any library
    """(heads, r, n²) or (r, n²) of any float dtype → (r, n²) of `dtype`, float32 if it is None."""
    xp = namespace(attention)
    dtype = dtype or xp.float32
    if attention.ndim == 2:  # noqa: PLR2004
        return xp.astype(attention, dtype, copy=False)
    total = xp.astype(attention[0, ...], dtype, copy=True)
    for head in range(1, attention.shape[0]):
        total += xp.astype(attention[head, ...], dtype, copy=False)
    total /= attention.shape[0]
    return total


def _upsample_keys(attention: Array, grid: tuple[int, int], target: tuple[int, int]) -> Array:
    """(q, h·w) on `grid` → (q, H·W) on `target`, bilinearly."""
    if grid == target:
        return attention
    xp = namespace(attention)
    queries = attention.shape[0]
    keys = xp.reshape(attention, (queries, *grid))
    keys = resize_last(keys, target[1])
    keys = xp.permute_dims(resize_last(xp.permute_dims(keys, (0, 2, 1)), target[0]), (0, 2, 1))
    return xp.reshape(keys, (queries, target[0] * target[1]))


def _mended(block: Array, share: float) -> tuple[Array, Array]:
    """Scale the rows of `block` (r, N) to sum to `share`, in float32, and count those that were not distributions.

    Invalid entries become 0, empty rows uniform.
    """
    xp = namespace(block)
    good = xp.isfinite(block) & (block >= 0)
    block = xp.where(good, block, xp.zeros_like(block))
    total = xp.sum(block, axis=1)
    empty = total <= 0
    bad = xp.sum(xp.astype(empty | ~xp.all(good, axis=1), xp.int32), dtype=xp.int32)
    block = xp.where(empty[:, None], xp.ones_like(block), block)
    total = xp.where(empty, xp.full_like(total, block.shape[1]), total)
    return xp.astype(block * (share / total)[:, None], xp.float32, copy=False), bad


def _repeat_index(xp: Array, coarse: tuple[int, int], fine: tuple[int, int], like: Array) -> Array:
    """Return, for each query of `fine` in row-major order, the index of the query of `coarse` that covers it."""
    rows = xp.arange(fine[0], device=device(like)) // (fine[0] // coarse[0])
    columns = xp.arange(fine[1], device=device(like)) // (fine[1] // coarse[1])
    return xp.reshape(rows[:, None] * coarse[1] + columns[None, :], (-1,))
