"""The command line. Each command imports the heavy modules that it needs when it runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from diffseg.cli.batch import batch
from diffseg.cli.bundles import build, inspect, verify
from diffseg.cli.evaluate import evaluate
from diffseg.cli.export import export
from diffseg.cli.help import Command, Group
from diffseg.cli.info import info
from diffseg.cli.profile import profile
from diffseg.cli.segment import segment
from diffseg.cli.serve import serve
from diffseg.cli.terminal import WRONG_USAGE, fail
from diffseg.cli.triton import triton
from diffseg.engines.errors import DiffsegError
from diffseg.image import FORMATS, only_formats

app = typer.Typer(
    name="diffseg",
    cls=Group,
    help="Zero-shot segmentation from the self-attention of Stable Diffusion.",
    pretty_exceptions_enable=False,
    subcommand_metavar="COMMAND [ARGUMENTS...]",
)
for command in (segment, export, build, verify, inspect, profile, evaluate, serve, triton, batch, info):
    app.command(cls=Command)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from diffseg import __version__

        typer.echo(f"diffseg {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
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
            app()
    except DiffsegError as error:
        fail(str(error))
    except OSError as error:
        if error.errno is None:  # of a library, not of the operating system
            raise
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))


if __name__ == "__main__":
    main()
