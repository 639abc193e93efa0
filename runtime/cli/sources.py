"""Find the images that the arguments of `segment` name: files, folders, standard input and URLs."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import typer
from diffseg.engines.errors import ImageError
from diffseg.engines.files import expand_user
from diffseg.formats.result_names import result_name

OUTPUT_ENDINGS = (".labels.png", ".overlay.png")
SCHEMES = ("http", "https")
LONGEST_NAME = 100


class Download:
    """An image on the web, as a file that is downloaded when it is read."""

    def __init__(self, url: str) -> None:
        self.name = url

    def __str__(self) -> str:
        return self.name

    @property
    def file_name(self) -> str:
        """The last part of the URL's path, else its host, as a file name that any system accepts."""
        parts = urlsplit(self.name)
        name = PurePosixPath(unquote(parts.path)).name or parts.hostname or "image"
        return re.sub(r"[^\w.() -]", "_", name)[-LONGEST_NAME:]

    def read(self, size: int = -1) -> bytes:
        """Download the whole image; with a size of 0, return nothing.

        Raises:
            ImageError: it cannot be downloaded, or exceeds a limit.
        """
        from diffseg.cli.download import download  # takes a tenth of a second

        return download(self.name) if size else b""


class StandardInput:
    """The image on standard input, as a file that is read once."""

    name = "-"
    file_name = "stdin"

    def __str__(self) -> str:
        return self.name

    def read(self, size: int = -1) -> bytes:
        """Read standard input to its end; with a size of 0, return nothing.

        Raises:
            ImageError: there is no image, or it has too many bytes.
        """
        from diffseg.cli.download import read_bounded

        if size == 0:
            return b""
        if sys.stdin.isatty():
            raise ImageError("-: standard input is a terminal; pipe an image into it")
        return read_bounded(sys.stdin.buffer, self.name, seconds=None)


Source: TypeAlias = Path | Download | StandardInput
"""An image as an argument of `segment` names it."""


def is_url(text: str) -> bool:
    """Whether an argument is a URL of any scheme."""
    return "://" in text


def sources(images: Iterable[str], *, recursive: bool = False) -> list[tuple[Source, str]]:
    """Read the arguments: standard input, URLs, and the files, folders and patterns that `expand` resolves.

    Args:
        images: the arguments.
        recursive: also take the images in folders within folders. Their results keep the path below the folder.

    Returns:
        Each image once, with the name of its results.

    Raises:
        typer.BadParameter: standard input is named twice, or a URL is neither http nor https.
    """
    found: dict[str, tuple[Source, str]] = {}
    for item in images:
        if item == "-":
            if item in found:
                raise typer.BadParameter("standard input (-) can be read only once", param_hint="IMAGE")
            found[item] = StandardInput(), StandardInput.file_name
        elif is_url(item):
            if item.partition("://")[0].lower() not in SCHEMES:
                raise typer.BadParameter(f"URLs must be http or https, found {item}", param_hint="IMAGE")
            download = Download(item)
            found[item] = download, download.file_name
        else:
            folder = expand_user(item) if recursive and is_folder(item) else None
            paths = expand([item]) if folder is None else images_below(folder)
            found |= {str(path): (path, result_name(path, folder)) for path in paths if str(path) not in found}
    return list(found.values())


def is_folder(argument: str) -> bool:
    """Whether an argument names a folder."""
    try:
        return expand_user(argument).is_dir()
    except OSError:
        return False


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and all folders in it, in order. Links to folders are not followed."""
    from diffseg.image import SUFFIXES

    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and _is_input(path))


def _is_input(path: Path) -> bool:
    """Whether a path is a file that diffseg did not write."""
    from diffseg.formats.marks import is_marked

    return path.is_file() and not path.name.endswith(OUTPUT_ENDINGS) and not is_marked(path)


def expand(images: Iterable[str]) -> list[Path]:
    """Replace folders by the images in them and glob patterns by their matches; list each path once."""
    from diffseg.image import SUFFIXES

    paths: dict[Path, None] = {}
    for item in images:
        path = expand_user(item)
        found = [path]
        with suppress(OSError):  # reading the image will say what is wrong with its path
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and _is_input(p))
            elif glob.has_magic(item) and not path.exists():
                found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if _is_input(p))  # noqa: PTH207 - absolute and ** patterns
        paths.update(dict.fromkeys(found))
    return list(paths)
