"""The mark in every file that diffseg writes, which distinguishes it from other files."""

from __future__ import annotations

import stat
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

GENERATOR = "diffseg"
JSON_KEY = "generator"
SVG_ATTRIBUTE = f'data-generator="{GENERATOR}"'
JSON_HEAD = f'{{\n "{JSON_KEY}": "{GENERATOR}"'
"""How a marked JSON file starts: the mark is its first key."""
PNG_KEY = "Software"
HEAD = 1024


def png_mark() -> PngInfo:
    """Return the text chunk of a marked PNG."""
    info = PngInfo()
    info.add_text(PNG_KEY, GENERATOR)
    return info


def is_marked(path: Path) -> bool:
    """Whether a file has the mark of diffseg; False if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as stream:
            head = stream.read(HEAD)
            if head.startswith(b"\x89PNG"):
                stream.seek(0)
                with Image.open(stream, formats=("PNG",)) as image:
                    return bool(image.info.get(PNG_KEY) == GENERATOR)
    except Exception:  # for a damaged file, Pillow may raise any exception  # noqa: BLE001
        return False
    text = head.decode("utf-8", errors="replace")
    return text.startswith(JSON_HEAD) or (text.startswith("<svg ") and SVG_ATTRIBUTE in text.partition(">")[0])
