"""Downloads with limits on size, time and redirects."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import IO, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from urllib.request import HTTPDefaultErrorHandler, HTTPErrorProcessor  # isort: skip

from diffseg.cli.sources import SCHEMES
from diffseg.engines.errors import ImageError

MOST_BYTES = 128 << 20
CHUNK = 1 << 20
REDIRECTIONS = 5
SILENCE = 10.0
"""Seconds for which a server may send nothing."""
SECONDS = 60.0
"""Seconds within which an image must arrive."""


class Reader(Protocol):
    """An object that is read in pieces."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102


class Redirections(HTTPRedirectHandler):
    """Follows a few redirects, and only to http and https."""

    max_redirections = REDIRECTIONS
    max_repeats = REDIRECTIONS

    def redirect_request(  # noqa: D102
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise URLError(f"redirected to {newurl}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def download(url: str) -> bytes:
    """Download a file.

    Raises:
        ImageError: it cannot be downloaded, or exceeds a limit.
    """
    if not url.lower().startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
        raise ImageError(f"{url}: cannot be downloaded (neither http nor https)")
    opener = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), Redirections(), HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    opener.add_handler(HTTPErrorProcessor())
    try:
        request = Request(url, headers={"User-Agent": "diffseg"})  # noqa: S310 - only http and https have handlers
        with opener.open(request, timeout=SILENCE) as response:
            return read_bounded(response, url)
    except ImageError:
        raise
    except HTTPError as error:
        error.close()
        reason = f"the server answered {error.code} {error.reason}"
    except (HTTPException, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error or type(error).__name__)
    raise ImageError(f"{url}: cannot be downloaded ({' '.join(reason.split())})")


def read_bounded(stream: Reader, name: str, *, seconds: float | None = SECONDS) -> bytes:
    """Read a stream of at most `MOST_BYTES` to its end.

    Args:
        stream: the stream to read.
        name: name of the image, for messages.
        seconds: time limit; None: no limit.

    Raises:
        ImageError: there are more bytes, or they take longer.
    """
    parts: list[bytes] = []
    total, start = 0, time.monotonic()
    while part := stream.read(CHUNK):
        parts.append(part)
        total += len(part)
        if total > MOST_BYTES:
            raise ImageError(f"{name}: more than {MOST_BYTES >> 20} MiB; scale the image down first")
        if seconds is not None and time.monotonic() - start > seconds:
            raise ImageError(f"{name}: not downloaded within {seconds:g} s; download it first")
    return b"".join(parts)
