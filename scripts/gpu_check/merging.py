"""Merging on the GPU: the golden masks, label for label, and the time of each stage.

Both are done twice: by the functions of `diffseg.methods`, and as a segmenter does it, with the fused kernels.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from bench.merge import make_maps
from bench.record import ROOT
from diffseg.arrays import to_host
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.methods.aggregate import aggregate_and_count, aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffseg.placement import Placement
from gpu_check.context import CheckFailedError, Context
from gpu_check.timing import device_seconds, milliseconds
from PIL import Image

GOLDEN = ROOT / "tests" / "golden"
TAUS = ("0.3", "0.6", "1.1")
AGREEMENT = 0.9999
THRESHOLD = 0.6


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Compare with the golden masks, then time aggregation, merging and suppression."""
    xp = arrays(context)
    seeds = sorted({int(path.name[4]) for path in GOLDEN.glob("seed*_f64.png")})
    golden: dict[str, float] = {}
    for seed in seeds[:1] if context.rehearse else seeds:
        golden |= golden_agreement(xp, seed)
        yield {"golden": golden}
    if wrong := {name: share for name, share in golden.items() if share < AGREEMENT}:
        raise CheckFailedError(f"labels differ from the golden masks (share of equal pixels): {wrong}")
    times = {}
    for grid in (64,) if context.rehearse else (64, 128):
        times[f"{grid}x{grid}"] = stage_times(xp, grid, context.runs)
        yield {"times": times}


def arrays(context: Context) -> Any:  # noqa: ANN401 - a module
    """CuPy; NumPy in a rehearsal."""
    if context.rehearse:
        return np
    import cupy

    return cupy


def golden_agreement(xp: Any, seed: int) -> dict[str, float]:  # noqa: ANN401 - a module
    """Share of equal pixels for each golden mask of a seed."""
    case = [xp.asarray(maps) for maps in _maker().case(seed)]
    attention = aggregate_attention(case)
    averaged = [maps if maps.ndim == 2 else xp.mean(maps, axis=0) for maps in case]  # as networks return them
    found = {}
    for tau in TAUS:
        path = GOLDEN / f"seed{seed}_tau{tau}_f64.png"
        labels = to_host(non_max_suppression(merge_attention(attention, [float(tau)] * 3)))
        golden = np.asarray(Image.open(path))
        found[path.stem] = float((labels == golden).mean())
        labels = segment(averaged, float(tau), golden.shape)
        dense = np.unique(golden, return_inverse=True)[1].reshape(golden.shape)
        found[f"{path.stem}, as segmented"] = float((labels == dense).mean())
    return found


def segment(maps: Any, threshold: float, image: tuple[int, ...], grid: int = 64) -> np.ndarray[Any, Any]:  # noqa: ANN401
    """Make the labels of an image (height, width) from a network's maps, which stay as they are."""
    values, mended = aggregate_and_count(maps)
    size = (8 * grid, 8 * grid)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)  # one colour would be one segment
    placement = Placement((image[0], image[1]), size, 0, 0, image[0], image[1])
    settings = MergeSettings((threshold,) * 3, 16, "none")
    return AggregatedAttention(values, pixels, placement, mended).masks(settings, {})[0]


def stage_times(xp: Any, grid: int, runs: int) -> dict[str, Any]:  # noqa: ANN401 - a module
    """Time of each stage on the device, and of all until the labels are on the host, on the clock."""
    size = (8 * grid, 8 * grid)
    maps = [xp.asarray(each) for each in make_maps(grid)]
    attention = aggregate_attention(maps)
    proposals = merge_attention(attention, THRESHOLD)

    def everything() -> np.ndarray[Any, Any]:
        return to_host(non_max_suppression(merge_attention(aggregate_attention(maps), THRESHOLD), size))

    stages = {
        "aggregate": lambda: aggregate_attention(maps),
        "merge": lambda: merge_attention(attention, THRESHOLD),
        "suppress": lambda: non_max_suppression(proposals, size),
    }
    found = {stage: milliseconds(device_seconds(xp, work, runs)) for stage, work in stages.items()}
    whole = {"all_with_copy": everything}
    for name, image in {"as segmented": size, "as segmented, 12 megapixels": (3000, 4000)}.items():
        whole[name] = partial(segment, maps, THRESHOLD, image, grid)
    for name, work in whole.items():
        walls = []
        for _ in range(runs + 1):
            begin = time.perf_counter()
            work()
            walls.append(time.perf_counter() - begin)
        found[name] = milliseconds(walls[1:])  # without the first, which compiles kernels
    return {"proposals": int(proposals.shape[0]), "milliseconds": found}


def _maker() -> ModuleType:
    """The module that makes the golden masks' attention."""
    path: Path = GOLDEN / "make_attention.py"
    spec = importlib.util.spec_from_file_location("make_attention", path)
    if spec is None or spec.loader is None:
        raise CheckFailedError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
