"""Stop work that takes too long or that nobody waits for. Long loops check between their steps whether to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Check: TypeAlias = Callable[[], None]
"""Returns if the work should continue, and raises `StoppedError` if not. It is called often, and must be fast."""

_check: ContextVar[Check | None] = ContextVar("diffseg_check", default=None)
_local = threading.local()


class StoppedError(Exception):
    """Work was stopped on request before it was done."""


@contextmanager
def stoppable(check: Check | None) -> Iterator[None]:
    """Let `check` stop the work of this block, at its beginning and at each `checkpoint` on this thread.

    Raises:
        StoppedError: `check` raised it.
    """
    before = _check.set(check)
    try:
        checkpoint()
        yield
    finally:
        _check.reset(before)


def checkpoint() -> None:
    """Raise `StoppedError` if the work on this thread must stop. Does nothing outside a `stoppable` block."""
    check = _check.get()
    if check is not None:
        check()


def processor_seconds() -> float:
    """Return the processor time of this thread and of the work that other threads did for it; see `count_seconds`."""
    elsewhere: float = getattr(_local, "elsewhere", 0.0)
    return time.thread_time() + elsewhere


def count_seconds(seconds: float) -> None:
    """Count processor time of another thread as that of this one, for which it worked."""
    _local.elsewhere = getattr(_local, "elsewhere", 0.0) + seconds
