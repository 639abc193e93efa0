"""Time aggregation, merging, suppression and placement on the CPU, relative to a matrix product in the same process.

    python scripts/bench/merge.py [--grid 64] [--repeats 7] [--out scripts/results/bench_merge.json]

Seconds depend on the machine; the multiples of a 4096 x 4096 x 4096 float32 product compare between machines. The
steps interleave with that product, so that both see the same load. The plain NumPy code that this package grew out of
is timed for comparison: whole arrays, two matrix products, no blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
from bench.record import environment, write_record
from diffseg.labels import Segment, place_labels
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_indices, merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffseg.placement import Placement
from numpy.typing import NDArray

GEMM = 4096


def make_maps(grid: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Return head-averaged attention of four resolutions that shows regions; its rows sum to 1."""
    rng = np.random.default_rng(seed)
    maps = []
    for n in (grid, grid // 2, grid // 4, grid // 8):
        y, x = np.meshgrid(*[(np.arange(n, dtype=np.float32) + 0.5) / n] * 2, indexing="ij")
        f = np.stack([np.sin(9 * x), np.cos(7 * y), np.sign(np.sin(5 * x + 3 * y)), x, y], -1).reshape(n * n, -1)
        f += 0.1 * rng.standard_normal(f.shape, np.float32)
        scores = 2 * f @ f.T - (f * f).sum(-1)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        maps.append(scores)
    return maps


def aggregate_whole(maps: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Aggregate on whole arrays: the prototype, for comparison."""
    n = round(maps[0].shape[0] ** 0.5)
    total = np.zeros((n, n, n, n), np.float32)
    for attention in maps:
        side = round(attention.shape[0] ** 0.5)
        position = np.clip((np.arange(n) + 0.5) * side / n - 0.5, 0, side - 1)
        hat = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(side))).astype(np.float32)  # (n, side)
        keys = hat @ attention.reshape(side, side, side, side) @ hat.T if side < n else attention.reshape(n, n, n, n)
        keys = keys / keys.sum((2, 3), keepdims=True)
        total += keys.repeat(n // side, 0).repeat(n // side, 1) * np.float32(side)
    return total / sum(round(m.shape[0] ** 0.5) for m in maps)


def merge_whole(attention: NDArray[np.float32], threshold: float, anchors: int = 16) -> NDArray[np.float32]:
    """Compute round 1 on whole arrays: the prototype, for comparison."""
    n = attention.shape[0]
    maps = attention.reshape(n * n, n * n)
    logs = np.log(np.maximum(maps, 1e-38))
    terms = (maps * logs).sum(-1)
    picked = anchor_indices(n, n, anchors)
    cross = maps[picked] @ logs.T + logs[picked] @ maps.T
    near = (terms[picked][:, None] + terms[None] - cross < 2 * threshold).astype(np.float32)
    return near @ maps / near.sum(1, keepdims=True)


def make_labels(size: int, count: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return (size, size) labels of `count` regions with straight borders."""
    centres = np.random.default_rng(seed).random((count, 2)) * size
    y, x = np.mgrid[:size, :size]
    distance = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    return distance.argmin(-1).astype(np.uint16)


def place_by_mask(labels: NDArray[np.uint16], placement: Placement) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
    """Place labels with one comparison of the whole map per label: the earlier code, for comparison."""
    rows, columns = placement.indices()
    height, width = labels.shape
    area = np.outer(np.bincount(rows, minlength=height), np.bincount(columns, minlength=width))
    areas = np.bincount(labels.ravel(), weights=area.ravel()).astype(np.int64)
    kept = np.flatnonzero(areas)
    dense = np.zeros(len(areas), dtype=np.uint16)
    dense[kept] = np.arange(len(kept), dtype=np.uint16)
    segments = []
    for label, old in enumerate(kept):
        mask = (labels == old) & (area > 0)
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom = np.searchsorted(rows, y[0], "left"), np.searchsorted(rows, y[-1], "right")
        left, right = np.searchsorted(columns, x[0], "left"), np.searchsorted(columns, x[-1], "right")
        segments.append(Segment(label, int(areas[old]), (int(left), int(top), int(right - left), int(bottom - top))))
    return dense[labels][rows[:, None], columns[None, :]], tuple(sorted(segments, key=lambda s: (-s.area, s.label)))


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each step, measured in rounds after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_megabytes(step: Callable[[], object]) -> float:
    """Return the peak memory of a step, without its inputs."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=64, help="side of the finest map: 64 for 512 px, 128 for 1024 px")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threshold", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()

    maps, t = make_maps(arguments.grid), arguments.threshold
    attention = aggregate_attention(maps)
    proposals = merge_attention(attention, t)
    scratch = [m.copy() for m in maps]
    size = (8 * arguments.grid, 8 * arguments.grid)
    labels, placement = make_labels(512, 20), Placement((512, 512), (512, 512), 0, 0, 512, 512)
    left, right = (np.random.default_rng(i).random((GEMM, GEMM), np.float32) for i in (1, 2))
    steps: dict[str, Callable[[], object]] = {
        "gemm": lambda: left @ right,
        "aggregate": lambda: aggregate_attention(maps),
        "aggregate in place": lambda: aggregate_attention(scratch, out=scratch[0]),
        "merge": lambda: merge_attention(attention, t),
        "suppress": lambda: non_max_suppression(proposals, size),
        "refine": lambda: kmeans_refine(attention, proposals),
        "place 20 masks": lambda: place_labels(labels, placement),
        "place by mask": lambda: place_by_mask(labels, placement),
        "plain numpy aggregate": lambda: aggregate_whole(maps),
        "plain numpy round 1": lambda: merge_whole(attention, t),
    }
    seconds = {name: statistics.median(values) for name, values in measure(steps, arguments.repeats).items()}
    record = {
        **environment("numpy"),
        "grid": arguments.grid,
        "proposals": len(proposals),
        "repeats": arguments.repeats,
        "seconds_median": seconds,
        "multiple_of_gemm": {name: s / seconds["gemm"] for name, s in seconds.items()},
        "gemm_gflops": 2 * GEMM**3 / seconds["gemm"] / 1e9,
        "peak_megabytes": {name: peak_megabytes(steps[name]) for name in ("aggregate", "merge", "suppress")},
    }
    print(f"{arguments.grid} x {arguments.grid} maps, {len(proposals)} proposals; median of {arguments.repeats}")
    print("place 20 masks: labels of 512 x 512 pixels; place by mask: the earlier code, one comparison per label")
    print(f"{'step':22}{'seconds':>10}{'x GEMM':>10}{'peak MB':>10}")
    for name, s in seconds.items():
        peak = record["peak_megabytes"].get(name)
        print(f"{name:22}{s:10.4f}{s / seconds['gemm']:10.4f}{'' if peak is None else f'{peak:10.0f}'}")
    print(
        f"gemm: {record['gemm_gflops']:.0f} GFLOP/s; "
        f"aggregate's peak includes its {4 * arguments.grid**4 / 1e6:.0f} MB result"
    )
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
