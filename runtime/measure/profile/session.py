"""A profiling session, which measures a bundle on images and returns a record and the spans for a trace."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from diffseg.engines.bundle.bundle import open_bundle
from diffseg.engines.errors import ProfileError
from diffseg.engines.files import sha256
from diffseg.image import read_image
from diffseg.measure.profile.concurrency import measure_concurrency
from diffseg.measure.profile.environment import describe_environment
from diffseg.measure.profile.memory import peak_resident
from diffseg.measure.profile.operators import record_operators, summarise_operators
from diffseg.measure.profile.record import OTHER, TOTAL, ProfiledImage, ProfileRecord, ProfileSettings
from diffseg.measure.profile.recorder import StageRecorder, watching_seconds
from diffseg.measure.profile.runs import Runner, Spans
from diffseg.measure.profile.startup import measure_starts
from diffseg.measure.profile.statistics import Summary, drift
from diffseg.segmenter import Segmenter
from diffseg.stages import STAGES, observing
from msgspec import structs

OPERATOR_RUNS = 4


def take_profile(
    model: str, images: Sequence[Path], settings: ProfileSettings, *, progress: Callable[[str], None] = lambda _: None
) -> tuple[ProfileRecord, Spans]:
    """Profile a bundle on images.

    A run goes from image files (in the system's cache) to written masks, `settings.batch` images at once. If a provider
    returns from a stage before its results are complete, the wait counts for the stage that needs them.

    Args:
        model: embedded name, bundle folder or hub id.
        images: image files, used in turn.
        settings: what is measured, how often, and with which provider.
        progress: called with the next step, as one line of text.

    Returns:
        The record, and the spans behind it.

    Raises:
        DiffsegError: there is no such bundle, provider or image, or a fresh process failed.
        ValueError: the batch is larger than the bundle's.
    """
    facts = [_image_facts(path) for path in images]
    # Describe the environment before anything that takes time, because work raises the load average.
    bundle = open_bundle(model, settings.method)
    environment = describe_environment(bundle, settings.provider)
    starts = None
    if settings.starts:
        progress(f"{settings.starts} fresh processes")
        try:
            starts = measure_starts(model, images[0], settings)
        except ProfileError:
            _load(model, settings)  # usually raises a clearer error
            raise
    progress("loading")
    start = time.perf_counter_ns()
    segmenter = _load(model, settings)
    load_seconds = (time.perf_counter_ns() - start) / 1e9
    peaks = {"after_load": peak_resident()}
    recorder = StageRecorder()
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder, observing(recorder):
        runner = Runner(segmenter, images, settings.batch, Path(folder), recorder)
        progress("first image")
        first = runner.run(0)
        peaks["after_first_run"] = peak_resident()
        progress(f"{settings.warmup} warm-up runs, {settings.runs} measured runs")
        for i in range(settings.warmup):
            runner.run(i)
        runs = [runner.run(i) for i in range(settings.runs)]
        peaks["after_runs"] = peak_resident()
        concurrency, concurrent = measure_concurrency(runner, settings.concurrency, settings.runs, progress)
        peaks["after_concurrency"] = peak_resident() if concurrency else None
        progress("operators, in separate runs")
        operator_runs, operators, note = record_operators(
            runner, min(settings.runs, OPERATOR_RUNS) if settings.operators else 0
        )
    seconds = [run.seconds() for run in runs]
    totals = [s[TOTAL] for s in seconds]
    names = [stage for stage in (*STAGES, OTHER, TOTAL) if any(stage in s for s in seconds)]
    samples = {stage: [s.get(stage, 0.0) for s in seconds] for stage in names}
    record = ProfileRecord(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        environment=structs.replace(environment, provider=segmenter.provider, placement=segmenter.network.placement),
        images=facts,
        fresh_processes=starts,
        load_seconds=load_seconds,
        first_run=first.seconds(),
        runs=[list(run.images) for run in runs],
        seconds=samples,
        statistics={stage: Summary.of(values, totals) for stage, values in samples.items()},
        images_per_second=settings.batch * len(runs) / sum(totals),
        drift=drift(totals, [runner.group(i) for i in range(settings.runs)]),
        peak_resident_bytes=peaks,
        peak_gpu_bytes=None,
        concurrency=concurrency,
        operators=summarise_operators(operators, operator_runs, settings.batch, totals) if operators else None,
        operators_note=note,
        watching_seconds=watching_seconds(),
    )
    return record, Spans(runs, concurrent, operator_runs, operators)


def _load(model: str, settings: ProfileSettings) -> Segmenter:
    return Segmenter.load(
        model,
        batch=settings.batch,
        provider=settings.provider,
        threads=settings.threads,
        method=settings.method,
    )


def _image_facts(path: Path) -> ProfiledImage:
    width, height = read_image(path).size  # an image that can't be read is an error before anything is measured
    return ProfiledImage(path.name, sha256(path), path.stat().st_size, width, height)
