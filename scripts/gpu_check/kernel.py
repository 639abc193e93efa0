"""The attention kernel on the GPU: its results compared with the NumPy twin's, and its time by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from bench.kernel import SHAPES as TIMED
from bench.kernel import measure
from diffseg.engines.kernels.twin import averaged_attention as twin
from gpu_check.context import CheckFailedError, Context

SHAPES = {  # batch, layers·heads, nq, nk, width
    "64x64 of SD 1.5": (1, 40, 4096, 4096, 40),
    "32x32 of SD 1.5": (1, 40, 1024, 1024, 80),
    "16x16 of SD 1.5": (2, 40, 256, 256, 160),
    "8x8 of SD 1.5": (1, 8, 64, 64, 160),
    "5x5": (2, 8, 25, 25, 40),
    "12x20": (3, 10, 240, 240, 64),
}
TOLERANCE = 1e-4
"""Largest difference, in multiples of the largest entry of the twin's map."""


def check(_: Context) -> Iterator[dict[str, Any]]:
    """Compare every shape and type with the twin."""
    import cupy
    from diffseg.engines.kernels.launch import averaged_attention

    found: dict[str, dict[str, float]] = {}
    for name, shape in sorted(SHAPES.items(), key=lambda item: item[1][2]):  # the small ones first
        for dtype in ("float16", "float32"):
            found[f"{name}, {dtype}"] = difference(
                lambda q, k: cupy.asnumpy(averaged_attention(cupy.asarray(q), cupy.asarray(k))), shape, dtype
            )
            yield {"differences": found}
    if wrong := {name: each["relative"] for name, each in found.items() if not each["relative"] <= TOLERANCE}:
        raise CheckFailedError(f"the kernel differs from its twin by more than {TOLERANCE:g}: {wrong}")


def time(context: Context) -> Iterator[dict[str, Any]]:
    """Time every shape of scripts/bench/kernel.py in fp16."""
    import cupy

    times = {}
    for name, shape in TIMED.items():
        times[name] = measure(cupy, shape, "float16", min(context.runs, 50))
        cupy.get_default_memory_pool().free_all_blocks()
        yield {"times": times}


def difference(function: Callable[[Any, Any], Any], shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    """Largest difference of a function from the twin, by itself and relative to the twin's largest entry."""
    batch, heads, nq, nk, width = shape
    random = np.random.default_rng(0)
    queries = (random.standard_normal((batch, heads, nq, width), np.float32) * 2 / np.sqrt(width)).astype(dtype)
    keys = (random.standard_normal((batch, heads, nk, width), np.float32) * 2).astype(dtype)
    expected = twin(queries, keys)
    largest = float(abs(function(queries, keys) - expected).max())
    return {"largest": largest, "relative": largest / float(expected.max())}
