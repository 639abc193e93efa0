"""`diffseg segment`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from diffseg.cli.earlier import Earlier, made_with
from diffseg.cli.limits import MAX_THREADS
from diffseg.cli.outputs import Outputs
from diffseg.cli.report import Report
from diffseg.cli.sources import Source, sources
from diffseg.cli.terminal import FAILED, fail, log_to_stderr, track, wrong_usage
from diffseg.engines.bundle.settings import MAX_TAU, Method, Refine
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers.select import Provider
from diffseg.formats.names import DEFAULT_FORMATS, FORMATS, Format, parse_formats
from diffseg.formats.result_names import source_record
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
    recursive: Annotated[
        bool,
        typer.Option("--recursive", "-r", help="Include images in subfolders; results keep the folder structure."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--skip-existing",
            help="Replace the results of earlier runs, or skip images that have all of them.",
        ),
    ] = True,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip images that were done with the same bundle and settings."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that diffseg did not write.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Also print the JSON of each image on standard output, one per line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and what --json prints.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say why a provider was chosen, and how long each stage took.")
    ] = False,
) -> None:
    """Segment images. For a.jpg, write a.jpg.labels.png, a.jpg.overlay.png and a.jpg.json, or what --format names."""
    from diffseg.segmenter import Segmenter

    wanted = _formats(formats)
    if resume:
        _check_resume(wanted, overwrite=overwrite)
    paths = _checked(images, output, recursive=recursive)
    if verbose:
        log_to_stderr()
    with wrong_usage():
        segmenter = Segmenter.load(
            model,
            provider=provider,
            batch=batch,
            threads=threads,
            devices=None if device is None else (device,),
            method=method,
        )
        settings = segmenter.settings.updated(threshold, anchors, refine, method, tau)
    report = Report(quiet=quiet, verbose=verbose, as_json=as_json)
    report.status(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}")
    outputs = Outputs(output, wanted, [source for source, _ in paths if isinstance(source, Path)], force=force)
    todo = list(_allowed(paths, outputs, report))
    if resume or not overwrite:
        earlier = Earlier(output, wanted, made_with(segmenter.bundle_sha256, settings, fit) if resume else None)
        todo = _left(todo, earlier, report)
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


def _checked(images: list[str], output: Path, *, recursive: bool) -> list[tuple[Source, str]]:
    """Return the images and the names of their results, checked before the work, which can take minutes."""
    paths = sources(images, recursive=recursive)
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images)}", param_hint="IMAGE")
    problem = folder_problem(output)
    if problem is not None:
        fail(f"cannot write to {output}: {problem}; choose another folder with -o")
    return paths


def _allowed(paths: Sequence[tuple[Source, str]], outputs: Outputs, report: Report) -> Iterator[tuple[Source, str]]:
    """Yield the images whose results may be written, with the names of those; report why the others may not."""
    taken: dict[str, Source] = {}
    for source, name in paths:
        first = taken.setdefault(os.path.normcase(name), source)
        if first is not source:
            hint = "segment it with another -o, or name a folder of both with --recursive"
            report.failed(source, f"{source}: its results have the names of those of {first}; {hint}")
        elif problem := outputs.problem(name):
            report.failed(source, f"{source}: {problem}")
        else:
            yield source, name


def _left(todo: list[tuple[Source, str]], earlier: Earlier, report: Report) -> list[tuple[Source, str]]:
    """Return the images that were not done before, and say how many were."""
    left = [(source, name) for source, name in todo if not earlier.has(source, name)]
    report.status(f"{len(todo) - len(left)} of {len(todo)} images were done before")
    return left


def _check_resume(formats: Sequence[Format], *, overwrite: bool) -> None:
    if "json" not in formats:
        raise typer.BadParameter("needs json among the formats: it says how a result was made", param_hint="--resume")
    if not overwrite:
        raise typer.BadParameter("goes without --skip-existing, which takes any result", param_hint="--resume")


def _save(source: object, result: Segmentation, outputs: Outputs, name: str) -> list[Path]:
    """Write the result of one image and return its files.

    Raises:
        DiffsegError: it would replace a file that it must not, or it cannot be written.
    """
    if problem := outputs.problem(name, len(result.segments)):
        raise DiffsegError(f"{source}: {problem}")
    try:
        facts = source_record(source, name) if isinstance(source, Path) and "json" in outputs.formats else None
        return result.save(outputs.folder, name, outputs.formats, source=PurePosixPath(name).name, facts=facts)
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
