"""Requests that are meant to fill the memory of a server: classes of attacks, each for several connections at once."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.images import chunk, encode, png

MEGA = 1_000_000
SIDE = 7000  # 49 megapixels
BOUND = 2_000 * MEGA
"""Bytes beside the model that a server with default limits never exceeds."""
RESIDUE = 400 * MEGA
"""Bytes beside the model that it may keep for later."""
Sent = tuple[str, bytes, dict[str, str]]
SEGMENT = "/v1/segment"
INFER = "/v2/models/diffseg/infer"


def resident(process: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flat_png(width: int, height: int, channels: int, kind: int, depth: int = 8) -> bytes:
    """A PNG of zeros, which takes a thousandth of its pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + width * channels * depth // 8)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return png(width, height, chunk(b"IDAT", data), depth=depth, kind=kind)


def transparent(side: int) -> Iterator[Sent]:
    data = flat_png(side, side, 4, 6)
    yield from [(SEGMENT, data, {})] * 8
    yield from [(SEGMENT, data, {"Accept": "image/png;kind=overlay"})] * 2


def deep(side: int) -> Iterator[Sent]:
    yield from [(SEGMENT, flat_png(side, side, 1, 0, depth=16), {})] * 8


def long_strips(side: int) -> Iterator[Sent]:
    long = min(32_768, side * side // 40)
    for width, height in ((long, side * side // long), (side * side // long, long), (1, long), (long, 1)):
        yield from [(SEGMENT, flat_png(width, height, 3, 2), {"Accept": "image/png;kind=overlay"})] * 2


def formats(side: int) -> Iterator[Sent]:
    image = Image.new("RGB", (side, side), "teal")
    image.paste("orange", (0, 0, side // 2, side // 3))
    yield from [(SEGMENT, encode(image, "JPEG", progressive=True), {})] * 4
    yield from [(SEGMENT, encode(image, "JPEG"), {"Accept": "image/png;kind=overlay"})] * 4
    yield from [(SEGMENT, encode(image.convert("F"), "TIFF", compression="tiff_deflate"), {})] * 4
    yield from [(SEGMENT, encode(image, "WEBP", method=0), {})] * 4


def many_segments(side: int) -> Iterator[Sent]:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    data = encode(Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST), "PNG")
    yield from [(f"{SEGMENT}?threshold=0&anchors=32&refine=none&counts=list", data, {})] * 4


def settings(_: int) -> Iterator[Sent]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "PNG")
    rounds = "&".join(["threshold=0"] * 8)
    for query in (f"{rounds}&anchors=64&refine=none", "threshold=0&anchors=32&refine=colour", "method=cut&tau=2"):
        yield from [(f"{SEGMENT}?{query}", data, {})] * 3
    yield from [(f"{SEGMENT}?threshold=0&anchors=32&refine={name}", data, {}) for name in ("kmeans", "pamr")]


def json_bodies(_: int) -> Iterator[Sent]:
    for item in ("[]", "{}", "1.5", "70000"):
        data = "[" + ",".join([item] * (3_900_000 // (len(item) + 1))) + "]"
        tensor = f'{{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": {data}}}'
        yield from [(INFER, f'{{"inputs": [{tensor}]}}'.encode(), {})] * 3


def bodies(_: int) -> Iterator[Sent]:
    junk = os.urandom(1 << 20) * 30
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + junk + b"\r\n--b--\r\n"
    yield from [(SEGMENT, form, {"Content-Type": "multipart/form-data; boundary=b"})] * 12
    yield from [(SEGMENT, junk, {})] * 12


def arrays(_: int) -> Iterator[Sent]:
    side = 3200
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, side, side, 3]}
    size = side * side * 3
    message = {"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}
    head = json.dumps(message).encode()
    yield from [(INFER, head + bytes(size), {"Inference-Header-Content-Length": str(len(head))})] * 8
    encoded = flat_png(1000, 1000, 3, 2)
    count = 64
    data = (struct.pack("<I", len(encoded)) + encoded) * count
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "segments"}]}).encode()
    yield from [(INFER, head + data, {"Inference-Header-Content-Length": str(len(head))})] * 2


def kept(_: int) -> Iterator[Sent]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        yield "/v1/images?anchors=32&refine=none", file.getvalue(), {}


CLASSES: dict[str, Callable[[int], Iterator[Sent]]] = {
    "transparent images": transparent,
    "16-bit images": deep,
    "long strips": long_strips,
    "formats": formats,
    "many segments": many_segments,
    "settings": settings,
    "JSON": json_bodies,
    "bodies": bodies,
    "arrays": arrays,
    "kept attention": kept,
}
"""Attacks by name; each takes the side of its largest images in pixels."""
