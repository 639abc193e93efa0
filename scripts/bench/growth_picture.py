"""Draw docs/growth.svg: seconds and memory by image size and batch, from the record of bench_cpu.py.

    python scripts/bench/growth_picture.py [--record scripts/results/bench_cpu.json]

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
STAGES = {"encode": "#4c78a8", "attend": "#f58518", "aggregate": "#54a24b", "merge": "#b279a2"}
MEMORY = "#777777"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=ROOT / "scripts" / "results" / "bench_cpu.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "growth.svg")
    arguments = parser.parse_args()
    growth = json.loads(arguments.record.read_text())["growth"]
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "diffseg", "font.size": 10}
    figure, axes = plt.subplots(
        2, 2, figsize=(9, 5.4), sharex="col", gridspec_kw={"width_ratios": [4, 3]}, layout="constrained"
    )
    for column, (rows, key, unit) in enumerate(
        ((growth["sizes"], "size", "px"), (growth["batches"], "batch", "at once"))
    ):
        labels = [f"{row[key]} {unit}" for row in rows]
        draw_seconds(axes[0, column], labels, rows)
        bars = axes[1, column].bar(labels, [row["peak_gb"] for row in rows], 0.6, color=MEMORY)
        axes[1, column].bar_label(bars, fmt="%.1f")
    axes[0, 0].set(ylabel="seconds per image", title="one image, by size")
    axes[0, 1].set(title="four photographs of 512 px, by batch")
    axes[1, 0].set(ylabel="peak memory, GB")
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
    figure.savefig(arguments.out, metadata={"Date": None})
    print(arguments.out)


def draw_seconds(axis: Any, labels: list[str], rows: list[dict[str, Any]]) -> None:  # noqa: ANN401 - untyped upstream
    """Draw the stages as a stacked bar with their sum above it."""
    below = [0.0] * len(rows)
    for stage, colour in STAGES.items():
        seconds = [row["stages"][stage] for row in rows]
        bars = axis.bar(labels, seconds, 0.6, bottom=below, color=colour, label=stage)
        below = [low + more for low, more in zip(below, seconds, strict=True)]
    axis.bar_label(bars, [f"{total:.1f}" for total in below])


if __name__ == "__main__":
    main()
