"""Charts of a report, described as shapes with coordinates in pixels. A template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffseg.measure.profile.table import milliseconds

WIDTH = 880
NARROWEST_LABEL = 78  # width in pixels of the narrowest bar that gets a label
BARS = 24  # maximum number of bars of a histogram


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle. `style` is its CSS class; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    style: str = "bar"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A circle around its centre."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line. `style` is its CSS class."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True, slots=True)
class Label:
    """Text. `anchor` states which part of it is at `x`."""

    x: float
    y: int
    text: str
    anchor: str = "start"
    style: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. `label` is its description for screen readers."""

    label: str
    height: int
    boxes: Sequence[Box] = ()
    dots: Sequence[Dot] = ()
    lines: Sequence[Line] = ()
    labels: Sequence[Label] = ()
    width: int = WIDTH


def stage_bar(shares: dict[str, tuple[float, float]]) -> Chart:
    """Draw one bar that is divided into all stages, from the mean seconds and the share of each."""
    height, x, boxes, labels = 56, 0.0, list[Box](), list[Label]()
    for stage, (seconds, share) in shares.items():
        width = max(share, 0) * WIDTH
        boxes.append(Box(x, 0, width, height, stage, f"{stage}: {milliseconds(seconds)} ms, {share:.1%}"))
        if width >= NARROWEST_LABEL:
            middle = x + width / 2
            labels += [Label(middle, 24, stage, "middle", "on"), Label(middle, 42, f"{share:.0%}", "middle", "on")]
        x += width
    return Chart("Share of each stage", height, boxes=boxes, labels=labels)


def histogram(seconds: Sequence[float], median: float, p95: float) -> Chart:
    """Draw a histogram of the times of the runs, with the median and the 95th percentile."""
    height, base, top = 200, 170, 36
    values = np.asarray(seconds) * 1000
    counts, edges = np.histogram(values, bins=min(BARS, max(4, round(2 * len(values) ** 0.5))))
    low, width = edges[0], edges[-1] - edges[0]
    scale = (base - top) / counts.max()

    def place(value: float) -> float:
        return float(8 + (value - low) / width * (WIDTH - 16))

    boxes = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        tall = count * scale
        x, wide = place(left) + 1, place(right) - place(left) - 2
        boxes.append(Box(x, base - tall, wide, tall, title=f"{left:.1f} to {right:.1f} ms: {count}"))
    lines = [Line(0, base, WIDTH, base, "axis")]
    ticks = ((edges[0], "start"), ((edges[0] + edges[-1]) / 2, "middle"), (edges[-1], "end"))
    labels = [Label(place(value), base + 20, f"{value:.0f} ms", anchor) for value, anchor in ticks]
    for name, value, y in (("median", median * 1000, 12), ("p95", p95 * 1000, 28)):
        anchor, shift = ("end", -5) if value > low + width * 0.85 else ("start", 5)
        lines.append(Line(place(value), 2, place(value), base, "mark"))
        labels.append(Label(place(value) + shift, y, f"{name} {value:.0f} ms", anchor))
    return Chart("Histogram of the runs", height, boxes=boxes, lines=lines, labels=labels)


def sequence(seconds: Sequence[float], median: float) -> Chart:
    """Draw the times of the runs in the order in which they were taken, with their median. The axis begins at 0."""
    height, base = 120, 96
    scale = (base - 10) / max(seconds)
    step = WIDTH / len(seconds)
    dots = [
        Dot((i + 0.5) * step, base - value * scale, f"run {i + 1}: {milliseconds(value)} ms")
        for i, value in enumerate(seconds)
    ]
    y = base - median * scale
    lines = [Line(0, y, WIDTH, y, "mark"), Line(0, base, WIDTH, base, "axis")]
    labels = [Label(0, base + 18, "first run"), Label(WIDTH, base + 18, "last run", "end")]
    return Chart("Runs in order", height, dots=dots, lines=lines, labels=labels)


def bars(label: str, rows: Sequence[tuple[str, float, str]]) -> Chart:
    """Draw one horizontal bar per row. A row has a name, a value, and the text after the bar."""
    line, names, room = 24, 190, 170
    largest = max((value for _, value, _ in rows), default=0) or 1
    boxes, labels = [], list[Label]()
    for i, (name, value, text) in enumerate(rows):
        y, width = i * line, value / largest * (WIDTH - names - room)
        boxes.append(Box(names, y + 3, width, line - 7))
        labels += [Label(names - 8, y + 16, name, "end"), Label(names + width + 6, y + 16, text, style="figure")]
    return Chart(label, line * len(rows), boxes=boxes, labels=labels)
