"""Read images of any kind and size, fit them to the network, and bring label maps back to their size."""

from __future__ import annotations

import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from diffseg.engines.errors import ImageError
from diffseg.pixels import CHANNEL_ORDERS, ChannelOrder, array_to_rgb, image_to_rgb, is_array
from diffseg.sources import file_problem, source_file, source_name
from PIL import Image

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
        channel_order: `bgr` for arrays of OpenCV. It concerns arrays alone: files know their order.

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
        ImageError: the path is a device or a pipe, which would be read for ever or never.
    """
    if isinstance(source, Path) and stat.S_IFMT(source.stat().st_mode) not in {stat.S_IFREG, stat.S_IFDIR}:
        raise ImageError(f"{source}: not a regular file")
    with _warnings_lock, warnings.catch_warnings():
        # Pillow warns from 90 megapixels on, which is acceptable here. Above 178 megapixels it raises.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=formats or _accepted)


@contextmanager
def only_formats(formats: tuple[str, ...]) -> Iterator[None]:
    """Accept no other Pillow formats meanwhile, in any thread: for the command line, which has a process to itself."""
    global _accepted  # noqa: PLW0603
    before, _accepted = _accepted, formats
    try:
        yield
    finally:
        _accepted = before


@dataclass(frozen=True, slots=True)
class Placement:
    """The box of the image that the network sees. With `pad`, it extends beyond the borders of the image.

    Row i of the network's input covers the image rows from `top + i·height/size[0]` to
    `top + (i + 1)·height/size[0]`. Columns correspond likewise, with `left`, `width` and `size[1]`.
    """

    picture: tuple[int, int]  # height, width of the image
    size: tuple[int, int]  # height, width of the network's input
    top: float
    left: float
    height: float
    width: float

    def indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, for each row and each column of the image, the nearest row or column of the network's input."""
        rows = np.floor((np.arange(self.picture[0]) + 0.5 - self.top) * (self.size[0] / self.height))
        columns = np.floor((np.arange(self.picture[1]) + 0.5 - self.left) * (self.size[1] / self.width))
        return (
            np.clip(rows, 0, self.size[0] - 1).astype(np.int64),
            np.clip(columns, 0, self.size[1] - 1).astype(np.int64),
        )

    def seen(self) -> tuple[slice, slice]:
        """Return the rows and the columns of the image whose pixels' centres the network sees, at least one of each."""
        return _within(self.picture[0], self.top, self.height), _within(self.picture[1], self.left, self.width)

    @property
    def hides(self) -> bool:
        """Whether the network does not see the whole image, as with `crop`."""
        rows, columns = self.seen()
        return (rows.stop - rows.start, columns.stop - columns.start) != self.picture


def _within(count: int, start: float, length: float) -> slice:
    """Return which of `count` pixels have their centres in an interval; at least the one in its middle."""
    first, stop = max(0, math.ceil(start - 0.5)), min(count, math.ceil(start + length - 0.5))
    if first < stop:
        return slice(first, stop)
    middle = min(max(int(start + length / 2), 0), count - 1)
    return slice(middle, middle + 1)


def is_plain(pixels: NDArray[np.uint8], placement: Placement) -> bool:
    """Whether an image has one colour only, judged by the network's input (H, W, 3) without the margins of `pad`."""
    (height, width), (y, x) = (
        placement.picture,
        (placement.size[0] / placement.height, placement.size[1] / placement.width),
    )
    rows = _within(placement.size[0], -placement.top * y, height * y)
    columns = _within(placement.size[1], -placement.left * x, width * x)
    shown = pixels[rows, columns]
    return bool((shown[0] == shown[0, 0]).all() and (shown == shown[0, 0]).all())


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


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of an image."""

    label: int
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # left, top, width, height in pixels, as in COCO


def place_labels(labels: NDArray[np.uint16], placement: Placement) -> tuple[NDArray[np.uint16], tuple[Segment, ...]]:
    """Resize a label map from the network's input size to the size of the image and renumber its labels.

    Labels are resized by nearest neighbour, which only repeats or drops rows and columns. So areas and boxes are
    computed on the small map, from its horizontal runs of equal labels, which are far fewer than its pixels.

    Args:
        labels: (h, w) uint16, at the network's input size.
        placement: which box of the image the network saw.

    Returns:
        (H, W) uint16 labels from 0 to k-1 without gaps, at the size of the image, and one segment per label, largest
        first. If the network does not see the whole image, the pixels that it does not see have the last label, k-1.
    """
    (all_rows, all_columns), (in_rows, in_columns) = placement.indices(), placement.seen()
    rows, columns = all_rows[in_rows], all_columns[in_columns]
    top, bottom = (edge + in_rows.start for edge in _spans(rows, labels.shape[0]))
    left, right = (edge + in_columns.start for edge in _spans(columns, labels.shape[1]))
    seen_rows, seen_columns = np.flatnonzero(bottom > top), np.flatnonzero(right > left)
    seen = labels
    if labels.shape != (len(seen_rows), len(seen_columns)):
        seen = labels.take(seen_rows, axis=0).take(seen_columns, axis=1)
    begins = np.empty(seen.size, dtype=bool)
    np.not_equal(seen.ravel()[1:], seen.ravel()[:-1], out=begins[1:])
    begins[:: seen.shape[1]] = True
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], seen.size) - 1
    run_labels, run_rows = seen.ravel()[starts], seen_rows[starts // seen.shape[1]]
    first, last = left[seen_columns[starts % seen.shape[1]]], right[seen_columns[ends % seen.shape[1]]]
    order = np.argsort(run_labels, kind="stable")  # the runs of a label stay in the order of their rows
    sorted_labels = run_labels[order]
    begin = np.flatnonzero(np.append(True, sorted_labels[1:] != sorted_labels[:-1]))
    end = np.append(begin[1:], len(order)) - 1
    kept = sorted_labels[begin]
    areas = np.add.reduceat(((bottom - top)[run_rows] * (last - first))[order], begin)
    x, y = np.minimum.reduceat(first[order], begin), top[run_rows[order[begin]]]
    widths, heights = np.maximum.reduceat(last[order], begin) - x, bottom[run_rows[order[end]]] - y
    boxes = np.stack([x, y, widths, heights], axis=1).tolist()
    segments = [Segment(i, area, tuple(box)) for i, (area, box) in enumerate(zip(areas.tolist(), boxes, strict=True))]
    dense = np.zeros(int(labels.max()) + 1, dtype=np.uint16)
    dense[kept] = np.arange(len(kept), dtype=np.uint16)
    placed = dense[labels].take(columns, axis=1).take(rows, axis=0)  # whole rows are copied last, which is fastest
    if placement.hides:
        whole = np.full(placement.picture, len(kept), dtype=np.uint16)
        whole[in_rows, in_columns] = placed
        segments.append(_void(placement, len(kept)))
        placed = whole
    return placed, tuple(sorted(segments, key=lambda s: (-s.area, s.label)))


def _void(placement: Placement, label: int) -> Segment:
    """Return the segment of the pixels that the network does not see."""
    (height, width), (rows, columns) = placement.picture, placement.seen()
    hidden_rows, hidden_columns = np.ones(height, dtype=bool), np.ones(width, dtype=bool)
    hidden_rows[rows], hidden_columns[columns] = False, False
    # A hidden column hides a pixel of every row, and a hidden row one of every column.
    y = np.arange(height) if hidden_columns.any() else np.flatnonzero(hidden_rows)
    x = np.arange(width) if hidden_rows.any() else np.flatnonzero(hidden_columns)
    box = int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)
    return Segment(label, height * width - (rows.stop - rows.start) * (columns.stop - columns.start), box)


def _spans(indices: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first image row of each of `size` rows of the small map, and the row after its last, (size,) each.

    `indices` rises: the row of the small map for each row of the image. Both are equal for a row that is not shown.
    """
    ends = np.bincount(indices, minlength=size).cumsum()
    return np.append(0, ends[:-1]), ends
