"""Record stages of all threads as spans on one clock, and as NVTX ranges if `nvtx` is installed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from diffseg.stages import observing, stage


@dataclass(frozen=True, slots=True)
class Span:
    """A stage of one run."""

    stage: str
    start: int  # nanoseconds of time.perf_counter_ns
    end: int
    thread: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return (self.end - self.start) / 1e9


class StageRecorder:
    """Observer of `diffseg.stages` that keeps spans. Any number of threads may run stages at once."""

    def __init__(self) -> None:
        self._nvtx = _nvtx()
        self._spans: list[Span] = []  # appending is atomic

    def enter(self, stage: str) -> None:
        """Open an NVTX range in this thread."""
        if self._nvtx is not None:
            self._nvtx.push_range(stage, domain="diffseg")

    def leave(self, stage: str, start: int, end: int) -> None:
        """Close the NVTX range and keep the span."""
        if self._nvtx is not None:
            self._nvtx.pop_range(domain="diffseg")
        self._spans.append(Span(stage, start, end, threading.get_ident()))

    def take(self) -> list[Span]:
        """Return the spans since the last call, and forget them. No stage may be running."""
        spans, self._spans = self._spans, []
        return spans


def _nvtx() -> Any:  # noqa: ANN401 - untyped upstream
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx


def watching_seconds(repeats: int = 1000) -> float:
    """Measure the seconds that recording adds to one stage, NVTX included, beyond the cost of `timings`."""

    def loop() -> float:
        timings: dict[str, float] = {}
        start = time.perf_counter_ns()
        for _ in range(repeats):
            with stage(timings, "watch"):
                pass
        return (time.perf_counter_ns() - start) / 1e9 / repeats

    plain = loop()
    with observing(StageRecorder()):
        return max(loop() - plain, 0.0)
