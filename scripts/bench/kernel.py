"""Time the averaged attention on a GPU by shape, compared with CuPy's matmul and softmax.

    python scripts/bench/kernel.py [--dtype float16] [--runs 50] [--out record.json]

Both are timed by CUDA events in the same run, taking turns, after a warm-up; the figures are medians. CuPy's version
holds one layer's maps at a time, as float32. Without a GPU, the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
from bench.record import environment, write_record
from diffseg.engines.kernels.launch import averaged_attention, load_kernels
from diffseg.engines.machine import find_gpus
from diffseg.engines.providers.cuda import import_cupy

SHAPES = {  # batch, layers, heads, places, width
    "SD 1.5, 64x64": (1, 5, 8, 4096, 40),
    "SD 1.5, 32x32": (1, 5, 8, 1024, 80),
    "SD 1.5, 16x16": (1, 5, 8, 256, 160),
    "SD 1.5, 8x8": (1, 1, 8, 64, 160),
    "SD 2.1, 64x64": (1, 5, 5, 4096, 64),
    "SDXL, 64x64": (1, 10, 10, 4096, 64),
    "SDXL, 32x32": (1, 60, 20, 1024, 64),
    "SD 1.5, 64x64, batch of 8": (8, 5, 8, 4096, 40),
}
WARM_UP = 5


def plain(cupy: Any, queries: Any, keys: Any, layers: int) -> Any:  # noqa: ANN401 - untyped upstream
    """Average with CuPy, layer by layer."""
    heads = queries.shape[1] // layers
    total = 0
    for layer in range(layers):
        part = slice(layer * heads, (layer + 1) * heads)
        logits = cupy.matmul(queries[:, part], keys[:, part].swapaxes(-1, -2)).astype(np.float32)
        logits -= logits.max(axis=-1, keepdims=True)
        cupy.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        total = total + logits.sum(axis=1)
    return total / (layers * heads)


def milliseconds(cupy: Any, function: Any) -> float:  # noqa: ANN401 - untyped upstream
    """Return the time of one call on the device."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end))


def measure(cupy: Any, shape: tuple[int, ...], dtype: str, runs: int) -> dict[str, Any]:  # noqa: ANN401 - untyped upstream
    """Time one shape."""
    batch, layers, heads, places, width = shape
    random = cupy.random.default_rng(0)
    size = (batch, layers * heads, places, width)
    queries = (random.standard_normal(size, np.float32) / np.sqrt(width)).astype(dtype)
    keys = random.standard_normal(size, np.float32).astype(dtype)
    averaged = cupy.empty((batch, places, places), np.float32)
    sums = cupy.empty(size[:3], np.float32)
    kernels = load_kernels(dtype, width)
    ours, theirs = [], []
    for run in range(WARM_UP + runs):
        pair = (
            milliseconds(cupy, lambda: averaged_attention(queries, keys, averaged, sums)),
            milliseconds(cupy, lambda: plain(cupy, queries, keys, layers)),
        )
        if run >= WARM_UP:
            ours.append(pair[0])
            theirs.append(pair[1])
    flops = 4 * batch * layers * heads * places**2 * width
    time = statistics.median(ours)
    return {
        "kernel_ms": time,
        "cupy_ms": statistics.median(theirs),
        "ratio": statistics.median(theirs) / time,
        "teraflops": flops / time / 1e9,
        "largest_difference": float(abs(averaged - plain(cupy, queries, keys, layers)).max()),
        "registers": {name: kernel.function.num_regs for name, kernel in kernels.items()},
        "local_bytes": {name: kernel.function.local_size_bytes for name, kernel in kernels.items()},
    }


def main() -> None:
    """Time every shape, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    gpus = find_gpus()
    if gpus.first is None:
        print(f"Nothing was timed: this needs an NVIDIA GPU ({gpus.reason}).")
        return
    cupy = import_cupy()
    record: dict[str, Any] = {**environment("cupy-cuda13x"), "dtype": arguments.dtype, "shapes": {}}
    for name, shape in SHAPES.items():
        timed = measure(cupy, shape, arguments.dtype, arguments.runs)
        cupy.get_default_memory_pool().free_all_blocks()
        record["shapes"][name] = timed
        print(
            f"{name:26} {timed['kernel_ms']:8.3f} ms, CuPy {timed['cupy_ms']:8.3f} ms, {timed['ratio']:5.1f} times, "
            f"{timed['teraflops']:6.1f} TFLOP/s, differs by {timed['largest_difference']:.1e}"
        )
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
