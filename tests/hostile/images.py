"""Images that are meant to harm, made in memory: mutations of good files, and files that take long to read."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = {
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "F", "I;16"),
}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode an image in memory."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def good(side: int = 24) -> Iterator[tuple[str, bytes]]:
    """Yield undamaged files of every kind and mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for kind in KINDS:
        for mode in MODES.get(kind, ("RGB",)):
            image = Image.fromarray(pixels)
            image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
            yield f"{kind}-{mode}", encode(image, kind)


def mutated(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files: good ones with bits flipped, parts cut, doubled, exchanged or overwritten."""
    rng, sources = random.Random(seed), list(good())  # noqa: S311 - reproducible
    for index in range(count):
        name, data = sources[index % len(sources)]
        file = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(max(1, len(file)))
            size = rng.choice((1, 1, 2, 4, 16, 64))
            match rng.randrange(6):
                case 0:
                    file[start : start + 1] = bytes([rng.randrange(256)])
                case 1:
                    del file[start : start + size]
                case 2:
                    del file[start:]
                case 3:
                    file[start:start] = file[start : start + size] * rng.choice((1, 100))
                case 4:
                    file[start : start + size] = rng.choice((b"\xff", b"\x00", b"\x7f")) * size
                case _:
                    file[start : start + size] = rng.randbytes(size)
        yield f"{name}-{seed}-{index}", bytes(file)


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG whose header says what you like."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return start + b"".join(chunks) + chunk(b"IEND")


def progressive(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


def slow() -> Iterator[tuple[str, bytes]]:
    """Yield files of a few megabytes that would take seconds to minutes to open or decode."""
    jpeg = encode(Image.new("RGB", (16, 16)), "JPEG")
    gif = encode(Image.new("P", (16, 16)), "GIF")
    first = gif.index(b"\x2c", 13 + 3 * 2)
    yield "scans", progressive(1400)
    yield "filling", jpeg[:2] + b"\xff" * 4_000_000 + jpeg[2:]
    yield "junk", jpeg[:2] + b"\x00" * 4_000_000 + jpeg[2:]
    yield "comments", jpeg[:2] + b"\xff\xfe\x00\x02" * 1_000_000 + jpeg[2:]
    yield "escaped", jpeg[:2] + b"\xff\x00" * 2_000_000 + jpeg[2:]
    yield "chunks", png(16, 16, chunk(b"abCd") * 300_000)
    yield "empty IDAT", png(16, 16, chunk(b"IDAT") * 300_000)
    yield "blocks", gif[:first] + b"!\xfe" + b"\x01x" * 2_000_000 + b"\x00" + gif[first:]
    yield "extensions", gif[:first] + b"!\xfe\x00" * 1_000_000 + gif[first:]
    yield "boxes", b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\x00\x00\x00\x08free" * 500_000
    yield "strips", b"II*\x00\x08\x00\x00\x00\x01\x00" + struct.pack("<HHII", 273, 4, 1_000_000, 26) + bytes(4_000_004)
    yield "PPM comment", b"P6\n#" + b"x" * 4_000_000 + b"\n16 16\n255\n" + bytes(768)
    yield "PPM text", b"P3\n700 700\n255\n" + b"1 " * 1_470_000
    yield "strip", png(1, 49_000_000)
