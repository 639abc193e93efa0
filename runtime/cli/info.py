"""`diffseg info`."""

from __future__ import annotations

from typing import Annotated

import typer
from diffseg.cli.terminal import show_facts
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
    from diffseg.cli.tables import machine_tables
    from diffseg.measure.capabilities import capabilities

    facts = capabilities(bundle, provider)
    show_facts(facts, machine_tables(facts), as_json=as_json)
