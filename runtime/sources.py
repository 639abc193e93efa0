"""Image files, given as paths, bytes or open files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, cast

from diffseg.engines.errors import ImageError
from diffseg.engines.text import first_line
from diffseg.file_kinds import HEAD, foreign_kind
from PIL import Image, UnidentifiedImageError


def source_name(source: object) -> str | None:
    """Return the path of an image, or the name of its open file; None for images in memory."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "filename" if isinstance(source, Image.Image) else "name", None)
    return name if isinstance(name, str) and name else None


def source_file(source: object) -> Path | IO[bytes] | None:
    """Return what Pillow can open, or None if the source is not a file."""
    if isinstance(source, str | os.PathLike):
        return Path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    read = getattr(source, "read", None)
    if read is None or isinstance(source, Image.Image):
        return None
    name = source_name(source) or "image"
    try:
        binary = isinstance(read(0), bytes)
        if binary and getattr(source, "seekable", lambda: False)():
            return cast("IO[bytes]", source)
        data = read() if binary else b""
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read ({error})") from None
    if not binary:
        raise ImageError(f"{name}: the file must be open in binary mode, as with open(…, 'rb')")
    return io.BytesIO(data)


def file_problem(file: Path | IO[bytes] | None, error: Exception, formats: Sequence[str]) -> str:
    """Say why a file could not be decoded."""
    head = b""
    if file is not None:
        with suppress(OSError, ValueError), file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
            stream.seek(0)
            head = stream.read(HEAD)
    if known := foreign_kind(head):
        return known
    if isinstance(error, UnidentifiedImageError):
        formats = "an image that Pillow can read" if isinstance(file, Path) else f"an image ({', '.join(formats)})"
        return f"not {formats}" if head else "an empty file"
    reason = first_line(error)
    return f"cannot be decoded ({reason})"
