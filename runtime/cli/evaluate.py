"""`diffseg evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.limits import MAX_THREADS
from diffseg.cli.terminal import FAILED, INTERRUPTED, consoles, fail, track, wrong_usage
from diffseg.engines.bundle.settings import REFINEMENTS
from diffseg.engines.providers.select import Provider
from diffseg.measure.evaluate.datasets import Layout
from diffseg.measure.evaluate.methods import Method
from diffseg.measure.evaluate.protocol import Protocol

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import Method as SegmentMethod
    from diffseg.measure.evaluate import Evaluation


def evaluate(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET", help="Folders of labelled images.")],
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="Provider that executes the network.")] = Provider.AUTO,
    layout: Annotated[Layout, typer.Option(help="Layout of the folders.")] = Layout.AUTO,
    image_list: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="COCO-Stuff, COCO-Object: file that lists the images to use."),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="paper, diffcut: the centre square, at 512 or 128 px, as in DiffSeg or DiffCut. "
            "full: whole images, as in segment."
        ),
    ] = Protocol.PAPER,
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help=f"Some of {', '.join(Method)}; default: all that the bundle allows."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, help="Merge threshold of diffseg, in nats; default: the bundle's.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Thresholds to compare, from one network pass: FIRST:LAST:STEP, or a list: 0.3,0.6."
        ),
    ] = None,
    tau: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Values of tau for cut and diffcut, such as 0.45,0.5; default: the bundle's."
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Refinements for diffseg, cut and diffcut, some of {', '.join(REFINEMENTS)}; default: the bundle's, "
            "if the protocol has it.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of images per data set, evenly spaced.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Images evaluated in parallel.")] = 1,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for results and reports; run the command again to resume."
        ),
    ] = Path("evaluation"),
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="JSON report; default: FOLDER/report.json."),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="HTML report; default: FOLDER/report.html."),
    ] = None,
) -> None:
    """Measure segmentation quality on labelled images; print a table and write a JSON and an HTML report."""
    from diffseg.measure.evaluate import (
        Evaluation,
        make_report,
        methods_of,
        open_datasets,
        parse_methods,
        parse_refinements,
        parse_taus,
        parse_thresholds,
    )
    from diffseg.measure.evaluate.page import make_page
    from diffseg.measure.evaluate.report import print_report, write_text
    from diffseg.measure.evaluate.results import locked
    from diffseg.measure.evaluate.run import need_packages
    from diffseg.segmenter import Segmenter

    with wrong_usage():
        chosen = parse_methods(methods) if methods is not None else None
        sweep = parse_thresholds(thresholds) if thresholds else ()
        taus = parse_taus(tau) if tau is not None else ()
        refinements = parse_refinements(refine) if refine is not None else ()
    console, errors = consoles()
    opened = [d.limited(limit) for d in open_datasets(datasets, layout, image_list=image_list)]
    segmenter = None
    if chosen is None or any(method.needs_network for method in chosen):
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
        segmenter = Segmenter.load(model, provider=provider, threads=threads, method=_kind(model, chosen))
        chosen = chosen or methods_of(features=segmenter.bundle.manifest.features is not None)
    results = output / "results"
    need_packages()
    try:
        with locked(results):
            with wrong_usage():
                run = Evaluation(
                    opened,
                    chosen,
                    segmenter,
                    protocol,
                    results,
                    threshold=threshold,
                    thresholds=sweep,
                    taus=taus,
                    refinements=refinements,
                    workers=workers,
                )
            failed = _follow(run)
    except KeyboardInterrupt:
        errors.print(f"interrupted; the results so far are in {output}; run the same command again to continue")
        raise typer.Exit(INTERRUPTED) from None
    report = make_report(run)
    json_file, html_file = json_file or output / "report.json", html_file or output / "report.html"
    try:
        report.write(json_file)
        write_text(html_file, make_page(report, run))
    except OSError as error:
        fail(f"{error.filename}: cannot be written ({error.strerror})")
    print_report(report, console)
    console.print(str(json_file))
    console.print(str(html_file))
    if failed:
        errors.print(f"{failed} of {len(run)} images failed", style="red")
        raise typer.Exit(FAILED)


def _kind(model: str, methods: tuple[Method, ...] | None) -> SegmentMethod | None:
    """Return the method for which to load a bundle for both kinds of methods; None leaves the choice to the bundle."""
    from diffseg.engines.bundle.bundle import Bundle, find_bundle
    from diffseg.engines.bundle.methods import has_both

    if methods is None or not has_both(Bundle.open(find_bundle(model)).manifest):
        return None
    features = {method.needs_features for method in methods if method.needs_network}
    if len(features) > 1:
        raise typer.BadParameter(
            "the bundle has a network for diffcut and one for the others; evaluate diffcut in a run of its own",
            param_hint="--methods",
        )
    return "diffcut" if features == {True} else "diffseg"


def _follow(run: Evaluation) -> int:
    """Evaluate all images, print the errors, and return their number."""
    failed = 0
    _, errors = consoles()
    for outcome in track(run, len(run), "evaluating"):
        if outcome.error is not None:
            failed += 1
            errors.print(f"error: {outcome.error}", style="red")
    return failed
