"""`diffseg segment`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.limits import MAX_THREADS
from diffseg.cli.outputs import Outputs
from diffseg.cli.report import Report
from diffseg.cli.sources import Source, result_path, sources
from diffseg.cli.terminal import FAILED, fail, log_to_stderr, track
from diffseg.engines.bundle.settings import MAX_TAU, Method, Refine
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers.select import Provider
from diffseg.formats.names import DEFAULT_FORMATS, FORMATS, Format, parse_formats
from diffseg.image import Fit

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation


def segment(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Image files, folders, glob patterns, http(s) URLs, or - for standard input."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the results.")] = Path(),
    model: Annotated[str, typer.Option("--model", "-m", help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="Provider that executes the network.")] = Provider.AUTO,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="Merge maps closer than this KL divergence, in nats; default: the bundle's."),
    ] = None,
    anchors: Annotated[int | None, typer.Option(min=1, help="Anchors per side; default: the bundle's.")] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="diffseg: merge attention maps. cut: cut the graph of the attention. "
            "diffcut: cut the graph of the features of a DiffCut bundle. Default: the bundle's."
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_TAU, help="Divide regions whose cut costs less than this; default: the bundle's."),
    ] = None,
    fit: Annotated[Fit, typer.Option(help="How images are fitted to the network's input size.")] = "stretch",
    refine: Annotated[
        Refine | None,
        typer.Option(
            help="kmeans: cluster the attention, starting from the masks. colour: move borders to colour edges. "
            "pamr: average masks over pixels of similar colour. Default: the bundle's."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass through the network.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads; default: all cores.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option("--format", help=f"What to write for each image, separated by commas: {', '.join(FORMATS)}."),
    ] = ",".join(DEFAULT_FORMATS),
    device: Annotated[
        int | None, typer.Option(min=0, help="Index of the NVIDIA GPU, in CUDA's order; default: the first.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that diffseg did not write.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Also print the JSON of each image on standard output, one per line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and what --json prints.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say why a provider was chosen, and how long each stage took.")
    ] = False,
) -> None:
    """Segment images. For each one, write NAME.labels.png, NAME.overlay.png and NAME.json, or what --format names."""
    from diffseg.segmenter import Segmenter

    wanted = _formats(formats)
    paths = sources(images)
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images)}", param_hint="IMAGE")
    problem = folder_problem(output)
    if problem is not None:  # check before the work, which can take minutes
        fail(f"cannot write to {output}: {problem}; choose another folder with -o")
    if verbose:
        log_to_stderr()
    try:
        segmenter = Segmenter.load(
            model,
            provider=provider,
            batch=batch,
            threads=threads,
            devices=None if device is None else (device,),
        )
        segmenter.settings.updated(threshold, anchors, refine, method, tau)
    except DiffsegError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    report = Report(quiet=quiet, verbose=verbose, as_json=as_json)
    report.status(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}")
    outputs = Outputs(output, wanted, [source for source in paths if isinstance(source, Path)], force=force)
    todo = list(_allowed(paths, outputs, report))
    results = segmenter.stream(
        [source for source, _ in todo], threshold, anchors=anchors, fit=fit, refine=refine, method=method, tau=tau
    )
    for (source, result), (_, name) in zip(track(results, len(todo)), todo, strict=True):
        start = time.perf_counter()
        try:
            if isinstance(result, ImageError):
                raise result
            files = _save(source, result, outputs, name)
        except DiffsegError as error:
            report.failed(source, str(error))
            continue
        report.done(source, result, files, sum(result.timings.values()) + time.perf_counter() - start)
    if report.failures:
        report.error(f"{report.failures} of {len(paths)} images failed")
        raise typer.Exit(FAILED)


def _allowed(paths: Sequence[Source], outputs: Outputs, report: Report) -> Iterator[tuple[Source, str]]:
    """Yield the images whose results may be written, with the names of those; report why the others may not."""
    names = output_names([result_path(source) for source in paths])
    for source, name in zip(paths, names, strict=True):
        if problem := outputs.problem(name):
            report.failed(source, f"{source}: {problem}")
        else:
            yield source, name


def _save(source: object, result: Segmentation, outputs: Outputs, name: str) -> list[Path]:
    """Write the result of one image and return its files.

    Raises:
        DiffsegError: it would replace a file that it must not, or it cannot be written.
    """
    if problem := outputs.problem(name, len(result.segments)):
        raise DiffsegError(f"{source}: {problem}")
    try:
        return result.save(outputs.folder, name, outputs.formats, source=result_path(source).name)
    except OSError as error:
        raise DiffsegError(f"{source}: cannot write to {outputs.folder} ({error.strerror})") from None


def _formats(text: str) -> tuple[Format, ...]:
    try:
        return parse_formats(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--format") from None


def folder_problem(folder: Path) -> str | None:
    """Return why files cannot be written to `folder`, which need not exist yet, or None if they can.

    Nothing is created. Writing can still fail later, for example if the disk fills up or permissions change.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:  # the part of the path that exists
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is not writable"
    return None


def output_names(paths: list[Path]) -> list[str]:
    """Name each output after its image's stem. If two names are equal, add the suffix, then a number."""
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
