"""Encoded images, and the code blocks of docs/triton.md."""

import io
import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
