"""Read images of any kind and size, and fit them to the network."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from diffseg.engines.errors import ImageError
from diffseg.pixels import CHANNEL_ORDERS, ChannelOrder, array_to_rgb, image_to_rgb, is_array
from diffseg.placement import Placement
from diffseg.sources import file_problem, source_file, source_name
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from diffseg.pixels import ArrayLike, DlpackLike, Readable
    from numpy.typing import NDArray

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image"
    " | NDArray[Any] | ArrayLike | DlpackLike"
)
ACCEPTED_SOURCES = "a path, bytes, an open file, a PIL image or an array"
Fit = Literal["stretch", "crop", "pad"]
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded from untrusted sources. EPS, which starts Ghostscript, and rarely used formats are not."""
COMMON = ("BMP", "GIF", "JPEG", "PNG", "PPM")
"""Formats that Pillow loads before any other."""
PAD_GREY = (127, 127, 127)
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of the images in a folder. A file given by its own path may have any suffix."""

_accepted: tuple[str, ...] | None = None
_warnings_lock = threading.Lock()  # all threads share one list of warning filters


def read_image(source: ImageSource, channel_order: ChannelOrder = "rgb") -> Image.Image:
    """Decode an image to RGB, upright.

    The EXIF orientation is applied, transparent images are composited over white, 16-bit and float greyscale images
    are scaled to 8 bits, and only the first frame of an animation is used. Bytes and open files may come from
    anywhere, so only `FORMATS` are decoded from them; a path may have any format that Pillow reads.

    Args:
        source: a path, the bytes of an image file, an open binary file (read from its start if it can seek), a PIL
            image, or an array of any library: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or float
            (0 to 1).
        channel_order: `bgr` for arrays of OpenCV. It applies to arrays only.

    Raises:
        ImageError: the file does not exist, is not an image, is damaged or empty, or has more than 178 megapixels
            (a decompression bomb); or the array is not one of those.
        ValueError: an unknown channel order.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order must be {' or '.join(CHANNEL_ORDERS)}, found {channel_order!r}")
    file = source_file(source)
    if file is None and not isinstance(source, Image.Image):
        if is_array(source):
            return array_to_rgb(source, channel_order)
        raise ImageError(f"an image must be {ACCEPTED_SOURCES}, found {type(source).__name__}")
    name = source_name(source) or "image"
    try:
        if file is None:
            return image_to_rgb(cast("Image.Image", source))
        with open_lazily(file, None if isinstance(file, Path) else FORMATS) as image:
            return image_to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}; scale it down first") from None
    except FileNotFoundError:
        hint = "; download it first, and pass its bytes" if name.startswith(("http:/", "https:/")) else ""
        raise ImageError(f"{name}: no such file{hint}") from None
    except Exception as error:  # for a damaged file, a decoder may raise any exception  # noqa: BLE001
        raise ImageError(f"{name}: {file_problem(file, error, FORMATS)}") from None


def open_lazily(source: Path | IO[bytes], formats: tuple[str, ...] | None = None) -> Image.Image:
    """Read the header of an image file. Pillow's exceptions are not translated.

    Args:
        source: a path or an open file.
        formats: names of the Pillow formats to accept; None accepts all, or those of `only_formats`.

    Raises:
        ImageError: the path is a device or a pipe, from which a read may never end.
    """
    if isinstance(source, Path) and stat.S_IFMT(source.stat().st_mode) not in {stat.S_IFREG, stat.S_IFDIR}:
        raise ImageError(f"{source}: not a regular file")
    with _warnings_lock, warnings.catch_warnings():
        # Pillow warns from 90 megapixels on, which is acceptable here. Above 178 megapixels it raises.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _open(source, formats or _accepted)


def _open(source: Path | IO[bytes], formats: tuple[str, ...] | None) -> Image.Image:
    """Open an image with the few formats that Pillow always loads; only for others, load its 40 plugins (30 ms)."""
    common = tuple(name for name in COMMON if formats is None or name in formats)
    start = None if isinstance(source, Path) else source.tell()
    Image.preinit()  # from Pillow 13 on, opening loads only what the suffix asks for, or everything
    try:
        return Image.open(source, formats=common)
    except UnidentifiedImageError:
        if not isinstance(source, Path) and start is not None:
            source.seek(start)
        return Image.open(source, formats=formats)


@contextmanager
def only_formats(formats: tuple[str, ...]) -> Iterator[None]:
    """Accept no other Pillow formats in this block, in any thread. For the command line, which owns its process."""
    global _accepted  # noqa: PLW0603
    before, _accepted = _accepted, formats
    try:
        yield
    finally:
        _accepted = before


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit = "stretch") -> tuple[NDArray[np.uint8], Placement]:
    """Resize an image to the network's input size, bilinearly and with antialiasing.

    Args:
        image: RGB image.
        size: height and width of the network's input, in pixels.
        fit: `stretch` changes the aspect ratio to that of the input; `crop` uses the largest centred box with the
            aspect ratio of the input, and gives all pixels outside it one label of their own; `pad` adds grey margins.

    Returns:
        The input, uint8 (H, W, 3), and its placement in the image.

    Raises:
        ValueError: `fit` is unknown.
    """
    width, height = image.size
    rows, columns = size
    if fit == "pad":
        scale = min(rows / height, columns / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        above, before = (rows - inner[0]) // 2, (columns - inner[1]) // 2
        canvas = Image.new("RGB", (columns, rows), PAD_GREY)
        canvas.paste(_resize(image, inner, (0, 0, width, height)), (before, above))
        y, x = height / inner[0], width / inner[1]  # image pixels per input pixel
        placement = Placement((height, width), size, -above * y, -before * x, rows * y, columns * x)
        return np.asarray(canvas), placement
    if fit == "crop":
        box_height, box_width = min(height, width * rows / columns), min(width, height * columns / rows)
        top, left = (height - box_height) / 2, (width - box_width) / 2
        box = (left, top, left + box_width, top + box_height)
        placement = Placement((height, width), size, top, left, box_height, box_width)
        return np.asarray(_resize(image, size, box)), placement
    if fit != "stretch":
        raise ValueError(f"fit must be stretch, crop or pad, found {fit!r}")
    placement = Placement((height, width), size, 0, 0, height, width)
    return np.asarray(_resize(image, size, (0, 0, width, height))), placement


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    # reducing_gap: large images are first reduced by an integer factor, which is faster and not visible
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
