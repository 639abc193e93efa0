"""Durations: of work on the device, and of images from the host to labels on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
from bench.record import percentiles
from diffseg import Segmenter
from diffseg.engines import Bundle, example_images
from diffseg.image import fit_image, read_image
from gpu_check.context import WARM_UP
from numpy.typing import NDArray

milliseconds = partial(percentiles, unit=1e-3)


def device_seconds(xp: Any, work: Callable[[], Any], runs: int) -> list[float]:  # noqa: ANN401 - untyped upstream
    """Return the seconds of each of `runs` calls after a warm-up: on the GPU for CuPy, wall time for NumPy."""
    found = []
    for run in range(WARM_UP + runs):
        if xp is np:
            begin = time.perf_counter()
            work()
            seconds = time.perf_counter() - begin
        else:
            start, end = xp.cuda.Event(), xp.cuda.Event()
            start.record()
            work()
            end.record()
            end.synchronize()
            seconds = xp.cuda.get_elapsed_time(start, end) / 1e3
        if run >= WARM_UP:
            found.append(seconds)
    return found


def network_images(bundle: Bundle, count: int) -> list[NDArray[np.uint8]]:
    """Example images at the network's size, (H, W, 3) each; repeated if more are asked for."""
    size = bundle.manifest.image_size
    pixels = [fit_image(read_image(path), size, "stretch")[0] for path in example_images()]
    return list(islice(cycle(pixels), count))


def latency(
    segmenter: Segmenter, images: Sequence[NDArray[np.uint8]], runs: int, warm_up: int = WARM_UP
) -> dict[str, Any]:
    """Milliseconds per image, one at a time, from uint8 on the host to labels on the host; in all and by stage.

    Labels are not refined: refinements run on the CPU.
    """
    begin = time.perf_counter()
    segmenter(images[0], refine="none")
    first = time.perf_counter() - begin
    for image in images[:warm_up]:
        segmenter(image, refine="none")
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    for image in islice(cycle(images), runs):
        begin = time.perf_counter()
        timings = segmenter(image, refine="none").timings
        totals.append(time.perf_counter() - begin)
        for stage, seconds in timings.items():
            stages.setdefault(stage, []).append(seconds)
    by_stage = {stage: milliseconds(seconds) for stage, seconds in stages.items()}
    return {"first_image_seconds": round(first, 2), "milliseconds": {"total": milliseconds(totals), **by_stage}}


def share_of_gemm(bundle: Bundle, seconds: float, gemm: float) -> dict[str, float]:
    """TFLOP/s of the two graphs at some seconds per image, and their share of a matrix product's rate, if known."""
    rate = sum(graph.flops for graph in bundle.manifest.graphs.values()) / seconds / 1e12
    return {"tflops": round(rate, 3)} | ({"share_of_gemm": round(rate / gemm, 4)} if gemm else {})


def gpu_memory() -> dict[str, float]:
    """Gigabytes in use on the GPU, of all processes; empty without CuPy."""
    try:
        import cupy

        free, whole = cupy.cuda.runtime.memGetInfo()
    except Exception:  # noqa: BLE001 - CuPy without a GPU raises many things
        return {}
    return {"gpu_memory_gb": round((whole - free) / 1e9, 2)}
