"""Stop work that takes too long or that nobody waits for. Long loops check between their steps whether to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Check: TypeAlias = Callable[[], None]
"""Returns if the work should continue, and raises `StoppedError` if not. It is called often, and must be fast."""

_check: ContextVar[Check | None] = ContextVar("diffseg_check", default=None)


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
