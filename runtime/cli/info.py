"""`diffseg info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from diffseg.cli.terminal import consoles
from diffseg.engines.providers.select import Provider


def info(
    bundle: Annotated[
        str | None,
        typer.Argument(help="Embedded model, bundle folder or hub id whose plans are listed."),
    ] = None,
    provider: Annotated[
        Provider | None,
        typer.Option(help="Load the bundle, or tiny if none is named, and show where its nodes run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this machine can run, and what is not installed."""
    from diffseg.measure.capabilities import capabilities
    from msgspec import to_builtins

    facts = capabilities(bundle, provider)
    if as_json:
        typer.echo(json.dumps(to_builtins(facts), indent=1))
        return
    from diffseg.cli.tables import machine_tables

    console, _ = consoles()
    for item in machine_tables(facts):
        console.print(item)
