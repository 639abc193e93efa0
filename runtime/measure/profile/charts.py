"""Charts of a report, as SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from diffseg.measure.profile.table import milliseconds

WIDTH = 880
NARROWEST_LABEL = 78  # pixels of a bar that a name and its share fit into
BARS = 24  # of a histogram, at most


def stage_bar(shares: dict[str, tuple[float, float]]) -> str:
    """One bar of all stages: mean seconds and share of each."""
    height, x, parts = 56, 0.0, []
    for stage, (seconds, share) in shares.items():
        width = max(share, 0) * WIDTH
        title = f"<title>{escape(stage)}: {milliseconds(seconds)} ms, {share:.1%}</title>"
        parts.append(
            f'<rect class="{escape(stage)}" x="{x:.1f}" width="{width:.1f}" height="{height}" rx="2">{title}</rect>'
        )
        if width >= NARROWEST_LABEL:
            middle = x + width / 2
            parts.append(
                f'<text class="on" x="{middle:.1f}" y="24">{escape(stage)}</text>'
                f'<text class="on" x="{middle:.1f}" y="42">{share:.0%}</text>'
            )
        x += width
    return _svg(height, parts, "Share of each stage")


def histogram(seconds: Sequence[float], median: float, p95: float) -> str:
    """How often a run took how long, with the median and the 95th percentile."""
    height, base, top = 200, 170, 36
    values = np.asarray(seconds) * 1000
    counts, edges = np.histogram(values, bins=min(BARS, max(4, round(2 * len(values) ** 0.5))))
    low, width = edges[0], edges[-1] - edges[0]
    scale = (base - top) / counts.max()

    def place(value: float) -> float:
        return float(8 + (value - low) / width * (WIDTH - 16))

    parts = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        tall = count * scale
        x, wide = place(left) + 1, place(right) - place(left) - 2
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}"><title>'
            f"{left:.1f} to {right:.1f} ms: {count}</title></rect>"
        )
    parts.append(f'<line class="axis" x1="0" x2="{WIDTH}" y1="{base}" y2="{base}"/>')
    for value, anchor in ((edges[0], "start"), ((edges[0] + edges[-1]) / 2, "middle"), (edges[-1], "end")):
        parts.append(f'<text x="{place(value):.1f}" y="{base + 20}" text-anchor="{anchor}">{value:.0f} ms</text>')
    for name, value, y in (("median", median * 1000, 12), ("p95", p95 * 1000, 28)):
        side, shift = ("end", -5) if value > low + width * 0.85 else ("start", 5)
        parts.append(
            f'<line class="mark" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="2" y2="{base}"/>'
            f'<text x="{place(value) + shift:.1f}" y="{y}" text-anchor="{side}">{name} {value:.0f} ms</text>'
        )
    return _svg(height, parts, "Histogram of the runs")


def sequence(seconds: Sequence[float], median: float) -> str:
    """Runs in the order in which they were taken, from 0, with their median."""
    height, base = 120, 96
    scale = (base - 10) / max(seconds)
    step = WIDTH / len(seconds)
    parts = [
        f'<circle class="bar" cx="{(i + 0.5) * step:.1f}" cy="{base - value * scale:.1f}" r="4">'
        f"<title>run {i + 1}: {milliseconds(value)} ms</title></circle>"
        for i, value in enumerate(seconds)
    ]
    y = base - median * scale
    parts.append(f'<line class="mark" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<line class="axis" x1="0" x2="{WIDTH}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="0" y="{base + 18}">first run</text>')
    parts.append(f'<text x="{WIDTH}" y="{base + 18}" text-anchor="end">last run</text>')
    return _svg(height, parts, "Runs in order")


def bars(rows: Sequence[tuple[str, float, str]], style: str = "bar") -> str:
    """One horizontal bar a row: name, value, and what is written behind it."""
    line, names, room = 24, 190, 170
    largest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for i, (name, value, text) in enumerate(rows):
        y, width = i * line, value / largest * (WIDTH - names - room)
        parts.append(
            f'<text x="{names - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{style}" x="{names}" y="{y + 3}" width="{width:.1f}" height="{line - 7}" rx="2"/>'
            f'<text class="figure" x="{names + width + 6:.1f}" y="{y + 16}">{escape(text)}</text>'
        )
    return _svg(line * len(rows), parts, "Bars")


def _svg(height: int, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
