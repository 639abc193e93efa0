"""A profile as one HTML file: no script, nothing loaded from elsewhere, light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from diffseg.measure.profile.charts import bars, histogram, sequence, stage_bar
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

TOP_KINDS, TOP_NODES = 12, 15
COLOURS = {
    "decode": "#64748b",
    "resize": "#8a6d3b",
    "encode": "#2f6fca",
    "attend": "#c2571a",
    "aggregate": "#1b8071",
    "merge": "#7a4cc2",
    "refine": "#b83280",
    "suppress": "#94700a",
    "write": "#55801f",
    "other": "#7f858c",
}
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1d2430; --soft: #5b6675; --line: #d9dee5; --card: #f4f6f9;
  --bar: #2f6fca; --mark: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #e6eaf0; --soft: #9aa6b5; --line: #303946;
  --card: #1b212a; --bar: #6ba1ee; --mark: #f0925a; } }
body { margin: 0 auto; padding: 28px 24px; max-width: 880px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 24px; } h2 { margin: 30px 0 8px; font-size: 17px; }
p { margin: 4px 0 10px; color: var(--soft); }
p.warning { padding: 8px 12px; border-left: 4px solid var(--mark); background: var(--card); color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.tiles div { padding: 10px 14px; border-radius: 8px; background: var(--card); }
.tiles b { display: block; font-size: 22px; } .tiles span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-size: 13px; }
svg text { fill: var(--soft); } svg text.on { fill: #fff; text-anchor: middle; font-weight: 600; }
svg text.figure { fill: var(--ink); } .bar { fill: var(--bar); }
.axis { stroke: var(--line); } .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; }
table { width: 100%; margin-top: 10px; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.text td, .text th { text-align: left; overflow-wrap: anywhere; } .text td:first-child { white-space: nowrap; }
i { display: inline-block; width: 10px; height: 10px; margin-right: 7px; border-radius: 2px; }
""" + "\n".join(f".{stage} {{ fill: {colour}; background: {colour}; }}" for stage, colour in COLOURS.items())


def render_report(record: dict[str, Any]) -> str:
    """Draw the record of a profile; see `take_profile`."""
    statistics, settings = record["statistics"], record["settings"]
    whole = statistics["total"]
    a_run = "" if settings["batch"] == 1 else f" of {settings['batch']} images"
    parts = [
        f"<h1>{escape(record['environment']['bundle']['name'])}: where the time goes</h1>",
        f"<p>{escape(subject(record))}; {escape(record['date'])}</p>",
        _tiles(record, whole),
        *(f'<p class="warning">{escape(_sentence(warning))}</p>' for warning in warnings(record)),
        "<h2>Stages</h2>",
        f"<p>From image files to written masks: mean of {len(record['runs'])} runs{a_run}</p>",
        stage_bar({stage: (row["mean"], row["share"]) for stage, row in statistics.items() if stage != "total"}),
        _stage_table(statistics),
        f"<h2>Runs{a_run}</h2>",
        histogram(record["seconds"]["total"], whole["median"], whole["p95"]),
        sequence(record["seconds"]["total"], whole["median"]),
        f"<p>In the order in which they were taken: {escape(drift_line(record['drift']))}</p>",
        *_operators(record),
        *_starts(record),
        *_concurrency(record),
        "<h2>Memory</h2>",
        f"<p>{escape(_sentence(memory_line(record)))}</p>",
        "<h2>Where it was measured</h2>",
        _rows(("", ""), _flat(record["environment"]), "text"),
        f"<p>Images: {escape(', '.join(image['name'] for image in record['images']))}</p>",
        f"<p>Noting a stage cost {record['watching_seconds'] * 1e6:.1f} µs more than in ordinary use</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>diffseg profile</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _tiles(record: dict[str, Any], whole: dict[str, float]) -> str:
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
    return (
        f'<div class="tiles">{"".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles)}</div>'
    )


def _stage_table(statistics: dict[str, dict[str, float]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("milliseconds", *STATISTICS, "share"))
    body = "".join(
        f'<tr><td><i class="{escape(stage)}"></i>{escape(stage)}</td>'
        + "".join(f"<td>{milliseconds(row[name])}</td>" for name in STATISTICS)
        + f"<td>{row['share']:.1%}</td></tr>"
        for stage, row in statistics.items()
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _operators(record: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Operators</h2>"
    operators = record["operators"]
    if operators is None:
        yield f"<p>{escape(record['operators_note'])}</p>"
        return
    yield f"<p>{escape(_sentence(operators_line(operators)))}; milliseconds an image</p>"
    yield bars(
        [
            (row["kind"], row["seconds"], f"{milliseconds(row['seconds'])}  ({row['calls']:.0f} ×, {row['share']:.0%})")
            for row in operators["kinds"][:TOP_KINDS]
        ]
    )
    rows = [
        (row["name"], row["kind"], row["graph"], milliseconds(row["seconds"]), f"{row['share']:.1%}")
        for row in operators["nodes"][:TOP_NODES]
    ]
    yield _rows(("node", "operator", "graph", "ms", "share"), rows, "text")


def _starts(record: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Start</h2>"
    for line in start_lines(record):
        yield f"<p>{escape(_sentence(line))}</p>"
    processes = record["fresh_processes"]
    if processes:
        yield bars([(step, min(processes[step]), f"{milliseconds(min(processes[step]))} ms") for step in STEPS])


def _concurrency(record: dict[str, Any]) -> Iterable[str]:
    if record["concurrency"]:
        yield "<h2>Threads that share the bundle</h2>"
        yield bars(
            [
                (
                    f"{row['threads']} at once",
                    row["images_per_second"],
                    f"{row['images_per_second']:.2f} images/s ({row['relative']:.2f} ×)",
                )
                for row in record["concurrency"]
            ]
        )


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], style: str) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{style}"><tr>{top}</tr>{body}</table></div>'


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as rows; what the system doesn't tell is left out."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}, ")
        elif value is not None:
            yield name, " × ".join(map(str, value)) if isinstance(value, list) else str(value)
