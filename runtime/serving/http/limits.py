"""What a request may bring: sizes and times, checked before anything is decoded."""

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
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MEGA = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request.

    Attributes:
        body: bytes of one body.
        bodies: bytes of all bodies that are held at once.
        body_seconds: in which a body must have come, whole.
        header_seconds: in which the head of a request must have come.
        pixels: of one image.
        deadline: seconds from the head of a request to its answer; a request may ask for less.
        queue: images that may wait for the network.
    """

    body: int = 32 * MEGA
    bodies: int = 512 * MEGA
    body_seconds: float = 20.0
    header_seconds: float = 10.0
    pixels: int = 50 * MEGA
    deadline: float = 30.0
    queue: int = 64


class Bodies:
    """Reads bodies into memory, and knows how much of it they take."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the whole body; its bytes count as held until the end of the block.

        Raises:
            RequestError: too large (413), compressed (415), too slow (408), no room for it (503), or the client left.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPRequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "bad_request", "bodies must not be compressed: no Content-Encoding"
            )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.body:
            raise self._too_large(int(announced))
        data = bytearray()
        try:
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    async for chunk in request.stream():
                        self.held += len(chunk)
                        data += chunk
                        self._check(len(data))
            except TimeoutError:
                message = f"the body did not come within {self.limits.body_seconds:g} s"
                raise HTTPRequestError(HTTPStatus.REQUEST_TIMEOUT, "slow", message, {"Connection": "close"}) from None
            except ClientDisconnect:
                raise client_disconnected() from None
            yield bytes(data)
        finally:
            self.held -= len(data)

    def _check(self, size: int) -> None:
        if size > self.limits.body:
            raise self._too_large(size)
        if self.held > self.limits.bodies:
            raise busy("no memory for more bodies; try again later", 1, {"Connection": "close"})

    def _too_large(self, size: int) -> RequestError:
        return too_large(f"a body may have {self.limits.body:,} bytes, found at least {size:,}; scale the image down")


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # never: nothing of a request goes to the disk


async def image_part(headers: Headers, body: bytes) -> bytes:
    """Take the one file out of a multipart form.

    Raises:
        RequestError: no form, or not exactly one file in it (400).
    """

    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await _MemoryParser(headers, whole(), max_files=1, max_fields=16).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise bad_request(f"not a form with one image: {getattr(error, 'message', error)}") from None
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise bad_request(f"a form must hold one image file, found {len(files)}")
        return await files[0].read()
    finally:
        await form.close()


def open_image(data: bytes, pixels: int) -> Image.Image:
    """Open an encoded image without decoding it: only its head is read.

    Raises:
        ImageError: empty, or no image of a known format.
        RequestError: more than `pixels` pixels (413).
    """
    if not data:
        raise ImageError("an image is missing: the body is empty")
    return open_encoded(data, pixels)
