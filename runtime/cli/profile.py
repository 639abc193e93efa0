"""`diffseg profile`: options in, tables and files out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.limits import MAX_THREADS
from diffseg.cli.terminal import FAILED, WRONG_USAGE, consoles, fail, wrong_usage
from diffseg.engines.bundle.settings import Method
from diffseg.engines.files import atomic_file
from diffseg.engines.providers.select import Provider

if TYPE_CHECKING:
    from diffseg.measure.profile.record import ProfileRecord
    from rich.console import Console


def profile(  # noqa: C901 - one branch per option
    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="Embedded model, bundle folder or hub id.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files, folders or glob patterns; default: the example images."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 20,
    warmup: Annotated[
        int, typer.Option(min=0, help="Unmeasured runs between the first image and the measured runs.")
    ] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Images per run.")] = 1,
    starts: Annotated[int, typer.Option(min=0, help="Fresh processes whose start is timed; 0 skips this.")] = 3,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N,N…", help="Measure images per second with each number of threads.")
    ] = None,
    operators: Annotated[bool, typer.Option(help="Also record the engine's operators, in separate runs.")] = True,
    provider: Annotated[Provider, typer.Option(help="Provider that executes the network.")] = Provider.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads; default: all cores.")
    ] = None,
    method: Annotated[Method | None, typer.Option(help="Method of the masks; default: the bundle's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write trace events for Perfetto or Chrome.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report as one HTML file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Compare two records without a new run.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --compare: exit with status 1 if B takes significantly more than this many times as long as A, "
            "with 2 if there are too few runs to decide.",
        ),
    ] = None,
) -> None:
    """Measure the time of an image by stage and by operator, from the start of the process to a steady state."""
    if compare is not None:
        _compare(*compare, fail_above)
        return
    if bundle is None:
        raise typer.BadParameter("name a bundle, such as tiny", param_hint="BUNDLE")
    if fail_above is not None:
        raise typer.BadParameter("works with --compare only", param_hint="--fail-above")
    for target in (trace, html):
        if target is not None and not target.parent.is_dir():  # check before the work, which can take minutes
            raise typer.BadParameter(f"{target.parent} is not a folder")
    if html is not None:
        from diffseg.measure.reports.templates import need_jinja

        need_jinja()
    from diffseg.measure.profile.record import ProfileSettings
    from diffseg.measure.profile.session import take_profile

    def progress(step: str) -> None:
        if errors.is_terminal:
            errors.print(step, style="dim")

    console, errors = consoles()
    paths = _paths(images)
    with wrong_usage():
        settings = ProfileSettings(
            runs, warmup, batch, starts, _numbers(concurrency), operators, provider.value, threads, method
        )
        record, spans = take_profile(bundle, paths, settings, progress=progress)
    _show(record, console, errors, as_json=as_json)
    if trace is not None:
        from diffseg.measure.profile.chrome_trace import trace_events

        _write(trace, json.dumps(trace_events(record, spans)))
    if html is not None:
        from diffseg.measure.profile.html import render_report

        _write(html, render_report(record))


def _show(record: ProfileRecord, console: Console, errors: Console, *, as_json: bool) -> None:
    from diffseg.measure.profile.table import profile_tables, warnings

    if as_json:
        typer.echo(record.to_json())
    else:
        for item in profile_tables(record):
            console.print(item)
    for warning in warnings(record):
        errors.print(f"warning: {warning}", style="yellow")


def _compare(a: Path, b: Path, fail_above: float | None) -> None:
    from diffseg.measure.profile.pairs import compare_profiles
    from diffseg.measure.profile.record import read_profile
    from diffseg.measure.profile.statistics import LEAST_PAIRS
    from diffseg.measure.profile.table import comparison_tables

    console, errors = consoles()
    comparison = compare_profiles(read_profile(a), read_profile(b))
    for item in comparison_tables(comparison):
        console.print(item)
    for warning in comparison.warnings:
        errors.print(f"warning: {warning}", style="yellow")
    if fail_above is None:
        return
    if not comparison.decisive:  # a gate that cannot decide must not pass
        fail(
            f"--fail-above needs at least {LEAST_PAIRS} runs of each profile, found {comparison.pairs}; "
            f"take both again with --runs {LEAST_PAIRS} or more",
            WRONG_USAGE,
        )
    if comparison.slower_than(fail_above):
        errors.print(f"{b} takes more than {fail_above:g} times as long as {a}", style="red")
        raise typer.Exit(FAILED)


def _paths(images: list[str] | None) -> list[Path]:
    from diffseg.cli.sources import expand
    from diffseg.engines.examples import example_images

    paths = expand(images) if images else example_images()
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images or [])}", param_hint="IMAGE")
    return paths


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers, such as 1,2,4", param_hint="--concurrency"
        ) from None
    if any(number > MAX_THREADS for number in numbers):
        raise typer.BadParameter(
            f"at most {MAX_THREADS} threads are possible, found {max(numbers)}", param_hint="--concurrency"
        )
    return numbers


def _write(path: Path, text: str) -> None:
    # /dev/stdout is a link to a device, a pipe or the file that the shell redirects to: renaming a file over it would
    # bypass the redirection.
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    try:
        with nullcontext(path) if in_place else atomic_file(path) as target:
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
