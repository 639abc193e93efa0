"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import sys

import typer
from diffseg.cli.bundles import build, inspect, verify
from diffseg.cli.evaluate import evaluate
from diffseg.cli.export import export
from diffseg.cli.info import info
from diffseg.cli.profile import profile
from diffseg.cli.segment import segment
from diffseg.cli.serve import serve
from diffseg.cli.terminal import fail
from diffseg.cli.triton import triton
from diffseg.engines.errors import DiffsegError

app = typer.Typer(
    name="diffseg",
    help="Zero-shot segmentation from the self-attention of Stable Diffusion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (segment, export, build, verify, inspect, profile, evaluate, serve, triton, info):
    app.command()(command)


def main() -> None:
    """Run the command line: 0 all worked, 1 something failed, 2 wrong usage, or too few runs for `--fail-above`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow that the console cannot show is no reason to stop
    try:
        app()
    except DiffsegError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
