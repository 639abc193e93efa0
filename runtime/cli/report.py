"""The output of `segment`: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from diffseg.engines.text import printable

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation


class Report:
    """The lines of one run.

    Args:
        quiet: print errors only, and JSON if it is asked for.
        verbose: print the time of each stage.
        as_json: print one JSON object per image on standard output; readable lines go to standard error.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json
        self.failures = 0

    def status(self, line: str) -> None:
        """Print a line of status."""
        if not self.quiet:
            _print(line, err=True, dim=True)

    def error(self, line: str) -> None:
        """Print an error."""
        _print(line, err=True, fg="red")

    def failed(self, source: object, message: str) -> None:
        """Report an image that failed."""
        self.failures += 1
        self.error(f"error: {message}")
        if self.as_json:
            typer.echo(json.dumps({"origin": {"source": str(source)}, "error": message}))

    def done(self, source: object, result: Segmentation, files: Sequence[Path], seconds: float) -> None:
        """Report an image whose results were written to `files`, after `seconds` in all."""
        if self.as_json:
            typer.echo(json.dumps(result.to_dict()))
        if not self.quiet:
            count = len(result.segments)
            shown = next((file for file in files if file.name.endswith(".overlay.png")), files[0])
            line = f"{source} → {shown}  {count} segment{'s' * (count != 1)}  {seconds:.2f} s"
            _print(line, err=self.as_json)
        if self.verbose:
            self.status("  " + ", ".join(f"{name} {1000 * taken:.0f} ms" for name, taken in result.timings.items()))


def _print(line: str, **style: Any) -> None:  # noqa: ANN401
    """Print one line. Rich, which would do the same, takes longer to import than an image to decode."""
    typer.secho(printable(line), color=False if os.environ.get("NO_COLOR") else None, **style)
