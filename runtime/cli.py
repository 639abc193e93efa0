"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import glob
import io
import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers import Provider
from diffseg.runtime.evaluation import Layout, Method, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

app = typer.Typer(
    name="diffseg",
    help="Zero-shot segmentation from the self-attention of Stable Diffusion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

T = TypeVar("T")
FAILED = 1
INTERRUPTED = 130
OUTPUT_ENDINGS = (".labels.png", ".overlay.png")


class FitChoice(StrEnum):
    """How a picture is brought to the network's size."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


class RefineChoice(StrEnum):
    """What happens to proposals before they compete."""

    NONE = "none"
    KMEANS = "kmeans"


class PrecisionChoice(StrEnum):
    """Number format of the weights and of the arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Image files, folders or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(),
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="What executes the network.")] = Provider.AUTO,
    threshold: Annotated[
        float | None, typer.Option(min=0, help="Merge maps closer than this KL distance; the bundle has a default.")
    ] = None,
    anchors: Annotated[int | None, typer.Option(min=1, help="Anchors a side; the bundle has a default.")] = None,
    fit: Annotated[FitChoice, typer.Option(help="How a picture is brought to the network's size.")] = FitChoice.STRETCH,
    refine: Annotated[RefineChoice, typer.Option(help="Refine the masks with k-means.")] = RefineChoice.NONE,
    batch: Annotated[int, typer.Option(min=1, help="Images that go through the network at once.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not set.")] = None,
    lean: Annotated[bool, typer.Option("--lean", help="Lower peak memory, slower.")] = False,
) -> None:
    """Segment images: write <stem>.labels.png, <stem>.overlay.png and <stem>.json for each."""
    from diffseg.runtime.segmenter import Segmenter

    paths = expand(images)
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images)}", param_hint="IMAGE…")
    names = output_names(paths)
    try:
        segmenter = Segmenter.load(model, provider=provider, batch=batch, threads=threads, lean=lean)
    except DiffsegError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, errors = _consoles()
    console.print(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}", style="dim")
    failed = 0
    results = segmenter.stream(paths, threshold, anchors=anchors, fit=fit.value, refine=refine.value)
    for (source, result), name in zip(_track(results, len(paths)), names, strict=True):
        if isinstance(result, ImageError):
            failed += 1
            errors.print(f"error: {result}", style="red")
            continue
        start = time.perf_counter()
        try:
            overlay = result.save(output, name)[1]
        except OSError as error:
            failed += 1
            errors.print(f"error: {source}: cannot write to {output} ({error.strerror})", style="red")
            continue
        seconds = sum(result.timings.values()) + time.perf_counter() - start
        count = len(result.segments)
        console.print(f"{source} → {overlay}  {count} segment{'s' * (count != 1)}  {seconds:.2f} s")
    if failed:
        errors.print(f"{failed} of {len(paths)} images failed", style="red")
        raise typer.Exit(FAILED)


@app.command()
def evaluate(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET…", help="Folders of labelled images.")],
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
    threshold: Annotated[float | None, typer.Option(min=0, help="Of diffseg; the bundle has a default.")] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Sweep from one network pass: FIRST:LAST:STEP, or a list such as 0.3,0.6.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images a data set, evenly spread.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results and reports; run again to go on.")
    ] = Path("evaluation"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Report as JSON; else report.json there.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Report as a page; else report.html there.")] = None,
) -> None:
    """Measure segmentation quality on labelled images: a table, and a report as JSON and as one HTML page."""
    from diffseg.runtime.evaluation import Evaluation, make_report, open_datasets, parse_methods, parse_thresholds
    from diffseg.runtime.evaluation.page import make_page
    from diffseg.runtime.evaluation.report import print_report, write_text
    from diffseg.runtime.segmenter import Segmenter

    try:
        chosen = parse_methods(methods)
        sweep = parse_thresholds(thresholds) if thresholds else ()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, errors = _consoles()
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
        for outcome in _track(run, len(run), "evaluating"):
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
        _fail(f"{error.filename}: cannot be written ({error.strerror})")
    print_report(report, console)
    console.print(f"{json_file}\n{html_file}")
    if failed:
        errors.print(f"{failed} of {len(run)} images failed", style="red")
        raise typer.Exit(FAILED)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Diffusers checkpoint: a folder, or a hub id (owner/name[@revision]).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    size: Annotated[str, typer.Option(help="Image size in pixels, N or HEIGHTxWIDTH, multiples of 64.")] = "512",
    precision: Annotated[PrecisionChoice, typer.Option(help="Number format.")] = PrecisionChoice.FP32,
    timestep: Annotated[int, typer.Option(min=0, max=999, help="Diffusion timestep of the pass.")] = 300,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch of the graphs.")] = 4,
    threshold: Annotated[float, typer.Option(min=0, help="Default merge threshold of the bundle.")] = 1.0,
    vae: Annotated[str | None, typer.Option(help="Another VAE for the same latents (TAESD): folder or hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's if not set.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, verified against torch."""
    try:
        from diffseg.export import ExportSettings, export_bundle, parse_size
    except ImportError as error:
        _fail(f"export needs {error.name or error}: pip install 'diffseg[export]'")
    from diffseg.engines.manifest import Defaults

    try:
        settings = ExportSettings(parse_size(size), precision.value, timestep, max_batch, Defaults((threshold,) * 3))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, _ = _consoles()
    start = time.perf_counter()

    def progress(step: str) -> None:
        if console.is_terminal:
            console.print(f"{time.perf_counter() - start:6.1f} s  {step}", style="dim")

    bundle = export_bundle(checkpoint, output, settings, name=name, vae=vae, overwrite=force, progress=progress)
    manifest = bundle.manifest
    for graph, details in manifest.graphs.items():
        console.print(
            f"{graph}: {_si(details.parameters)} parameters, {_si(details.flops)}FLOP an image; left out: "
            f"{_si(details.parameters_dropped)} parameters"
            + (f", {_si(details.flops_dropped)}FLOP" if details.flops_dropped else "")
        )
    worst = {
        measure: max(figures.get(measure, 0.0) for figures in manifest.parity.values()) for measure in PARITY_SHOWN
    }
    console.print(
        "parity with torch: "
        + ", ".join(f"{measure.replace('_', ' ')} {value:.1e}" for measure, value in worst.items())
    )
    console.print(f"{output}: {sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB")


PARITY_SHOWN = ("latent_max_error", "attention_max_error", "row_cosine_distance_p99", "row_sum_max_error")


@app.command()
def verify(bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")]) -> None:
    """Compare every file of a bundle with its hash in the manifest."""
    from diffseg.engines.bundle import Bundle, find_bundle
    from diffseg.engines.manifest import read_manifest

    folder = find_bundle(bundle)
    console, errors = _consoles()
    failed = 0
    for name, problem in Bundle(folder, read_manifest(folder)).verify():
        if problem is None:
            console.print(f"ok      {name}")
        else:
            failed += 1
            errors.print(f"failed  {name}: {problem}", style="red")
    if failed:
        errors.print(f"{folder} is not as it was exported; copy or export it again", style="red")
        raise typer.Exit(FAILED)
    console.print(f"{folder}: every file is as it was exported")


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what this machine can run, and what is missing."""
    from diffseg.runtime.info import gather
    from rich.table import Table

    facts = gather()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    console, _ = _consoles()
    console.print(
        f"diffseg {facts['version']}, Python {facts['python']}, {facts['platform']}, {facts['cores']} CPU cores"
    )
    for title, heading in (("providers", "runs here"), ("packages", "version")):
        table = Table(title, heading, "note", box=None, pad_edge=False)
        for name, (state, note) in facts[title].items():
            table.add_row(name, state, note)
        console.print(table)
    console.print(f"embedded models: {', '.join(facts['models'])}")


def main() -> None:
    """Run the command line: 0 all worked, 1 something failed, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow that the console cannot show is no reason to stop
    try:
        app()
    except DiffsegError as error:
        _fail(str(error))


def expand(images: Iterable[str]) -> list[Path]:
    """Turn arguments into paths: folders become the images in them, globs what they match; each path once."""
    from diffseg.runtime.image import SUFFIXES

    def wanted(path: Path) -> bool:
        return path.is_file() and not path.name.endswith(OUTPUT_ENDINGS)

    paths: dict[Path, None] = {}
    for item in images:
        path = Path(item).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and wanted(p))
        elif not path.exists() and glob.has_magic(item):
            found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if wanted(p))  # noqa: PTH207 - absolute and ** patterns
        else:
            found = [path]
        paths.update(dict.fromkeys(found))
    return list(paths)


def output_names(paths: list[Path]) -> list[str]:
    """Name each output by its image's stem; where two would meet, the suffix and then a number tell them apart."""
    names: list[str] = []
    taken: set[str] = set()
    stems = [path.stem.lower() for path in paths]
    for path in paths:
        wanted = path.stem if stems.count(path.stem.lower()) == 1 else path.name.replace(".", "_")
        name, number = wanted, 1
        while name.lower() in taken:
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _consoles() -> tuple[Console, Console]:
    from rich.console import Console

    # A path is no markup, and a pipe should get each line whole.
    options = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    return Console(**options), Console(stderr=True, **options)  # type: ignore[arg-type]


def _track(results: Iterable[T], total: int, description: str = "segmenting") -> Iterable[T]:
    """Show a progress bar, on a terminal and for more than one image."""
    if total == 1 or not sys.stderr.isatty():
        return results
    from rich.progress import track

    return track(results, description, total, console=_consoles()[1], transient=True)


def _si(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} "


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
