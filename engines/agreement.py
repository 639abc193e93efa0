"""Measures of how closely two arrays agree, for the parity check of an export and the comparison of providers.

Attention maps can hold a billion numbers, so no function copies a whole array. If either array contains NaN or
infinity, the result is NaN or infinite, without a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

BLOCK = 1 << 24
"""Numbers compared at a time. Attention on a grid of 128² has 268 million, and each step copies its block."""
TINY = 1e-30
"""Smallest divisor, and smallest argument of a logarithm."""


@np.errstate(invalid="ignore")
def max_error(expected: Floats, found: Floats) -> float:
    """Return the largest absolute difference of two arrays of the same shape."""
    return float(np.max([np.abs(x - y).max() for x, y in _blocks(expected, found)]))


def cosine(expected: Floats, found: Floats) -> float:
    """Return the cosine of the angle between two arrays of the same shape, each taken as a single vector."""
    return float(row_cosines(expected.reshape(1, -1), found.reshape(1, -1))[0])


@np.errstate(invalid="ignore")
def row_cosines(expected: Floats, found: Floats) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows of two arrays (…, n), as (rows,). It is 0 where a row is zero."""
    rows = [
        _dots(x, y) / np.maximum(np.sqrt(_dots(x, x)) * np.sqrt(_dots(y, y)), TINY) for x, y in _blocks(expected, found)
    ]
    return np.concatenate(rows)


@np.errstate(invalid="ignore")
def symmetric_kl(expected: Floats, found: Floats) -> float:
    """Return half the symmetric KL divergence of the rows of two arrays (…, n), in nats, averaged over the rows.

    Entries below `TINY` count as `TINY`.
    """
    total = 0.0
    for block in _blocks(expected, found):
        x, y = (np.maximum(values, TINY) for values in block)
        total += float(((x - y) * (np.log(x) - np.log(y))).sum(dtype=np.float64)) / 2
    rows: int = expected.size // expected.shape[-1]
    return total / rows


@np.errstate(invalid="ignore")
def row_sum_error(values: Floats) -> float:
    """Return the largest difference between 1 and the sum of a row of (…, n)."""
    return float(np.abs(values.sum(-1, dtype=np.float64) - 1).max())


def count_not_finite(values: Floats) -> int:
    """Return the number of entries that are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(values)))


def _dots(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Return the dot products of the rows of (rows, n), summed in float64."""
    return np.asarray(np.einsum("ri,ri->r", x, y, dtype=np.float64))


def _blocks(*arrays: Floats) -> Iterator[tuple[Floats, ...]]:
    """Yield the rows of arrays (…, n) of the same shape, in blocks (rows, n) of about `BLOCK` numbers."""
    length = arrays[0].shape[-1]
    rows = [array.reshape(-1, length) for array in arrays]
    step = max(1, BLOCK // length)
    for start in range(0, len(rows[0]), step):
        yield tuple(array[start : start + step] for array in rows)
