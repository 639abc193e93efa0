"""What commands write to: a terminal, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130
PIPE_WIDTH = 200
"""Columns that tables may take where nobody's terminal ends."""


def consoles() -> tuple[Console, Console]:
    """Console of results, and of what went wrong."""
    from rich.console import Console

    # A path is no markup, and a pipe should get each line whole.
    options = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, **options), Console(stderr=True, **options)  # type: ignore[arg-type]


def track(results: Iterable[T], total: int, description: str = "segmenting") -> Iterable[T]:
    """Show a progress bar, on a terminal and for more than one image."""
    if total == 1 or not sys.stderr.isatty():
        return results
    from rich import progress

    return progress.track(results, description, total, console=consoles()[1], transient=True)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with an error of one line and this exit code."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
