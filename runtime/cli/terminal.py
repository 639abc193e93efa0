"""Consoles, progress bars and exit codes of the commands."""

from __future__ import annotations

import logging
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
"""Width of tables, in characters, if the output is not a terminal."""


def consoles() -> tuple[Console, Console]:
    """Return a console for results (standard output) and one for errors (standard error)."""
    from rich.console import Console

    # Paths must not be parsed as markup, and lines must not be wrapped.
    options = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, **options), Console(stderr=True, **options)  # type: ignore[arg-type]


def track(results: Iterable[T], total: int, description: str = "segmenting") -> Iterable[T]:
    """Show a progress bar while `results` are iterated, if there is a terminal and more than one result."""
    if total == 1 or not sys.stderr.isatty():
        return results
    from rich import progress

    return progress.track(results, description, total, console=consoles()[1], transient=True)


def log_to_stderr() -> None:
    """Print what the package logs, from INFO on, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("diffseg")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print a one-line error and end the command with this exit code."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
