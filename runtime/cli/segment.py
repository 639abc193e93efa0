"""`diffseg segment`."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from diffseg.cli.terminal import FAILED, consoles, fail, track
from diffseg.engines.bundle.settings import MAX_TAU, Method, Refine
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers.select import Provider
from diffseg.formats.names import DEFAULT_FORMATS, FORMATS, parse_formats
from diffseg.image import Fit

OUTPUT_ENDINGS = (".labels.png", ".overlay.png")


def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files, folders or glob patterns.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the results.")] = Path(),
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
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
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    formats: Annotated[
        str,
        typer.Option("--format", help=f"What to write for each image, separated by commas: {', '.join(FORMATS)}."),
    ] = ",".join(DEFAULT_FORMATS),
    device: Annotated[
        int | None, typer.Option(min=0, help="Index of the NVIDIA GPU, in CUDA's order; default: the first.")
    ] = None,
) -> None:
    """Segment images. For each one, write NAME.labels.png, NAME.overlay.png and NAME.json, or what --format names."""
    from diffseg.segmenter import Segmenter

    try:
        wanted = parse_formats(formats)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--format") from None

    paths = expand(images)
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images)}", param_hint="IMAGE")
    names = output_names(paths)
    problem = folder_problem(output)
    if problem is not None:  # check before the work, which can take minutes
        fail(f"cannot write to {output}: {problem}; choose another folder with -o")
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
    console, errors = consoles()
    console.print(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}", style="dim")
    failed = 0
    results = segmenter.stream(paths, threshold, anchors=anchors, fit=fit, refine=refine, method=method, tau=tau)
    for (source, result), name in zip(track(results, len(paths)), names, strict=True):
        if isinstance(result, ImageError):
            failed += 1
            errors.print(f"error: {result}", style="red")
            continue
        start = time.perf_counter()
        try:
            files = result.save(output, name, wanted, source=Path(str(source)).name)
        except OSError as error:
            failed += 1
            errors.print(f"error: {source}: cannot write to {output} ({error.strerror})", style="red")
            continue
        seconds = sum(result.timings.values()) + time.perf_counter() - start
        count = len(result.segments)
        shown = next((file for file in files if file.name.endswith(".overlay.png")), files[0])
        console.print(f"{source} → {shown}  {count} segment{'s' * (count != 1)}  {seconds:.2f} s")
    if failed:
        errors.print(f"{failed} of {len(paths)} images failed", style="red")
        raise typer.Exit(FAILED)


def expand(images: Iterable[str]) -> list[Path]:
    """Replace folders by the images in them and glob patterns by their matches; list each path once."""
    from diffseg.image import SUFFIXES

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
