"""`diffseg evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from diffseg.cli.terminal import FAILED, INTERRUPTED, consoles, fail, track
from diffseg.engines.providers.select import Provider
from diffseg.measure.evaluate import Layout, Method, Protocol


def evaluate(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET", help="Folders of labelled images.")],
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="What executes the network.")] = Provider.AUTO,
    layout: Annotated[Layout, typer.Option(help="How the folders are laid out.")] = Layout.AUTO,
    image_list: Annotated[
        Path | None, typer.Option("--list", help="COCO-Stuff: file with the images' names (the usual curated list).")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="paper: centre square at 512 px; full: whole images, as segment does.")
    ] = Protocol.PAPER,
    methods: Annotated[str, typer.Option(help="Which of these to compare.")] = ",".join(Method),
    threshold: Annotated[
        float | None, typer.Option(min=0, help="Merge threshold of diffseg; the bundle's default if not set.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Sweep from one network pass: FIRST:LAST:STEP, or a list such as 0.3,0.6.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of images per data set, evenly spread.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Images evaluated in parallel.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results and reports; run the command again to resume.")
    ] = Path("evaluation"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="JSON report; report.json in the output folder if not set.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="HTML report; report.html in the output folder if not set.")
    ] = None,
) -> None:
    """Measure segmentation quality on labelled images: a table, and a report as JSON and as one HTML page."""
    from diffseg.measure.evaluate import Evaluation, make_report, open_datasets, parse_methods, parse_thresholds
    from diffseg.measure.evaluate.page import make_page
    from diffseg.measure.evaluate.report import print_report, write_text
    from diffseg.segmenter import Segmenter

    try:
        chosen = parse_methods(methods)
        sweep = parse_thresholds(thresholds) if thresholds else ()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, errors = consoles()
    opened = [d.limited(limit) for d in open_datasets(datasets, layout, image_list=image_list)]
    segmenter = None
    if any(method.needs_attention for method in chosen):
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
        segmenter = Segmenter.load(model, provider=provider, threads=threads)
    run = Evaluation(
        opened, chosen, segmenter, protocol, output / "results", threshold=threshold, thresholds=sweep, workers=workers
    )
    failed = 0
    try:
        for outcome in track(run, len(run), "evaluating"):
            if outcome.error is not None:
                failed += 1
                errors.print(f"error: {outcome.error}", style="red")
    except KeyboardInterrupt:
        errors.print(f"interrupted; what was evaluated is kept in {output}, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    report = make_report(run)
    json_file, html_file = json_file or output / "report.json", html_file or output / "report.html"
    try:
        report.write(json_file)
        write_text(html_file, make_page(report, run))
    except OSError as error:
        fail(f"{error.filename}: cannot be written ({error.strerror})")
    print_report(report, console)
    console.print(f"{json_file}\n{html_file}")
    if failed:
        errors.print(f"{failed} of {len(run)} images failed", style="red")
        raise typer.Exit(FAILED)
