"""A profile as one HTML file. Requires the `reports` extra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffseg.measure.profile.charts import Chart, bars, histogram, sequence, stage_bar
from diffseg.measure.profile.record import ProfileRecord
from diffseg.measure.profile.startup import STEPS
from diffseg.measure.profile.table import (
    STATISTICS,
    drift_line,
    memory_line,
    milliseconds,
    operators_line,
    start_lines,
    subject,
    warnings,
)
from diffseg.measure.reports.templates import render
from msgspec import to_builtins

TOP_KINDS, TOP_NODES = 12, 15
COLOURS = {
    "decode": "#64748b",
    "resize": "#8a6d3b",
    "encode": "#2f6fca",
    "attend": "#c2571a",
    "aggregate": "#1b8071",
    "merge": "#7a4cc2",
    "cut": "#5a67d8",
    "refine": "#b83280",
    "suppress": "#94700a",
    "write": "#55801f",
    "other": "#7f858c",
}


def render_report(profile: ProfileRecord) -> str:
    """Return the HTML text of a report of a profile.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    record = to_builtins(profile)  # the template takes plain data, as in the JSON file
    operators = record["operators"]
    return render(
        "profile.html",
        record=record,
        colours=COLOURS,
        columns=STATISTICS,
        milliseconds=milliseconds,
        subject=subject(profile),
        tiles=_tiles(record),
        warnings=warnings(profile),
        charts=_charts(record),
        drift=drift_line(profile.drift),
        operators_line=profile.operators and operators_line(profile.operators),
        nodes=[
            (row["name"], row["kind"], row["graph"], milliseconds(row["seconds"]), f"{row['share']:.1%}")
            for row in (operators["nodes"][:TOP_NODES] if operators else ())
        ],
        starts=list(start_lines(profile)),
        memory=memory_line(profile),
        facts=list(_flat(record["environment"])),
        images=[image["name"] for image in record["images"]],
    )


def _tiles(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures at the top of the report, each with its name."""
    whole = record["statistics"]["total"]
    tiles = [
        (f"{milliseconds(whole['median'])} ms", "median run"),
        (f"{milliseconds(whole['p95'])} ms", "p95"),
        (f"{record['images_per_second']:.2f}", "images per second"),
    ]
    if record["fresh_processes"]:
        tiles.append((f"{min(record['fresh_processes']['first_masks']):.2f} s", "process start to first masks"))
    peak = record["peak_resident_bytes"]["after_runs"]
    if peak is not None:
        tiles.append((f"{peak / 1e6:.0f} MB", "peak resident memory"))
    return tiles


def _charts(record: dict[str, Any]) -> dict[str, Chart | None]:
    """Return all charts by name. A chart is None if its values were not measured."""
    statistics, seconds, whole = record["statistics"], record["seconds"]["total"], record["statistics"]["total"]
    operators, processes, concurrency = record["operators"], record["fresh_processes"], record["concurrency"]
    kinds = [
        (row["kind"], row["seconds"], f"{milliseconds(row['seconds'])}  ({row['calls']:.0f} ×, {row['share']:.0%})")
        for row in (operators["kinds"][:TOP_KINDS] if operators else ())
    ]
    starts = [(step, min(processes[step])) for step in STEPS] if processes else []
    threads = [
        (
            f"{row['threads']} at once",
            row["images_per_second"],
            f"{row['images_per_second']:.2f} images/s ({row['relative']:.2f} ×)",
        )
        for row in concurrency
    ]
    return {
        "stages": stage_bar({s: (row["mean"], row["share"]) for s, row in statistics.items() if s != "total"}),
        "histogram": histogram(seconds, whole["median"], whole["p95"]),
        "sequence": sequence(seconds, whole["median"]),
        "operators": bars("Time by kind of operator", kinds) if kinds else None,
        "start": bars("Steps of the start", [(s, v, f"{milliseconds(v)} ms") for s, v in starts]) if starts else None,
        "concurrency": bars("Images per second by number of threads", threads) if threads else None,
    }


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested facts as rows, without those that the system does not report."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}, ")
        elif value is not None:
            yield name, " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
