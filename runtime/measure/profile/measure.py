"""Take a profile: from a bundle and images to a record of figures, and the spans that a trace is drawn from."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.bundle import open_bundle
from diffseg.engines.errors import ProfileError, ProviderError
from diffseg.engines.files import sha256
from diffseg.engines.providers.operators import Operator, RecordsOperators
from diffseg.image import read_image
from diffseg.measure.profile.environment import environment_record
from diffseg.measure.profile.memory import peak_resident
from diffseg.measure.profile.recorder import Recorder, Span, watching_seconds
from diffseg.measure.profile.startup import measure_starts
from diffseg.measure.profile.statistics import Summary, drift
from diffseg.segmenter import Segmenter
from diffseg.stages import STAGES, observing

SCHEMA = 1
OTHER = "other"  # of a run: what no stage covers
TOTAL = "total"
OPERATOR_RUNS = 4
ROUNDS = 2  # of concurrency: up and down again, so that a drift of the machine favours no number of threads


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How much is measured.

    Raises:
        ValueError: a number is out of range.
    """

    runs: int = 20
    warmup: int = 3
    batch: int = 1
    starts: int = 3  # fresh processes
    concurrency: tuple[int, ...] = ()  # threads; 1 is always among them
    operators: bool = True

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("warmup", 0), ("batch", 1), ("starts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if any(threads < 1 for threads in self.concurrency):
            raise ValueError(f"concurrency must be numbers of at least 1, found {list(self.concurrency)}")


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of images, from their files to written masks."""

    images: tuple[int, ...]  # by number
    span: Span
    stages: tuple[Span, ...]

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, with those in which there was none, and the total: less than the sum if stages overlap."""
        stages: dict[str, float] = {}
        idle, end = 0, self.span.start
        for span in sorted(self.stages, key=lambda span: span.start):
            stages[span.stage] = stages.get(span.stage, 0.0) + span.seconds
            idle += max(span.start - end, 0)
            end = max(end, span.end)
        return {**stages, OTHER: (idle + self.span.end - end) / 1e9, TOTAL: self.span.seconds}


@dataclass(frozen=True, slots=True)
class Spans:
    """What a trace shows."""

    runs: list[Run]
    concurrent: dict[int, list[Span]]  # by number of threads
    operator_runs: list[Run]
    operators: list[Operator]


def take_profile(
    model: str,
    images: Sequence[Path],
    settings: ProfileSettings,
    *,
    provider: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], Spans]:
    """Profile a bundle on images.

    A run goes from image files (in the system's cache) to written masks, `settings.batch` images at once. A provider
    must not return from a stage before its results are there, or the wait falls into the stage that needs them.

    Args:
        model: embedded name, bundle folder or hub id.
        images: taken in turn.
        settings: how much is measured.
        provider: as for `Segmenter.load`.
        threads: as for `Segmenter.load`.
        progress: told what comes next.

    Returns:
        The record, ready for JSON, and the spans behind it.

    Raises:
        DiffsegError: no such bundle, provider or image, or a fresh process failed.
        ValueError: a larger batch than the bundle's.
    """
    facts = [_image_facts(path) for path in images]
    environment = environment_record(open_bundle(model))  # before anything that takes time, and raises the load average
    options: dict[str, Any] = {"provider": provider, "threads": threads}
    starts = None
    if settings.starts:
        progress(f"{settings.starts} fresh processes")
        try:
            starts = measure_starts(model, images[0], settings.starts, options)
        except ProfileError:
            Segmenter.load(model, **options)  # says by itself what is wrong, in most cases
            raise
    progress("loading")
    start = time.perf_counter_ns()
    segmenter = Segmenter.load(model, batch=settings.batch, **options)
    load_seconds = (time.perf_counter_ns() - start) / 1e9
    peaks = {"after_load": peak_resident()}
    environment["provider"] = segmenter.provider
    if placement := getattr(segmenter.network, "placement", None):
        environment["placement"] = placement  # nodes by graph and ONNX Runtime's provider
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder, observing(recorder):
        runner = _Runner(segmenter, images, settings.batch, Path(folder), recorder)
        progress("first image")
        first = runner.run(0)
        peaks["after_first_run"] = peak_resident()
        progress(f"{settings.warmup} runs of warm-up, {settings.runs} that count")
        for i in range(settings.warmup):
            runner.run(i)
        runs = [runner.run(i) for i in range(settings.runs)]
        peaks["after_runs"] = peak_resident()
        concurrency, concurrent = _measure_concurrency(runner, settings, progress)
        peaks["after_concurrency"] = peak_resident() if concurrency else None
        progress("operators, in a pass of their own")
        operator_runs, operators, note = _record_operators(
            runner, min(settings.runs, OPERATOR_RUNS) if settings.operators else 0
        )
    seconds = [run.seconds() for run in runs]
    totals = [s[TOTAL] for s in seconds]
    names = [stage for stage in (*STAGES, OTHER, TOTAL) if any(stage in s for s in seconds)]
    samples = {stage: [s.get(stage, 0.0) for s in seconds] for stage in names}
    trend = drift(totals, [runner.group(i) for i in range(settings.runs)])
    record = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**asdict(settings), **options},
        "environment": environment,
        "images": facts,
        "fresh_processes": starts,
        "load_seconds": load_seconds,
        "first_run": first.seconds(),
        "runs": [list(run.images) for run in runs],
        "seconds": samples,
        "statistics": {stage: asdict(Summary.of(values, totals)) for stage, values in samples.items()},
        "images_per_second": settings.batch * len(runs) / sum(totals),
        "drift": {**asdict(trend), "drifting": trend.drifting},
        "peak_resident_bytes": peaks,
        "peak_gpu_bytes": None,
        "concurrency": concurrency,
        "operators": _summarise_operators(operators, operator_runs, settings.batch, totals) if operators else None,
        "operators_note": note,
        "watching_seconds": watching_seconds(),
    }
    return record, Spans(runs, concurrent, operator_runs, operators)


class _Runner:
    """Runs numbered batches of the images; threads may share one."""

    def __init__(
        self, segmenter: Segmenter, images: Sequence[Path], batch: int, folder: Path, recorder: Recorder
    ) -> None:
        self.segmenter, self.images, self.batch, self.folder = segmenter, images, batch, folder
        self.recorder = recorder

    def group(self, number: int) -> int:
        """Which images a run has: the number of its first."""
        return number * self.batch % len(self.images)

    def process(self, number: int) -> None:
        """Segment a batch and write its masks; a file of its own for each of it, over those of other runs."""
        first = self.group(number)
        chosen = [self.images[(first + i) % len(self.images)] for i in range(self.batch)]
        for i, result in enumerate(self.segmenter(chosen)):
            result.save(self.folder, f"{number}_{i}")

    def run(self, number: int) -> Run:
        """Process a batch with every stage noted; for one thread only."""
        self.recorder.take()
        start = time.perf_counter_ns()
        self.process(number)
        span = Span("run", start, time.perf_counter_ns(), threading.get_ident())
        images = tuple((self.group(number) + i) % len(self.images) for i in range(self.batch))
        return Run(images, span, tuple(self.recorder.take()))


def _image_facts(path: Path) -> dict[str, Any]:
    width, height = read_image(path).size  # an image that can't be read is an error before anything is measured
    return {
        "name": path.name, "sha256": sha256(path), "bytes": path.stat().st_size, "width": width, "height": height
    }  # fmt: skip


def _measure_concurrency(
    runner: _Runner, settings: ProfileSettings, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[int, list[Span]]]:
    """Images a second with some numbers of threads that share one Segmenter, and their spans."""
    if not settings.concurrency:
        return [], {}
    levels = sorted({1, *settings.concurrency})
    counts = {level: math.ceil(settings.runs / ROUNDS / level) * level for level in levels}  # nobody idles at the end
    seconds = dict.fromkeys(levels, 0.0)
    spans: dict[int, list[Span]] = {}
    for level in (*levels, *reversed(levels)):
        progress(f"{level} threads" if level > 1 else "1 thread")
        with ThreadPoolExecutor(level) as pool:
            list(pool.map(runner.process, range(level)))  # each thread's first run does not count
            runner.recorder.take()
            start = time.perf_counter_ns()
            list(pool.map(runner.process, range(counts[level])))
            seconds[level] += (time.perf_counter_ns() - start) / 1e9
        spans[level] = runner.recorder.take()
    rates = {level: ROUNDS * counts[level] * runner.batch / seconds[level] for level in levels}
    table = [
        {
            "threads": level,
            "images": ROUNDS * counts[level] * runner.batch,
            "seconds": seconds[level],
            "images_per_second": rates[level],
            "relative": rates[level] / rates[1],
        }
        for level in levels
    ]
    return table, spans


def _record_operators(runner: _Runner, count: int) -> tuple[list[Run], list[Operator], str | None]:
    """Run again with the engine's own profiler on; the note says why there is nothing, or is None."""
    network = runner.segmenter.network
    if not count:
        return [], [], "not asked for"
    if not isinstance(network, RecordsOperators):
        return [], [], f"provider {network.provider} does not record operators"
    try:
        with network.record_operators() as operators:
            runner.run(0)  # warm-up
            runs = [runner.run(i) for i in range(count)]
    except ProviderError as error:
        return [], [], str(error)
    begin = runs[0].span.start
    return runs, [operator for operator in operators if operator.start >= begin], None


def _summarise_operators(
    operators: list[Operator], runs: list[Run], batch: int, totals: Sequence[float]
) -> dict[str, Any]:
    """Seconds an image by kind of operator and by operator, the longest first; and what recording them cost."""
    images = len(runs) * batch
    kinds: dict[tuple[str, ...], list[int]] = {}
    nodes: dict[tuple[str, ...], list[int]] = {}
    for operator in operators:
        kinds.setdefault((operator.kind,), []).append(operator.duration)
        nodes.setdefault((operator.kind, operator.graph, operator.name), []).append(operator.duration)
    whole = sum(operator.duration for operator in operators)

    def ranked(table: dict[tuple[str, ...], list[int]], names: tuple[str, ...]) -> list[dict[str, Any]]:
        rows = sorted(table.items(), key=lambda row: -sum(row[1]))
        return [
            {
                **dict(zip(names, key, strict=True)),
                "seconds": sum(durations) / 1e9 / images,
                "calls": len(durations) / images,
                "share": sum(durations) / whole,
            }
            for key, durations in rows
        ]

    mean = sum(run.span.seconds for run in runs) / len(runs)
    return {
        "images": images,
        "slowdown": mean / (sum(totals[: len(runs)]) / len(runs)),  # of the same images in the timed runs
        "kinds": ranked(kinds, ("kind",)),
        "nodes": ranked(nodes, ("kind", "graph", "name"))[:50],
    }
