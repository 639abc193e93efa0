"""Label maps at any resolution: maps on a coarse grid are resized bilinearly in tiles, and compete for every pixel.

Only the maps that can win in a tile, mostly one or two, are computed and held in memory there. So time grows with
the length of the borders between masks rather than with the number of maps, and memory with the labels only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from diffseg.cancellation import checkpoint
from diffseg.methods.reduction import present

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE = 48
"""Least side of a tile in pixels. Smaller tiles have fewer maps each, but there are more of them."""

SLACK = 1e-6
"""Fraction of the largest value by which a map may fall short and still compete. Rounding errors are smaller."""

SPREAD = 2
"""Cells around a cell that influence it when label maps are enlarged."""

Field: TypeAlias = "Callable[[slice, slice], tuple[NDArray[np.intp], NDArray[np.floating]]]"
"""Takes rows and columns of the grid; returns numbers (c,) of the maps that can win there, and their values."""


class Points(NamedTuple):
    """The centres of pixels along one axis of the area that the grid covers.

    Attributes:
        places: (N,) float, distances from the start of the area, ascending.
        length: length of the area, in the same unit.
        step: the places are the centres of every `step`-th of `length` pixels; None if they are not evenly spaced.
    """

    places: NDArray[np.floating]
    length: float
    step: int | None = None

    @classmethod
    def evenly(cls, count: int, step: int = 1) -> Points:
        """Return every `step`-th of `count` pixels that divide the area evenly, the middle one of each `step`."""
        return cls(np.arange(step // 2, count, step) + 0.5, count, step)


@dataclass(frozen=True, slots=True, eq=False)
class GridPositions:
    """Positions of pixels along one axis of a grid, between the centres of two neighbouring cells.

    Attributes:
        lower: (N,) the cell before each pixel, in ascending order.
        upper: (N,) the cell after each pixel; at the borders of the grid, the same as `lower`.
        fraction: (N,) float32, weight of the upper one.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    fraction: NDArray[np.float32]

    @classmethod
    def of(cls, points: Points, cells: int) -> GridPositions:
        """Place the centres of pixels on an axis of `cells` cells."""
        position = np.clip(points.places * (cells / points.length) - 0.5, 0, cells - 1)
        lower = np.floor(position).astype(np.int64)
        return cls(lower, np.minimum(lower + 1, cells - 1), (position - lower).astype(np.float32))

    def tiles(self) -> list[slice]:
        """Divide the pixels between the same cells into tiles, or those of several neighbouring cells together."""
        edges = [0, *(np.flatnonzero(np.diff(self.lower)) + 1).tolist(), len(self.lower)]
        tiles, start = [], 0
        for edge in edges[1:]:
            if edge - start >= TILE or edge == edges[-1]:
                tiles.append(slice(start, edge))
                start = edge
        return tiles

    def cells(self, tile: slice) -> slice:
        """Return the cells that a tile depends on."""
        return slice(int(self.lower[tile.start]), int(self.upper[tile.stop - 1]) + 1)


def label_by_maps(maps: NDArray[np.floating], rows: Points, columns: Points, out: NDArray[np.uint16]) -> None:
    """Label each pixel with the index of the map that is largest there, the lowest in a tie.

    Gives what `non_max_suppression` gives, at any pixels of the area.

    Args:
        maps: (k, h, w), with k at most 65,535.
        rows: the H rows of pixels, from the top of the area that the maps cover.
        columns: the W columns, from its left.
        out: (H, W), receives the labels.
    """
    down, across = GridPositions.of(rows, maps.shape[1]), GridPositions.of(columns, maps.shape[2])
    possible = _possible(maps)

    def field(vertical: slice, horizontal: slice) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
        # The last cell on each axis has no further one: only those between which a pixel lies count.
        inner = possible[:, _between(vertical), _between(horizontal)]
        numbers = np.flatnonzero(inner.any((1, 2)))
        return numbers, maps[numbers, vertical, horizontal]

    _compete(field, down, across, out)


def label_by_labels(
    labels: NDArray[np.uint16], rows: Points, columns: Points, out: NDArray[np.uint16], *, spread: int = SPREAD
) -> None:
    """Resize a label map without jagged borders: its masks are smoothed a little, resized bilinearly, and compete.

    Args:
        labels: (h, w).
        rows: the H rows of pixels, from the top of the area that the labels cover.
        columns: the W columns, from its left.
        out: (H, W), receives the labels.
        spread: cells around a cell that influence it. With 0, nothing is smoothed, and details of one cell survive.
    """
    down, across = GridPositions.of(rows, labels.shape[0]), GridPositions.of(columns, labels.shape[1])
    padded = np.pad(labels, spread, mode="edge")

    def field(vertical: slice, horizontal: slice) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
        part = padded[vertical.start : vertical.stop + 2 * spread, horizontal.start : horizontal.stop + 2 * spread]
        if (part == part[0, 0]).all():
            return part[:1, 0].astype(np.intp), np.empty((1, 0, 0), np.float32)
        numbers = np.array(present(part), dtype=np.intp)
        masks = (part == numbers[:, None, None]).astype(np.float32)
        for _ in range(spread):
            masks = masks[:, :-2] + 2 * masks[:, 1:-1] + masks[:, 2:]
            masks = masks[..., :-2] + 2 * masks[..., 1:-1] + masks[..., 2:]
        return numbers, masks

    _compete(field, down, across, out)


def _between(cells: slice) -> slice:
    """Return the cells of a tile without the last one, unless it is the only one."""
    return slice(cells.start, max(cells.stop - 1, cells.start + 1))


def _possible(maps: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return, for each map and cell, whether it can be the largest between this cell and the next: (k, h, w).

    Between four cells a bilinear map lies between its least and largest corner. Where another map's least is larger,
    it cannot win.
    """
    largest, least = _corners(maps, np.maximum), _corners(maps, np.minimum)
    bound = least.max(0)
    bound -= bound.dtype.type(SLACK) * np.maximum(np.abs(largest), np.abs(least)).max(0)
    possible: NDArray[np.bool_] = ~(largest < bound)  # NaN is possible everywhere
    return possible


def _corners(maps: NDArray[np.floating], choose: Any) -> NDArray[np.floating]:  # noqa: ANN401 - a ufunc
    """Combine each cell with the ones below, to the right, and below to the right: (k, h, w)."""
    rows = maps.copy()
    choose(maps[:, :-1], maps[:, 1:], out=rows[:, :-1])
    both = rows.copy()
    choose(rows[..., :-1], rows[..., 1:], out=both[..., :-1])
    return both


def _compete(field: Field, down: GridPositions, across: GridPositions, out: NDArray[np.uint16]) -> None:
    vertical = [(tile, down.cells(tile)) for tile in down.tiles()]
    horizontal = [(tile, across.cells(tile)) for tile in across.tiles()]
    for rows, row_cells in vertical:
        checkpoint()
        below, above = down.lower[rows] - row_cells.start, down.upper[rows] - row_cells.start
        weights = down.fraction[rows, None]
        for columns, column_cells in horizontal:
            numbers, values = field(row_cells, column_cells)
            if len(numbers) == 1:
                out[rows, columns] = numbers[0]
                continue
            left, right = across.lower[columns] - column_cells.start, across.upper[columns] - column_cells.start
            tall = _blend(values[:, below], values[:, above], weights)  # the rows first, as in `suppress`
            wide = _blend(tall[..., left], tall[..., right], across.fraction[columns])
            out[rows, columns] = _winners(numbers, wide)


def _blend(
    low: NDArray[np.floating], high: NDArray[np.floating], fraction: NDArray[np.float32]
) -> NDArray[np.floating]:
    """Return low·(1-fraction) + high·fraction, rounded as `arrays.resize_last` does; `high` is overwritten."""
    high -= low
    high *= fraction
    high += low
    return high


def _winners(numbers: NDArray[np.intp], values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Return the number of the largest of (c, r, s) values at each pixel, the first in a tie: (r, s) uint16."""
    best = values[0]
    winner = np.full(best.shape, numbers[0], dtype=np.uint16)
    for number, value in zip(numbers[1:], values[1:], strict=True):
        better = value > best
        np.copyto(best, value, where=better)
        np.copyto(winner, np.uint16(number), where=better)
    return winner
