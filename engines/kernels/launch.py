"""The averaged attention on a GPU: loads the compiled kernels with CuPy and launches them.

This module follows the documentation of CuPy and CUDA; docs/kernel.md states what has been executed, and where.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffseg.engines.errors import ProviderError
from diffseg.engines.kernels.record import CompiledKernel, find_kernels, read_files
from diffseg.engines.kernels.variants import Kernel
from diffseg.engines.providers.cuda import device_errors, import_cupy

NAMES = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16", "uint16": "bf16"}
THREADS = 32  # per warp
ALIGNMENT = 16  # bytes; the kernels load that many at a time
NO_SCRATCH = np.uint64(0)  # a null pointer as 8 bytes: for None, CuPy would pass no storage for the parameter at all
LARGEST = 2**31 - 1  # the kernels use int32 for all indices except those of heads and images


@dataclass(frozen=True, slots=True, eq=False)
class LoadedKernel:
    """One kernel on one device.

    Attributes:
        compiled: its entry in the record.
        function: CuPy's RawKernel.
    """

    compiled: CompiledKernel
    function: Any

    def __call__(self, grid: tuple[int, ...], values: dict[str, Any]) -> None:
        """Launch on the current stream; `values` are the arguments by name."""
        arguments = [NO_SCRATCH if name == "scratch" else values[name] for name in self.compiled.arguments]
        block = (self.compiled.warps * THREADS,)
        self.function(grid, block, tuple(arguments), shared_mem=self.compiled.shared_memory)


def averaged_attention(queries: Any, keys: Any, averaged: Any = None, sums: Any = None) -> Any:  # noqa: ANN401 - CuPy
    """Average softmax(Q Kᵀ) over all heads of all layers of one resolution, on the current stream and device.

    If `averaged` and `sums` are given, nothing is allocated. Call this function or `load_kernels` once before a stream
    capture, because loading cannot be captured.

    Args:
        queries: (B, layers·heads, nq, d), already scaled. A CuPy array: float16, float32, bfloat16 or the bits of
            bfloat16 as uint16. d is a multiple of 8, up to 160.
        keys: (B, layers·heads, nk, d) of the same type.
        averaged: (B, nq, nk) float32, overwritten; None allocates it.
        sums: (B, layers·heads, nq) float32 scratch memory for the logarithm of each row's sum; None allocates it.

    Returns:
        `averaged`; its rows sum to 1.

    Raises:
        ProviderError: the GPU, the type, the width or an array is not supported.
        DeviceMemoryError: the GPU's memory is full.
    """
    cupy = import_cupy()
    batch, heads, rows, columns, width = _sizes(queries, keys)
    with device_errors(cupy, "the averaged attention"):
        kernels = load_kernels(str(queries.dtype), width)
        if averaged is None:
            averaged = cupy.empty((batch, rows, columns), np.float32)
        if sums is None:
            sums = cupy.empty((batch, heads, rows), np.float32)
        for name, array, shape in (
            ("averaged", averaged, (batch, rows, columns)),
            ("sums", sums, (batch, heads, rows)),
            ("queries", queries, queries.shape),
            ("keys", keys, keys.shape),
        ):
            _check(name, array, shape, None if name in {"queries", "keys"} else np.float32)
        values = {
            "queries": queries,
            "keys": keys,
            "sums": sums,
            "averaged": averaged,
            "heads": np.int32(heads),
            "nq": np.int32(rows),
            "nk": np.int32(columns),
            "width": np.int32(width),
        }
        first, second = kernels["row_sums"], kernels["average_maps"]
        try:
            first((batch * heads * _tiles(rows, first.compiled.rows),), values)
            grid = _tiles(columns, second.compiled.columns), _tiles(rows, second.compiled.rows), batch
            second(grid, values)
        except cupy.cuda.driver.CUDADriverError as error:
            raise ProviderError(f"CUDA failed at the averaged attention: {error}") from None
    return averaged


def load_kernels(dtype: str, width: int) -> dict[Kernel, LoadedKernel]:
    """Load the kernels onto the current device, once per process, device, type and compiled width.

    Args:
        dtype: NumPy's name of the type of queries and keys; uint16 stands for the bits of bfloat16.
        width: width of a head.

    Raises:
        ProviderError: there are no kernels for this GPU, type or width, or the driver refuses them.
    """
    cupy = import_cupy()
    device = cupy.cuda.Device()
    return _load(int(device.id), int(device.compute_capability), NAMES.get(dtype, dtype), width)


@functools.cache
def _load(device: int, capability: int, dtype: str, width: int) -> dict[Kernel, LoadedKernel]:  # noqa: ARG001 - a key
    kernels = find_kernels(capability, dtype, width)
    files = read_files(kernels)
    with tempfile.TemporaryDirectory(prefix="diffseg-kernels-") as folder:
        return {name: LoadedKernel(kernel, _module(kernel, files, Path(folder))) for name, kernel in kernels.items()}


def _module(kernel: CompiledKernel, files: dict[str, bytes], folder: Path) -> Any:  # noqa: ANN401 - CuPy's RawKernel
    """Load the first of a kernel's files that the driver accepts, and allow the kernel its shared memory."""
    cupy = import_cupy()
    errors = []
    for name, _ in kernel.files:
        path = folder / name
        path.write_bytes(files[name])
        try:
            function = cupy.RawModule(path=str(path)).get_function(kernel.name)
            function.max_dynamic_shared_size_bytes = kernel.shared_memory  # loads the file, which may then be deleted
        except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
            errors.append(f"{name}: {error}")
        else:
            return function
    raise ProviderError(
        f"the NVIDIA driver refuses the kernels of sm_{kernel.arch} ({'; '.join(errors)}): update the driver to one of "
        "CUDA 12.8 or newer"
    )


def _sizes(queries: Any, keys: Any) -> tuple[int, int, int, int, int]:  # noqa: ANN401 - CuPy's arrays
    """Return batch, heads, nq, nk and width.

    Raises:
        ProviderError: the shapes or types do not fit together, or are too large for the kernels.
    """
    shapes = tuple(queries.shape), tuple(keys.shape)
    if (
        {len(shape) for shape in shapes} != {4}
        or shapes[0][:2] != shapes[1][:2]
        or shapes[0][3] != shapes[1][3]
        or queries.dtype != keys.dtype
        or 0 in shapes[0] + shapes[1]
    ):
        raise ProviderError(
            f"queries are {queries.dtype} {shapes[0]} and keys {keys.dtype} {shapes[1]}; expected "
            "(batch, layers·heads, places, width) of the same type; only the number of places may differ, and no size "
            "may be 0"
        )
    batch, heads, rows, width = shapes[0]
    columns = shapes[1][2]
    if max(rows, columns) * width > LARGEST or batch * heads * rows > LARGEST:
        raise ProviderError(f"queries of shape {shapes[0]} are too large for the kernels: use smaller batches")
    return batch, heads, rows, columns, width


def _check(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401 - CuPy's array
    """Reject arrays that the kernels would read or write incorrectly.

    Raises:
        ProviderError: the array has another shape or type, is not contiguous, or not aligned.
    """
    if tuple(array.shape) != shape or (dtype is not None and array.dtype != dtype):
        raise ProviderError(f"{name} is {array.dtype} {tuple(array.shape)}; expected {np.dtype(dtype)} {shape}")
    if not array.flags.c_contiguous or array.data.ptr % ALIGNMENT:
        raise ProviderError(f"{name} must be contiguous and aligned to {ALIGNMENT} bytes: copy it first")


def _tiles(length: int, tile: int) -> int:
    """Return the number of tiles that cover a length."""
    return -(-length // tile)
