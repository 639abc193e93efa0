"""Limits on the structure and metadata of an encoded image, checked before Pillow reads any of it.

Pillow reads markers, chunks and comments one at a time, in Python, and JPEG decoders go over the whole image once per
scan. A small file can therefore take minutes. The checks here walk over the same structures in bounded steps. They
reject only what no camera or editor writes; a file that does not have the expected structure is left to Pillow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from diffseg.engines.errors import ImageError

MOST_PARTS = 20_000  # markers, chunks, boxes or blocks of one file
MOST_METADATA = 8_000_000  # bytes before the pixels
MOST_SCANS = 64  # of a JPEG; usual files have 1 to 10
MOST_SCANNED = 640_000_000  # pixels, summed over the scans of a JPEG
MOST_STRIPS = 65_536  # of a TIFF
MOST_PLAIN = 1_000_000  # bytes of a PPM that writes its pixels as text
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # ends the coded data of a JPEG scan
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_STRIPS = (273, 279, 324, 325)  # TIFF tags: offsets and sizes of strips and tiles


def check_structure(data: bytes) -> None:
    """Check that an encoded image can be opened and decoded with bounded work per pixel.

    Raises:
        ImageError: the file has too many parts, too much metadata or too many scans.
    """
    for magic, check in _CHECKS:
        if data.startswith(magic):
            try:
                check(data)
            except (struct.error, IndexError):  # the file ends early; Pillow says so in its own way
                return
            return


def _jpeg(data: bytes) -> None:
    scans = pixels = 0
    for marker, position in _jpeg_segments(data):
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
            height, width = struct.unpack_from(">HH", data, position + 5)
            pixels = height * width
        elif marker == 0xDA:  # noqa: PLR2004
            scans += 1
            if scans > MOST_SCANS or scans * pixels > MOST_SCANNED:
                raise ImageError(f"a JPEG may have at most {MOST_SCANS} scans, fewer if it is large; save it again")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of each segment of a JPEG, up to its end."""
    position, scanning = 2, False
    for _ in range(MOST_PARTS):
        if scanning:
            found = _MARKER.search(data, position)
            if found is None:
                return
            position = found.start()
        elif position > MOST_METADATA:
            raise _too_much("bytes of metadata")
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # noqa: PLR2004 - filling
            position += 1
        elif marker == 0xD9 and scanning:  # noqa: PLR2004 - the end
            return
        elif marker in (0x00, 0x01, *range(0xD0, 0xDA)):  # markers without contents
            position += 2
        else:
            yield marker, position
            scanning = scanning or marker == 0xDA  # noqa: PLR2004
            position += 2 + max(2, *struct.unpack_from(">H", data, position + 2))
    raise _too_much("markers")


def _png(data: bytes) -> None:
    position, parts, pixels = 8, 0, False
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        pixels = pixels or name == b"IDAT"
        parts += 1
        if parts > MOST_PARTS:
            raise _too_much("chunks")
        if not pixels and position > MOST_METADATA:
            raise _too_much("bytes of metadata")
        if name == b"IEND":
            return
        position += 12 + length


def _gif(data: bytes) -> None:
    flags = data[10]
    position, parts = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while data[position] not in b",;":  # an image, or the end
        extension = data[position] == 0x21  # noqa: PLR2004 - "!"
        position += 2 if extension else 1
        while extension and (size := data[position]):
            position += 1 + size
            parts += 1
            if parts > MOST_PARTS:
                raise _too_much("blocks")
        position += extension
        parts += 1
        if parts > MOST_PARTS:
            raise _too_much("blocks")


def _tiff(data: bytes) -> None:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # noqa: PLR2004 - BigTIFF
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
    entry, start = ("HHQ", offset + 8) if big else ("HHI", offset + 2)
    if count > MOST_PARTS // 10:
        raise _too_much("tags")
    total = 0
    for index in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, start + index * (20 if big else 12))
        if tag in _STRIPS and values > MOST_STRIPS:
            raise _too_much("strips")
        total += values * _TYPE_BYTES.get(kind, 1)
        if total > MOST_METADATA:
            raise _too_much("bytes of metadata")


def _boxes(data: bytes) -> None:
    position, parts = 0, 0
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if length == 1:
            length = struct.unpack_from(">Q", data, position + 8)[0]
        parts += 1
        if parts > MOST_PARTS // 10:
            raise _too_much("boxes")
        if length == 0 or name == b"jp2c":
            return
        position += max(8, length)


def _ppm(data: bytes) -> None:
    header = data[:MOST_PARTS]
    if len(re.sub(rb"#[^\r\n]*[\r\n]?", b"", header).split(None, 4)) <= 4 and len(data) > len(header):  # noqa: PLR2004
        raise _too_much("bytes of metadata")
    if data[1:2] in b"123" and len(data) > MOST_PLAIN:
        raise ImageError(f"a PPM that writes its pixels as text may have at most {MOST_PLAIN:,} bytes; save it as PNG")


def _too_much(what: str) -> ImageError:
    return ImageError(f"the image cannot be opened: it has too many {what}; save it again without them")


_CHECKS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], None]], ...] = (
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    ((b"GIF87a", b"GIF89a"), _gif),
    ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), _tiff),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", _boxes),
    (tuple(b"P" + bytes([n]) for n in b"1234567fFy"), _ppm),
)
