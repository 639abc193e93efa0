"""A profile as trace events, for https://ui.perfetto.dev and chrome://tracing.

diffseg has its own writer, because the format is a list of small JSON objects, and Perfetto's package needs protobuf.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffseg.engines.providers.operators import Operator
from diffseg.measure.profile.record import ProfileRecord
from diffseg.measure.profile.recorder import Span
from diffseg.measure.profile.runs import Run, Spans
from msgspec import to_builtins

TIMED, OPERATORS, CONCURRENT = 1, 2, 100  # process numbers; the runs with n threads have 100 + n


def trace_events(record: ProfileRecord, spans: Spans) -> dict[str, Any]:
    """Return a trace in Chrome's format: one process per pass, one track per thread, times in microseconds.

    Each span is a complete (`X`) event. Stages lie inside their run, and operators inside `encode` and `attend`.
    """
    concurrent = [span for level in spans.concurrent.values() for span in level]
    everything = [run.span for run in (*spans.runs, *spans.operator_runs)] + concurrent
    origin = min(span.start for span in everything)
    names = [image.name for image in record.images]
    events = [_process(TIMED, "timed runs"), *_runs(TIMED, spans.runs, names, origin)]
    if spans.operator_runs:
        events += [
            _process(OPERATORS, "runs with operators, slower"),
            *_runs(OPERATORS, spans.operator_runs, names, origin),
        ]
        events += [_operator(operator, origin) for operator in spans.operators]
    for level, level_spans in spans.concurrent.items():
        process = CONCURRENT + level
        tracks = {thread: i + 1 for i, thread in enumerate(sorted({span.thread for span in level_spans}))}
        events.append(_process(process, f"{level} at once"))
        events += [_complete(process, tracks[span.thread], span, origin, "stage") for span in level_spans]
    metadata = to_builtins({"date": record.date, "settings": record.settings, "environment": record.environment})
    ordered = sorted(events, key=lambda event: (event.get("ts", -1.0), -event.get("dur", 0.0)))  # outer ones first
    return {"traceEvents": ordered, "displayTimeUnit": "ms", "otherData": metadata}


def _runs(process: int, runs: Iterable[Run], names: list[str], origin: int) -> Iterable[dict[str, Any]]:
    tracks: dict[int, int] = {}  # track 1 is the thread of the runs; a pipeline may have more threads
    for run in runs:
        event = _complete(process, tracks.setdefault(run.span.thread, len(tracks) + 1), run.span, origin, "run")
        yield {**event, "name": ", ".join(names[i] for i in run.images)}
        for span in run.stages:
            yield _complete(process, tracks.setdefault(span.thread, len(tracks) + 1), span, origin, "stage")


def _process(process: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}


def _complete(process: int, thread: int, span: Span, origin: int, category: str) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": category,
        "name": span.stage,
        "pid": process,
        "tid": thread,
        "ts": (span.start - origin) / 1000,
        "dur": (span.end - span.start) / 1000,
    }


def _operator(operator: Operator, origin: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "operator",
        "name": operator.kind,
        "pid": OPERATORS,
        "tid": 1,
        "ts": (operator.start - origin) / 1000,
        "dur": operator.duration / 1000,
        "args": {"node": operator.name, "graph": operator.graph},
    }
