"""The position of the network's input within an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.methods.tiles import Points

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Placement:
    """The box of the image that the network sees. With `pad`, it extends beyond the borders of the image.

    Row i of the network's input covers the image rows from `top + i·height/size[0]` to
    `top + (i + 1)·height/size[0]`. Columns correspond likewise, with `left`, `width` and `size[1]`.

    Attributes:
        image_size: height and width of the image.
        size: height and width of the network's input.
        top: first row of the box, in image rows.
        left: first column of the box.
        height: height of the box, in image rows.
        width: width of the box, in image columns.
        shown: height and width of the results, which sample the pixels of the image evenly; None shows every pixel.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    top: float
    left: float
    height: float
    width: float
    shown: tuple[int, int] | None = None

    @property
    def target(self) -> tuple[int, int]:
        """Height and width of the results."""
        return self.shown or self.image_size

    @property
    def same(self) -> bool:
        """Whether the pixels of the results are those of the network's input."""
        return self.target == self.image_size == self.size and not (self.top or self.left or self.hides)

    def taken(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the image rows and columns that the results show."""
        rows, columns = (
            np.floor((np.arange(shown) + 0.5) * (whole / shown)).astype(np.int64)
            for shown, whole in zip(self.target, self.image_size, strict=True)
        )
        return rows, columns

    def indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each row and each column of the results, the nearest row or column of the network's input."""
        taken_rows, taken_columns = self.taken()
        rows = np.floor((taken_rows + 0.5 - self.top) * (self.size[0] / self.height))
        columns = np.floor((taken_columns + 0.5 - self.left) * (self.size[1] / self.width))
        return (
            np.clip(rows, 0, self.size[0] - 1).astype(np.int64),
            np.clip(columns, 0, self.size[1] - 1).astype(np.int64),
        )

    def seen(self) -> tuple[slice, slice]:
        """Return the rows and the columns of the results whose centres the network sees, at least one of each."""
        height, width = self.image_size
        rows, columns = _within(height, self.top, self.height), _within(width, self.left, self.width)
        if self.shown is None:
            return rows, columns
        taken_rows, taken_columns = self.taken()
        return _taken_within(taken_rows, rows), _taken_within(taken_columns, columns)

    def points(self) -> tuple[Points, Points]:
        """Return the centres of the rows and columns that `seen` returns, within the box."""
        if self.same:
            return Points.evenly(self.size[0]), Points.evenly(self.size[1])
        (taken_rows, taken_columns), (rows, columns) = self.taken(), self.seen()
        return (
            Points(taken_rows[rows] + 0.5 - self.top, self.height),
            Points(taken_columns[columns] + 0.5 - self.left, self.width),
        )

    @property
    def hides(self) -> bool:
        """Whether the results include pixels that the network does not see, as with `crop`."""
        rows, columns = self.seen()
        return (rows.stop - rows.start, columns.stop - columns.start) != self.target


def _within(count: int, start: float, length: float) -> slice:
    """Return which of `count` pixels have their centres in an interval; at least the one in its middle."""
    first, stop = max(0, math.ceil(start - 0.5)), min(count, math.ceil(start + length - 0.5))
    if first < stop:
        return slice(first, stop)
    middle = min(max(int(start + length / 2), 0), count - 1)
    return slice(middle, middle + 1)


def _taken_within(taken: NDArray[np.int64], seen: slice) -> slice:
    """Return which of the taken pixels lie within `seen`; at least the one nearest to it."""
    first, stop = np.searchsorted(taken, (seen.start, seen.stop)).tolist()
    if first < stop:
        return slice(first, stop)
    first = min(first, len(taken) - 1)
    return slice(first, first + 1)


def is_plain(pixels: NDArray[np.uint8], placement: Placement) -> bool:
    """Whether an image has one colour only, judged by the network's input (H, W, 3) without the margins of `pad`."""
    (height, width), (y, x) = (
        placement.image_size,
        (placement.size[0] / placement.height, placement.size[1] / placement.width),
    )
    rows = _within(placement.size[0], -placement.top * y, height * y)
    columns = _within(placement.size[1], -placement.left * x, width * x)
    shown = pixels[rows, columns]
    return bool((shown[0] == shown[0, 0]).all() and (shown == shown[0, 0]).all())
