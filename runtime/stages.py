"""The stages of an image, their seconds, and who watches them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

STAGES = ("decode", "resize", "encode", "attend", "aggregate", "merge", "refine", "suppress", "write")
"""In the order in which an image passes them; `refine` only where it was asked for."""


class Observer(Protocol):
    """Sees each stage begin and end, on the thread that runs it: calls may come from several at once."""

    def enter(self, stage: str) -> None:
        """Note that a stage begins."""

    def leave(self, stage: str, start: int, end: int) -> None:
        """Note that it ended, well or not: nanoseconds of `time.perf_counter_ns`."""


_observers: tuple[Observer, ...] = ()
_lock = threading.Lock()


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show every stage of this process to an observer, also those that other threads run.

    A context variable would not reach the threads of a pool, so this is one list for the whole process.
    """
    global _observers  # noqa: PLW0603 - replaced, never changed: a stage under way keeps the one that it began with
    with _lock:
        _observers = (*_observers, observer)
    try:
        yield
    finally:
        with _lock:
            _observers = tuple(other for other in _observers if other is not observer)


class stage:  # noqa: N801 - reads as the statement it is; a class costs half of what a generator does
    """Add the seconds of a block to a stage of `timings`; None: only the observers learn of it."""

    __slots__ = ("_observers", "_stage", "_start", "_timings")

    def __init__(self, timings: dict[str, float] | None, stage: str) -> None:
        self._timings = timings
        self._stage = stage

    def __enter__(self) -> None:
        self._observers = _observers
        for observer in self._observers:
            observer.enter(self._stage)
        self._start = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        end = time.perf_counter_ns()
        if self._timings is not None:
            self._timings[self._stage] = self._timings.get(self._stage, 0.0) + (end - self._start) / 1e9
        for observer in self._observers:
            observer.leave(self._stage, self._start, end)
