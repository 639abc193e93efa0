"""Consoles, progress bars and exit codes of the commands."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from diffseg.engines.errors import DiffsegError
from diffseg.engines.text import printable
from msgspec import to_builtins

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

T = TypeVar("T")
FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130
PIPE_WIDTH = 200
"""Width of tables, in characters, if the output is not a terminal."""


def consoles() -> tuple[Console, Console]:
    """Return a console for results (standard output) and one for errors (standard error).

    They print each text on one line: names of files and data sets cannot add lines or move the cursor.
    """
    from rich.console import Console

    class OneLineConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
            return super().render_str(printable(text), **options)

    # Paths must not be parsed as markup, and lines must not be wrapped.
    options = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return OneLineConsole(width=width, **options), OneLineConsole(stderr=True, **options)  # type: ignore[arg-type]


def track(results: Iterable[T], total: int, description: str = "segmenting") -> Iterable[T]:
    """Show a progress bar while `results` are iterated, on a terminal and for more than one result."""
    if total == 1 or not sys.stderr.isatty():
        return results
    from rich import progress

    return progress.track(results, description, total, console=consoles()[1], transient=True)


def end_interrupted(message: str) -> NoReturn:
    """Print a line and end the process at once, with the exit code of an interrupt.

    Call it while the KeyboardInterrupt is handled. Otherwise the interpreter ends threads of native code, such as an
    engine's builder, while they run, which aborts the process, and frees what they still use.
    """
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a further Ctrl-C must not raise here
    typer.echo(printable(message), err=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Report a ValueError as wrong usage. Errors about files, bundles and machines pass through."""
    try:
        yield
    except DiffsegError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def show_facts(facts: object, tables: Iterable[Any], *, as_json: bool) -> None:
    """Print a record as JSON, or else the tables that show it."""
    if as_json:
        typer.echo(json.dumps(to_builtins(facts), indent=1))
        return
    console, _ = consoles()
    for item in tables:
        console.print(item)


def log_to_stderr() -> None:
    """Print the package's log, from level INFO, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("diffseg")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print a one-line error and end the command with this exit code."""
    typer.echo(f"error: {printable(message)}", err=True)
    sys.exit(code)
