"""Helpers for array code that runs on NumPy (1.26 and 2.x), CuPy and any other array-API library."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import array_api_compat
import numpy as np
from diffseg.cancellation import count_seconds, processor_seconds

Array: TypeAlias = Any
"""An array of any array-API library. Results are arrays of the same library as the inputs."""

STANDARD_NUMPY = hasattr(np, "astype") and hasattr(np, "vecdot")

Item = TypeVar("Item")
Result = TypeVar("Result")
BLOCK_BYTES = 8 << 20
"""Size of the row blocks in which attention is processed on a CPU. A block fits into the last-level cache."""
DEVICE_BLOCK_BYTES = 128 << 20
"""Size of the row blocks on a GPU. Each block costs kernel launches and a synchronisation, so blocks are larger.

Attention of 64 × 64 is one block.
"""


def namespace(*arrays: Array) -> Any:  # noqa: ANN401 - a module, which has no common type
    """Return the array-API namespace of `arrays`, which has the standard's names on NumPy 1.26 too.

    NumPy has them itself since 2.1. The compatibility layer would import all of NumPy's parts, which takes 0.2 s.
    """
    if STANDARD_NUMPY and all(isinstance(array, np.ndarray) for array in arrays):
        return np
    return array_api_compat.array_namespace(*arrays)


def device(array: Array) -> Any:  # noqa: ANN401 - each library has its own
    """Return the device of `array`, in the form that `device=` accepts."""
    return array_api_compat.device(array)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return `array` as a NumPy array. The data is copied only if it is on another device."""
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


def row_dot(left: Array, right: Array) -> Array:
    """Return the dot products of the rows of two (r, N) arrays, (r,)."""
    xp = namespace(left, right)
    if isinstance(left, np.ndarray):
        return xp.vecdot(left, right)
    # CuPy's vecdot copies both arrays and starts a batch of 1 × 1 matrix products.
    return xp.sum(left * right, axis=1)


_on_device: dict[tuple[Any, ...], tuple[Array, ...]] = {}


def cached_from_host(
    make: Callable[..., tuple[np.ndarray[Any, Any], ...]], *arguments: int, like: Array
) -> tuple[Array, ...]:
    """Return `make(*arguments)` in the library and on the device of `like`. Device copies are kept for later calls.

    This is for small arrays that depend on a few sizes, such as indices: they are copied to a device once instead of
    once per image. Callers must not write into them. On the CPU, each call computes them again.
    """
    if isinstance(like, np.ndarray):
        return make(*arguments)
    key = make, arguments, namespace(like).__name__, str(device(like))  # CuPy's devices cannot be hashed
    found = _on_device.get(key)
    if found is None:
        found = tuple(from_host(array, like) for array in make(*arguments))
        if array_api_compat.is_cupy_array(like):
            # The copy was queued on this thread's stream, and other streams will use it.
            namespace(like).cuda.get_current_stream().synchronize()
        _on_device[key] = found
    return found


def row_blocks(rows: int, row_bytes: int, like: Array, least: int = 1) -> list[slice]:
    """Divide rows into blocks whose size suits the device of `like`.

    Args:
        rows: number of rows.
        row_bytes: size of a row in bytes.
        like: an array on the device in question.
        least: minimum number of rows per block; the last block may have fewer.

    Returns:
        One slice per block, in order.
    """
    block_bytes = BLOCK_BYTES if isinstance(like, np.ndarray) else DEVICE_BLOCK_BYTES
    step = max(least, block_bytes // max(1, row_bytes))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def cpu_workers(array: Array) -> int:
    """Return how many threads prepare work on `array` ahead: up to 4 on a CPU, none for arrays on another device."""
    return min(4, os.cpu_count() or 1) if isinstance(array, np.ndarray) else 0


def prefetched(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, while threads compute the next results.

    Their processor time counts as that of the calling thread; see `cancellation.processor_seconds`.

    Args:
        function: called with one item.
        items: the items.
        workers: number of threads, and of results computed ahead. With 0, each result is computed on demand.
    """
    if not workers:
        yield from map(function, items)
        return

    def timed(item: Item) -> tuple[Result, float]:
        start = processor_seconds()
        return function(item), processor_seconds() - start

    def first() -> Result:
        result, seconds = ahead.popleft().result()
        count_seconds(seconds)
        return result

    ahead: deque[Future[tuple[Result, float]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            ahead.append(pool.submit(timed, item))
            if len(ahead) > workers:
                yield first()
        while ahead:
            yield first()


def lerp_indices(size: int, target: int, like: Array) -> tuple[Array, Array, Array]:
    """Return the neighbours and weights of a bilinear resize along one axis, with half-pixel centres.

    This is the convention of TensorFlow's `UpSampling2D` and of PyTorch's `align_corners=False`. Positions beyond the
    border take the border's value.

    Args:
        size: length of the axis before the resize.
        target: length of the axis after the resize.
        like: an array whose library and device the results use.

    Returns:
        `(lower, upper, fraction)`, each of shape `(target,)`. The resized value at i is
        `lower·(1-fraction) + upper·fraction`.
    """
    lower, upper, fraction = cached_from_host(_lerp_indices, size, target, like=like)
    return lower, upper, fraction


def _lerp_indices(size: int, target: int) -> tuple[np.ndarray[Any, Any], ...]:
    position = np.clip((np.arange(target) + 0.5) * (size / target) - 0.5, 0, size - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, size - 1)
    return lower, upper, (position - lower).astype(np.float32)


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
