"""The command line. Each command imports the heavy modules that it needs when it runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.help import Command, Group
from diffseg.cli.terminal import WRONG_USAGE, fail
from diffseg.engines.errors import DiffsegError
from diffseg.image import FORMATS, only_formats

if TYPE_CHECKING:
    app: typer.Typer

COMMANDS = {
    "segment": "segment",
    "export": "export",
    "build": "bundles",
    "verify": "bundles",
    "inspect": "bundles",
    "profile": "profile",
    "evaluate": "evaluate",
    "serve": "serve",
    "triton": "triton",
    "batch": "batch",
    "info": "info",
}
"""The module of each command, in the order of the help."""


def command_line(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands only, whose modules are imported."""
    made = typer.Typer(
        name="diffseg",
        cls=Group,
        help="Zero-shot segmentation from the self-attention of Stable Diffusion.",
        pretty_exceptions_enable=False,
        subcommand_metavar="COMMAND [ARGUMENTS...]",
    )
    made.callback(invoke_without_command=True)(options)
    for name in names:
        made.command(cls=Command)(getattr(import_module(f"diffseg.cli.{COMMANDS[name]}"), name))
    return made


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = command_line()
    return made


def _print_version(wanted: bool) -> None:
    if wanted:
        from diffseg import __version__

        typer.echo(f"diffseg {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Zero-shot segmentation from the self-attention of Stable Diffusion."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_USAGE)


def main() -> None:
    """Run the command line.

    Exit codes: 0 on success, 1 if something failed, 2 for wrong usage or too few runs for `--fail-above`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # replace characters that the console cannot show, instead of failing
    try:
        with only_formats(FORMATS):
            # One that is named needs none of the others. Help and wrong names list all of them.
            command_line(sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in COMMANDS else COMMANDS)()
    except DiffsegError as error:
        fail(str(error))
    except OSError as error:
        if error.errno is None:  # of a library, not of the operating system
            raise
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))


if __name__ == "__main__":
    main()
