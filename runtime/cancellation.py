"""End work that takes too long or that nobody waits for: long loops ask between their steps whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Check: TypeAlias = Callable[[], None]
"""Returns if the work is to go on, and otherwise raises `StoppedError`. It is called often, and must be fast."""

_check: ContextVar[Check | None] = ContextVar("diffseg_check", default=None)


class StoppedError(Exception):
    """Work that was ended on request before it was done."""


@contextmanager
def stoppable(check: Check | None) -> Iterator[None]:
    """Let `check` end the work of this block, at its beginning and at each `checkpoint` on this thread.

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
    """Raise `StoppedError` if the work on this thread is to end. Without `stoppable`, nothing happens."""
    check = _check.get()
    if check is not None:
        check()
