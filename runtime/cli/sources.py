"""What the arguments of `segment` name: files, folders, standard input and images on the web."""

from __future__ import annotations

import glob
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
        """The last part of the URL's path, else its host, as a name that any file system takes."""
        parts = urlsplit(self.name)
        name = PurePosixPath(unquote(parts.path)).name or parts.hostname or "image"
        return re.sub(r"[^\w.() -]", "_", name)[-LONGEST_NAME:]

    def read(self, size: int = -1) -> bytes:
        """Download the whole image; with a size of 0, return nothing.

        Raises:
            ImageError: it cannot be downloaded, or not within the bounds.
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
    """Whether an argument names something on a network, of whatever scheme."""
    return "://" in text


def sources(images: Iterable[str]) -> list[Source]:
    """Read the arguments: standard input, URLs, and everything that `expand` knows.

    Raises:
        typer.BadParameter: standard input is named twice, or a URL is neither http nor https.
    """
    found: dict[str, Source] = {}
    for item in images:
        if item == "-":
            if item in found:
                raise typer.BadParameter("standard input (-) can be read only once", param_hint="IMAGE")
            found[item] = StandardInput()
        elif is_url(item):
            if item.partition("://")[0].lower() not in SCHEMES:
                raise typer.BadParameter(f"URLs must be http or https, found {item}", param_hint="IMAGE")
            found[item] = Download(item)
        else:
            found |= {str(path): path for path in expand([item]) if str(path) not in found}
    return list(found.values())


def result_path(source: object) -> Path:
    """Return the path after which the results of an image are named."""
    return Path(source.file_name) if isinstance(source, Download | StandardInput) else Path(str(source))


def expand(images: Iterable[str]) -> list[Path]:
    """Replace folders by the images in them and glob patterns by their matches; list each path once."""
    from diffseg.formats.marks import is_marked
    from diffseg.image import SUFFIXES

    def wanted(path: Path) -> bool:
        return path.is_file() and not path.name.endswith(OUTPUT_ENDINGS) and not is_marked(path)

    paths: dict[Path, None] = {}
    for item in images:
        path = expand_user(item)
        found = [path]
        with suppress(OSError):  # reading the image will say what is wrong with its path
            if path.is_dir():
                found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and wanted(p))
            elif glob.has_magic(item) and not path.exists():
                found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if wanted(p))  # noqa: PTH207 - absolute and ** patterns
        paths.update(dict.fromkeys(found))
    return list(paths)
