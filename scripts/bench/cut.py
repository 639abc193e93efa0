"""Time the recursive cut of 1,024 places and the eigensolvers behind it, on one core.

    OPENBLAS_NUM_THREADS=1 python scripts/bench/cut.py --out scripts/results/bench_cut.json

The graphs are those of the attention of ordinary images (the example images, by the embedded model) and of seeded
features with regions. Seconds are CPU time of this thread, the best of several, so other programs change them little.
The first division of each graph is also solved by `numpy.linalg.eigh`, and by SciPy's subset solver if it is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
from bench.record import environment, write_record
from diffseg import Segmenter
from diffseg.engines.examples import example_images
from diffseg.methods.cut import CutTree
from diffseg.methods.cut_attention import AttentionCut
from diffseg.methods.eigenvector import second_eigenvector
from numpy.typing import NDArray

SIDE, CHANNELS, REGIONS, SEEDS = 32, 1280, 8, 3
TAUS = {"cut": 0.45, "diffcut": 0.5}


def make_features(seed: int) -> NDArray[np.float32]:
    """Return (1024, 1280) features of a few regions with a gradient and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij")
    centres = rng.random((REGIONS, 2))
    region = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1)
    values = rng.standard_normal((REGIONS, CHANNELS))[region] + 0.5 + 0.3 * rng.standard_normal((SIDE, SIDE, CHANNELS))
    values += np.stack([y, x], -1) @ rng.standard_normal((2, CHANNELS)) * 0.5
    return values.reshape(-1, CHANNELS).astype(np.float32)


def seconds(step: Callable[[], object], repeats: int) -> float:
    """Return the least CPU time of a step in this thread."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        step()
        best = min(best, time.thread_time() - start)
    return round(best, 4)


def solvers(affinity: NDArray[np.float64], repeats: int) -> dict[str, float]:
    """Return the seconds of each solver for the eigenvector of one graph."""
    scale = 1 / np.sqrt(affinity.sum(1))
    matrix = affinity * scale[:, None] * scale
    last = len(matrix) - 1
    found = {
        "ours": seconds(lambda: second_eigenvector(affinity), repeats),
        "numpy": seconds(lambda: np.linalg.eigh(matrix), 1),
    }
    try:
        from scipy.linalg import eigh
    except ImportError:
        return found
    return found | {"scipy": seconds(lambda: eigh(matrix, subset_by_index=[last - 1, last]), repeats)}


def measure(make: Callable[[], CutTree], tau: float, repeats: int) -> dict[str, Any]:
    """Return the seconds of a whole cut with a graph of its own, of a second tau, and of the solvers."""
    tree = make()
    regions = int(tree.labels(tau).max()) + 1
    return {
        "places": tree.size,
        "regions": regions,
        "cut": seconds(lambda: make().labels(tau), repeats),
        "again": seconds(lambda: tree.labels(tau * 0.9), repeats),
        "solvers": solvers(np.asarray(tree.affinity), repeats),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()
    record = environment("numpy", "scipy") | {"threads": os.environ.get("OPENBLAS_NUM_THREADS"), "graphs": {}}
    segmenter = Segmenter.load("tiny", provider="cpu", threads=1)
    for path in example_images():
        attention = np.asarray(segmenter(path, keep_attention=True, refine="none").kept_attention().values)
        record["graphs"][f"attention of {path.stem}"] = measure(
            lambda attention=attention: AttentionCut.of(attention).tree, TAUS["cut"], arguments.repeats
        )
    for seed in range(SEEDS):
        features = make_features(seed)
        record["graphs"][f"features {seed}"] = measure(
            lambda features=features: CutTree.of_features(features), TAUS["diffcut"], arguments.repeats
        )
    for name, found in record["graphs"].items():
        print(f"{name}: {found}")
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
