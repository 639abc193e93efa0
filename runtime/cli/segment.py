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
from diffseg.engines.bundle.manifest import Refine
from diffseg.engines.errors import DiffsegError, ImageError
from diffseg.engines.providers.select import Provider
from diffseg.image import Fit

OUTPUT_ENDINGS = (".labels.png", ".overlay.png")


def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files, folders or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(),
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="What executes the network.")] = Provider.AUTO,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="Merge maps closer than this KL divergence; the bundle's default if not set."),
    ] = None,
    anchors: Annotated[
        int | None, typer.Option(min=1, help="Anchors per side; the bundle's default if not set.")
    ] = None,
    fit: Annotated[Fit, typer.Option(help="How images are brought to the network's size.")] = "stretch",
    refine: Annotated[
        Refine | None,
        typer.Option(
            help="Refine masks by k-means on the attention, or move borders to colour edges; "
            "the bundle's default if not set."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per pass through the network.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not set.")] = None,
    device: Annotated[
        int | None, typer.Option(min=0, help="Index of the NVIDIA GPU, in CUDA's order; the first if not set.")
    ] = None,
) -> None:
    """Segment images: write <stem>.labels.png, <stem>.overlay.png and <stem>.json for each."""
    from diffseg.segmenter import Segmenter

    paths = expand(images)
    if not paths:
        raise typer.BadParameter(f"no images in {', '.join(images)}", param_hint="IMAGE")
    names = output_names(paths)
    problem = folder_problem(output)
    if problem is not None:  # better now than after minutes
        fail(f"cannot write to {output}: {problem}; choose another folder with -o")
    try:
        segmenter = Segmenter.load(
            model,
            provider=provider,
            batch=batch,
            threads=threads,
            devices=None if device is None else (device,),
        )
    except DiffsegError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, errors = consoles()
    console.print(f"model {segmenter.bundle.manifest.name}, provider {segmenter.provider}", style="dim")
    failed = 0
    results = segmenter.stream(paths, threshold, anchors=anchors, fit=fit, refine=refine)
    for (source, result), name in zip(track(results, len(paths)), names, strict=True):
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


def expand(images: Iterable[str]) -> list[Path]:
    """Turn arguments into paths: folders become the images in them, globs what they match; each path once."""
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
    """What keeps files from being written to `folder`, which may not exist yet; None if nothing does.

    Nothing is created. A disk that fills up, or permissions that change, still show when a file is written.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:  # the part of the path that is there
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is not writable"
    return None


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
