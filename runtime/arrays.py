"""One spelling of array code for NumPy (1.26 and 2.x), CuPy and any other array-API library."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import array_api_compat
import numpy as np

Array: TypeAlias = Any
"""An array of whichever library the caller's arrays come from; results stay in that library."""

Item = TypeVar("Item")
Result = TypeVar("Result")
BLOCK_BYTES = 8 << 20
"""Size of the row blocks that the passes over attention work in: small enough for a CPU's last-level cache."""
DEVICE_BLOCK_BYTES = 128 << 20
"""The same for GPUs, where a block costs launches and a look at its result: attention of 64 × 64 is one block."""


def namespace(*arrays: Array) -> Any:  # noqa: ANN401 - a module, typed by nobody
    """Return the array-API namespace of `arrays`, with the standard's names on NumPy 1.26 too."""
    return array_api_compat.array_namespace(*arrays)


def device(array: Array) -> Any:  # noqa: ANN401 - each library has its own
    """Return the device of `array`, as `device=` takes it."""
    return array_api_compat.device(array)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return `array` as a NumPy array; copies only when it lives on another device."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):  # CuPy
        return np.asarray(array.get())
    return np.from_dlpack(array)


def from_host(array: np.ndarray[Any, Any], like: Array) -> Array:
    """Return `array` in the library and on the device of `like`."""
    if isinstance(like, np.ndarray):
        return array
    return namespace(like).asarray(array, device=device(like))


def row_blocks(rows: int, row_bytes: int, like: Array, least: int = 1) -> list[slice]:
    """Cut `rows` rows of `row_bytes` bytes into slices that suit the device of `like`, of `least` rows or more."""
    block_bytes = BLOCK_BYTES if isinstance(like, np.ndarray) else DEVICE_BLOCK_BYTES
    step = max(least, block_bytes // max(1, row_bytes))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def prefetched(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` in order, computed at most `workers` items ahead by as many threads; 0: when asked."""
    if not workers:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def lerp_indices(size: int, target: int, like: Array) -> tuple[Array, Array, Array]:
    """Neighbours and weight of a bilinear resize along one axis, with half-pixel centres.

    The convention of TensorFlow's `UpSampling2D` and of PyTorch's `align_corners=False`; the border repeats.

    Args:
        size: length of the axis that is read.
        target: length of the axis that is written.
        like: an array of the library to answer in.

    Returns:
        `(lower, upper, fraction)`, each `(target,)`: the value at i is `lower·(1-fraction) + upper·fraction`.
    """
    position = np.clip((np.arange(target) + 0.5) * (size / target) - 0.5, 0, size - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, size - 1)
    fraction = (position - lower).astype(np.float32)
    return from_host(lower, like), from_host(upper, like), from_host(fraction, like)


def resize_last(array: Array, target: int) -> Array:
    """Resize the last axis of `array` bilinearly to `target` with half-pixel centres."""
    xp = namespace(array)
    size = array.shape[-1]
    if size == target:
        return array
    lower, upper, fraction = lerp_indices(size, target, array)
    low = xp.take(array, lower, axis=array.ndim - 1)
    high = xp.take(array, upper, axis=array.ndim - 1)
    high -= low
    high *= fraction
    high += low
    return high
