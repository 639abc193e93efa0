"""Limits on the size and duration of requests, checked before anything is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from diffseg.engines.errors import ImageError
from diffseg.serving.http.errors import HTTPRequestError, busy, client_disconnected
from diffseg.serving.protocol.errors import RequestError, bad_request, too_large
from diffseg.serving.protocol.untrusted import open_encoded
from PIL import Image
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect, Request

MEGA = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests.

    Attributes:
        body: largest body in bytes.
        bodies: largest total of all bodies in memory at once, in bytes.
        body_seconds: seconds within which the whole body must arrive.
        header_seconds: seconds within which the head of a request must arrive.
        write_seconds: seconds within which a client must read at least 100 kB of a response that waits for it.
        pixels: largest number of pixels per image.
        deadline: seconds from the head of a request to its response. A request may set a shorter time.
        queue: largest number of images that wait for the network.
        decoded: bytes that the decoded images of all requests may take at once.
    """

    body: int = 32 * MEGA
    bodies: int = 256 * MEGA
    body_seconds: float = 20.0
    header_seconds: float = 10.0
    write_seconds: float = 10.0
    pixels: int = 50 * MEGA
    deadline: float = 30.0
    queue: int = 64
    decoded: int = 1_000 * MEGA


class Bodies:
    """Reads request bodies into memory and counts their total size."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the whole body. Its bytes count towards `held` until the `async with` block ends.

        Raises:
            RequestError: the body is too large (413), compressed (415) or too slow (408), there is no memory for it
                (503), or the client disconnected.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPRequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "bad_request",
                "the body must not be compressed; send it without Content-Encoding",
            )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.body:
            raise self._too_large(int(announced))
        data, size = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    async for chunk in request.stream():
                        self.held += len(chunk)
                        size += len(chunk)
                        data += chunk
                        self._check(size)
            except TimeoutError:
                message = f"the body did not arrive within {self.limits.body_seconds:g} s"
                raise HTTPRequestError(HTTPStatus.REQUEST_TIMEOUT, "slow", message, {"Connection": "close"}) from None
            except ClientDisconnect:
                raise client_disconnected() from None
            body = bytes(data)
            data.clear()
            yield body
        finally:
            self.held -= size

    def _check(self, size: int) -> None:
        if size > self.limits.body:
            raise self._too_large(size)
        if self.held > self.limits.bodies:
            raise busy("the server has no memory for another body; try again later", 1, {"Connection": "close"})

    def _too_large(self, size: int) -> RequestError:
        return too_large(
            f"a body may have at most {self.limits.body:,} bytes, found at least {size:,}; scale the image down"
        )


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # 0 means no spooling: no part of a request is written to disk


def image_part(headers: Headers, body: bytes) -> bytes:
    """Return the contents of the only file in a multipart form. Call this outside the event loop: forms may be large.

    Raises:
        RequestError: the body is not a form, or the form does not hold exactly one file (400).
    """

    async def whole() -> AsyncIterator[bytes]:
        yield body

    async def contents() -> list[bytes]:
        form = await _MemoryParser(headers, whole(), max_files=1, max_fields=16).parse()  # type: ignore[arg-type]
        try:
            return [await value.read() for value in form.values() if isinstance(value, UploadFile)]
        finally:
            await form.close()

    try:
        files = asyncio.run(contents())
    except Exception:  # the parser raises any exception for a damaged form or an unknown charset  # noqa: BLE001
        message = "the body is not a multipart form with one image file; send such a form, or the image as the body"
        raise bad_request(message) from None
    if len(files) != 1:
        raise bad_request(f"a form must contain one image file, found {len(files)}")
    return files[0]


def open_image(data: bytes, pixels: int) -> Image.Image:
    """Open an encoded image without decoding it: only its header is read.

    Raises:
        ImageError: the data is empty, or is not an image in a known format.
        RequestError: the image has more than `pixels` pixels (413).
    """
    if not data:
        raise ImageError("the body is empty; send an image")
    return open_encoded(data, pixels)
