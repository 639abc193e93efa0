"""Write a result to files: one writer per format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg import draw
from diffseg.engines.files import atomic_file
from diffseg.formats.drawings import labelme, svg
from diffseg.formats.marks import GENERATOR, JSON_KEY, png_mark
from diffseg.formats.names import Format
from PIL import Image

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation
    from numpy.typing import NDArray

FAST = 1
"""PNG compression level of overlays and responses: a quarter of the time of the default, and files a tenth larger."""


def save(
    result: Segmentation,
    folder: Path,
    name: str,
    formats: Iterable[Format],
    source: str = "",
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a result in each of `formats`, as `<name>.<ending>`. Each file is written atomically.

    Each file says that diffseg wrote it; see `marks`. The JSON is written last: if it exists, so do the other files.

    Args:
        result: the result.
        folder: folder of the files, created if it does not exist.
        name: name of the files, without their endings; it may have folders of its own.
        formats: the formats to write.
        source: file name of the image, for the formats that refer to it.
        facts: further fields of the JSON.

    Returns:
        The files that were written, in the order of `formats`.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    formats = list(formats)
    written: dict[Format, list[Path]] = {}
    for item in sorted(formats, key=lambda item: item == "json"):
        if item == "cutouts":
            written[item] = _save_cutouts(result, folder, name)
            continue
        ending, write = WRITERS[item]
        path = folder / f"{name}{ending}"
        with atomic_file(path) as temporary:
            if item == "json":
                _json(result, temporary, source, facts)
            else:
                write(result, temporary, source)
        written[item] = [path]
    return [path for item in formats for path in written[item]]


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG, which says that diffseg wrote it."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=FAST, pnginfo=png_mark())
    return stream.getvalue()


def _save_cutouts(result: Segmentation, folder: Path, name: str) -> list[Path]:
    names = output_paths(folder, name, ["cutouts"], len(result.segments))
    paths = [names[segment.label] for segment in result.segments]
    for path, cutout in zip(paths, result.cutouts(), strict=True):
        with atomic_file(path) as temporary:
            cutout.save(temporary, "PNG", pnginfo=png_mark())
    return paths


def output_paths(folder: Path, name: str, formats: Iterable[Format], masks: int | None) -> list[Path]:
    """Return the files that `save` writes.

    Args:
        folder: folder of the files.
        name: name of the files, without their endings.
        formats: formats that are written.
        masks: number of masks, each of which has a cut-out; None leaves out the cut-outs.
    """
    paths: list[Path] = []
    for item in formats:
        if item != "cutouts":
            paths.append(folder / f"{name}{WRITERS[item][0]}")
        elif masks is not None:
            digits = len(str(max(masks - 1, 1)))
            paths += [folder / f"{name}.{label:0{digits}}.png" for label in range(masks)]
    return paths


def label_image(labels: NDArray[np.uint16], count: int, *, palette: bool = False) -> Image.Image:
    """Return labels as an image whose pixel values are the labels: 8-bit, or 16-bit for over 256 labels.

    Args:
        labels: (H, W).
        count: number of labels.
        palette: give an 8-bit image the colours of the overlay, which image viewers show.
    """
    if count > draw.COLOURS:
        return Image.fromarray(labels)
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette(draw.palette().tobytes())
    return image


def _labels(result: Segmentation, path: Path, _: str) -> None:
    result.label_image(palette=True).save(path, "PNG", pnginfo=png_mark())


def _palette(result: Segmentation, path: Path, _: str) -> None:
    draw.colourise(result.labels).save(path, "PNG", pnginfo=png_mark())


def _overlay(result: Segmentation, path: Path, _: str) -> None:
    result.overlay().save(path, "PNG", compress_level=FAST, pnginfo=png_mark())


def _json(result: Segmentation, path: Path, _: str, facts: Mapping[str, Any] | None = None) -> None:
    _dump({**result.to_dict(), **(facts or {})}, path)


def _coco(result: Segmentation, path: Path, source: str) -> None:
    _dump(result.to_coco(file_name=source), path)


def _polygons(result: Segmentation, path: Path, _: str) -> None:
    height, width = result.labels.shape
    parts = [
        {"label": p.label, "exterior": p.exterior.tolist(), "holes": [hole.tolist() for hole in p.holes]}
        for p in result.polygons()
    ]
    _dump({"width": width, "height": height, "polygons": parts}, path)


def _labelme(result: Segmentation, path: Path, source: str) -> None:
    _dump(labelme(result.polygons(), result.labels.shape, source), path)


def _svg(result: Segmentation, path: Path, _: str) -> None:
    path.write_text(svg(result.polygons(), result.labels.shape), encoding="utf-8")


def _dump(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps({JSON_KEY: GENERATOR, **value}, indent=1) + "\n", encoding="utf-8")


WRITERS: dict[str, tuple[str, Callable[[Segmentation, Path, str], None]]] = {
    "labels": (".labels.png", _labels),
    "overlay": (".overlay.png", _overlay),
    "json": (".json", _json),
    "coco": (".coco.json", _coco),
    "polygons": (".polygons.json", _polygons),
    "labelme": (".labelme.json", _labelme),
    "svg": (".svg", _svg),
    "palette": (".palette.png", _palette),
}
"""Ending and writer of each format except `cutouts`, which has one file per mask: `.0.png`, `.1.png`, …"""
