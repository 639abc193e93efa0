"""Runs of a profile: numbered batches of images, from image files to written masks, with their spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.providers.operators import Operator
from diffseg.measure.profile.record import OTHER, TOTAL
from diffseg.measure.profile.recorder import Span, StageRecorder
from diffseg.segmenter import Segmenter


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of images, from their files to written masks."""

    images: tuple[int, ...]  # numbers of the images
    span: Span
    stages: tuple[Span, ...]

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, of the time without any stage, and of the whole run.

        Stages of several threads may overlap. The whole run then takes less time than their sum.
        """
        stages: dict[str, float] = {}
        idle, end = 0, self.span.start
        for span in sorted(self.stages, key=lambda span: span.start):
            stages[span.stage] = stages.get(span.stage, 0.0) + span.seconds
            idle += max(span.start - end, 0)
            end = max(end, span.end)
        return {**stages, OTHER: (idle + self.span.end - end) / 1e9, TOTAL: self.span.seconds}


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of a profile, for its trace."""

    runs: list[Run]
    concurrent: dict[int, list[Span]]  # by number of threads
    operator_runs: list[Run]
    operators: list[Operator]


class Runner:
    """Runs numbered batches of images. Threads may share it, except for `run`."""

    def __init__(
        self, segmenter: Segmenter, images: Sequence[Path], batch: int, folder: Path, recorder: StageRecorder
    ) -> None:
        self.segmenter = segmenter
        self.images = images
        self.batch = batch
        self.folder = folder
        self.recorder = recorder

    def group(self, number: int) -> int:
        """Return the number of a run's first image. Runs of the same group have the same images."""
        return number * self.batch % len(self.images)

    def process(self, number: int) -> None:
        """Segment a batch and write its masks to files. A later call with the same number overwrites them."""
        first = self.group(number)
        chosen = [self.images[(first + i) % len(self.images)] for i in range(self.batch)]
        for i, result in enumerate(self.segmenter(chosen)):
            result.save(self.folder, f"{number}_{i}")

    def run(self, number: int) -> Run:
        """Process a batch and collect the spans of its stages. Only one thread may call this at a time."""
        self.recorder.take()
        start = time.perf_counter_ns()
        self.process(number)
        span = Span("run", start, time.perf_counter_ns(), threading.get_ident())
        images = tuple((self.group(number) + i) % len(self.images) for i in range(self.batch))
        return Run(images, span, tuple(self.recorder.take()))
