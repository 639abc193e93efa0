"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import glob
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers import Provider
from diffseg.runtime.profiling.command import profile
from diffseg.runtime.tables import formats, si

if TYPE_CHECKING:
    from diffseg.engines.trt import Report
    from rich.console import Console
    from rich.progress import TaskID

app = typer.Typer(
    name="diffseg",
    help="Zero-shot segmentation from the self-attention of Stable Diffusion.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

T = TypeVar("T")
FAILED = 1
PIPE_WIDTH = 200
"""Columns that tables may take where nobody's terminal ends."""
OUTPUT_ENDINGS = (".labels.png", ".overlay.png")


class FitChoice(StrEnum):
    """How a picture is brought to the network's size."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


class RefineChoice(StrEnum):
    """What happens to masks after the merging."""

    NONE = "none"
    KMEANS = "kmeans"
    COLOUR = "colour"


class PrecisionChoice(StrEnum):
    """Number format of the weights and of the arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class EngineChoice(StrEnum):
    """What turns graphs into plans."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class CompatibilityChoice(StrEnum):
    """Which GPUs besides the one that is here may run a TensorRT plan."""

    NONE = "none"
    AMPERE_PLUS = "ampere-plus"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"


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
    refine: Annotated[
        RefineChoice | None,
        typer.Option(
            help="k-means on the attention, or borders moved to the colours' edges; the bundle has a default."
        ),
    ] = None,
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
    console, errors = consoles()
    console.print(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}", style="dim")
    failed = 0
    results = segmenter.stream(paths, threshold, anchors=anchors, fit=fit.value, refine=refine and refine.value)
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
    refine: Annotated[RefineChoice, typer.Option(help="Default refinement of the bundle.")] = RefineChoice.NONE,
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
        defaults = Defaults((threshold,) * 3, refine=refine.value)
        settings = ExportSettings(parse_size(size), precision.value, timestep, max_batch, defaults)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, _ = consoles()
    start = time.perf_counter()

    def progress(step: str) -> None:
        if console.is_terminal:
            console.print(f"{time.perf_counter() - start:6.1f} s  {step}", style="dim")

    bundle = export_bundle(checkpoint, output, settings, name=name, vae=vae, overwrite=force, progress=progress)
    manifest = bundle.manifest
    for graph, details in manifest.graphs.items():
        console.print(
            f"{graph}: {si(details.parameters)} parameters, {si(details.flops)}FLOP an image; left out: "
            f"{si(details.parameters_dropped)} parameters"
            + (f", {si(details.flops_dropped)}FLOP" if details.flops_dropped else "")
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
def build(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    engine: Annotated[EngineChoice, typer.Option(help="What builds, and later executes, the plan.")],
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="N.N", help="GPUs that a tensorrt-rtx plan is for; may be given several times."),
    ] = None,
    optimization_level: Annotated[int, typer.Option(min=0, max=5, help="0 builds fastest, 5 runs fastest.")] = 3,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: let later minor versions run the plan.")
    ] = False,
    hardware_compatibility: Annotated[
        CompatibilityChoice, typer.Option(help="tensorrt: let other GPUs run the plan, at some cost in speed.")
    ] = CompatibilityChoice.NONE,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; loading takes them from the graph.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there already.")] = False,
) -> None:
    """Build a bundle's graphs into engine plans for one kind of GPU."""
    from diffseg.engines.build import build_plan
    from diffseg.engines.bundle import open_bundle
    from diffseg.engines.plans import BuildOptions

    options = BuildOptions(optimization_level, version_compatible, hardware_compatibility.value, strip_weights)
    opened = open_bundle(bundle)
    console, errors = consoles()
    console.print(f"building {opened.manifest.name} ({opened.manifest.precision}) with {engine.value}", style="dim")
    with _build_progress(errors) as report:
        plan = build_plan(
            opened,
            engine.value,
            compute_capabilities=compute_capability or (),
            options=options,
            report=report,
            force=force,
        )
    for name, file in plan.record.files.items():
        found = plan.record.layers.get(name)
        told = f"{formats(found.counts)}, {si(found.activation_bytes)}B of activations" if found else "layers unknown"
        console.print(f"{name}: {told}, plan {si(file.bytes)}B, {plan.record.seconds[name]:.1f} s")
    console.print(f"for {plan.record.spec.purpose}")
    console.print(f"{plan.folder}{' was there already' * plan.reused}")


@app.command()
def inspect(
    bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a bundle's graphs and plans consist of."""
    from diffseg.engines.bundle import open_bundle
    from diffseg.engines.inspection import inspect_bundle

    facts = inspect_bundle(open_bundle(bundle))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    from diffseg.runtime.tables import bundle_tables

    console, _ = consoles()
    for item in bundle_tables(facts):
        console.print(item)


@app.command()
def verify(bundle: Annotated[str, typer.Argument(help="Embedded model, bundle folder or hub id.")]) -> None:
    """Compare every file of a bundle, and of its plans, with its recorded hash."""
    from diffseg.engines.bundle import Bundle, find_bundle
    from diffseg.engines.lookup import verify_plans
    from diffseg.engines.manifest import read_manifest

    folder = find_bundle(bundle)
    console, errors = consoles()
    failed = 0
    opened = Bundle(folder, read_manifest(folder))
    for name, problem in (*opened.verify(), *verify_plans(opened)):
        if problem is None:
            console.print(f"ok      {name}")
        else:
            failed += 1
            errors.print(f"failed  {name}: {problem}", style="red")
    if failed:
        errors.print(f"{folder} is not as it was made; copy or export it again, or build its plans again", style="red")
        raise typer.Exit(FAILED)
    console.print(f"{folder}: every file is as it was made")


@app.command()
def info(
    bundle: Annotated[str | None, typer.Argument(help="Say what the plans of this bundle are for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this machine can run, and what is missing."""
    from diffseg.runtime.info import gather

    facts = gather(bundle)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    from diffseg.runtime.tables import machine_tables

    console, _ = consoles()
    for item in machine_tables(facts):
        console.print(item)


app.command()(profile)


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


def consoles() -> tuple[Console, Console]:
    """Console of results, and of what went wrong."""
    from rich.console import Console

    # A path is no markup, and a pipe should get each line whole.
    options = {"markup": False, "highlight": False, "soft_wrap": True, "emoji": False}
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, **options), Console(stderr=True, **options)  # type: ignore[arg-type]


def _track(results: Iterable[T], total: int) -> Iterable[T]:
    """Show a progress bar, on a terminal and for more than one image."""
    if total == 1 or not sys.stderr.isatty():
        return results
    from rich.progress import track

    return track(results, "segmenting", total, console=consoles()[1], transient=True)


@contextmanager
def _build_progress(console: Console) -> Iterator[Report | None]:
    """Show what the builder does, on a terminal."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.fields[graph]}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(graph: str, phase: str, step: int, steps: int) -> None:
            if graph not in tasks:
                tasks[graph] = progress.add_task("", graph=graph)
            progress.update(tasks[graph], description=phase, completed=step, total=steps or None)

        yield report


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
