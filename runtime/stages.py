"""The stages of an image: their names, their times, and observers of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

STAGES = ("decode", "resize", "encode", "attend", "aggregate", "merge", "cut", "refine", "suppress", "write")
"""The stages in the order in which an image passes through them. `refine` runs only if a refinement is
requested. With the methods that cut, `cut` replaces `merge`."""


class Observer(Protocol):
    """Notified when a stage begins and ends, on the thread that runs it. Several threads may call it at once."""

    def enter(self, stage: str) -> None:
        """Called when a stage begins."""

    def leave(self, stage: str, start: int, end: int) -> None:
        """Called when a stage ends, also after an error. Times are nanoseconds of `time.perf_counter_ns`."""


_observers: tuple[Observer, ...] = ()
_lock = threading.Lock()


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Notify an observer of every stage in this process, whichever thread runs it.

    A context variable would not reach the threads of a pool, so the whole process shares one list of observers.
    """
    global _observers  # noqa: PLW0603 - the tuple is replaced, never mutated, so a running stage keeps the observers it began with
    with _lock:
        _observers = (*_observers, observer)
    try:
        yield
    finally:
        with _lock:
            _observers = tuple(other for other in _observers if other is not observer)


class stage:  # noqa: N801 - used as a statement; a class costs half as much as a generator
    """Add the seconds of a block to a stage of `timings`. If `timings` is None, only observers are notified."""

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
