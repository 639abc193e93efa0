"""Download images from one Label Studio server, with a token and with limits on size and time."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from diffseg.engines.errors import ImageError
from diffseg.serving.protocol.echo import cut, shorten

SCHEMES = ("http", "https")
PATHS = re.compile(r"/(data/.+|storage-data/.+|tasks/\d+/(resolve|presign)/?)")
"""Paths of task files in Label Studio. With any path, whoever writes tasks could use the token for other requests."""
SILENCE = 10.0
"""Seconds for which Label Studio may send nothing."""
SECONDS = 20.0
"""Seconds within which an image must arrive."""
ACCESS_SECONDS = 60.0
"""Seconds for which an access token is used; Label Studio accepts it for five minutes."""
CHUNK = 1 << 18
JWT_DOTS = 2
SAFE = "/%?:@!$&'()*+,;=~-._[]"  # characters of a URL that are left as they are


class LabelStudio:
    """A Label Studio server, and the token with which to read the images of its tasks.

    Args:
        url: URL of the server, such as `https://labels.example.org`.
        token: an access token of either kind; None for images that need none.
        most: largest number of bytes of an image.

    Raises:
        ValueError: the URL is not one of a server, or the token cannot be sent.
    """

    def __init__(self, url: str, token: str | None = None, most: int = 32_000_000) -> None:
        try:
            parts = urlsplit(url)
            self._origin = _origin(parts)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in SCHEMES or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"the URL of Label Studio must be like https://labels.example.org, found {shorten(url)}")
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("the access token of Label Studio must be text without spaces and line breaks")
        self._base = url.rstrip("/") + "/"
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._most = most
        self._access: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def fetch(self, value: object) -> bytes:
        """Download an image of a task.

        Args:
            value: what the task's data hold: a URL of this Label Studio, or a path on it.

        Raises:
            ImageError: the value is not the URL of a file on this Label Studio, or the file cannot be downloaded
                within the limits.
        """
        url = self._checked(value)
        status, data = self._request("GET", url, self._authorisation())
        if status == HTTPStatus.UNAUTHORIZED and self._access is not None:
            self._access = None  # it expired
            status, data = self._request("GET", url, self._authorisation())
        if status == HTTPStatus.OK:
            return data
        hint = "; set its token" if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) else ""
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            hint = ", a redirect, which is not followed; let Label Studio proxy its storage"
        raise ImageError(f"Label Studio answered {status} for {cut(urlsplit(url).path)}{hint}")

    def _checked(self, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ImageError(f"the image of a task must be a URL, found {shorten(value)}")
        try:
            # A path is relative to the root of the server, even if the server's URL has a path.
            url = self._base + value.lstrip("/") if value.startswith("/") and not value.startswith("//") else value
            if self._prefix and value.startswith(self._prefix + "/"):
                url = urljoin(self._base, value)
            parts = urlsplit(url)
            foreign = parts.scheme not in SCHEMES or "@" in parts.netloc or _origin(parts) != self._origin
        except ValueError:
            foreign = True
        if foreign:
            raise ImageError(f"images are only read from Label Studio at {self._base}, found {shorten(value)}")
        path = parts.path.removeprefix(self._prefix)
        plain = unquote(unquote(path))
        if not PATHS.fullmatch(path) or ".." in plain.split("/") or "\\" in plain or not value.isprintable():
            raise ImageError(f"not a path of a task's file on Label Studio: {shorten(value)}")
        return url

    def _authorisation(self) -> str | None:
        """Return the header's value. A personal access token is exchanged for one that is valid for some minutes."""
        token = self._token
        if token is None or token.count(".") != JWT_DOTS:
            return None if token is None else f"Token {token}"
        with self._lock:
            if self._access is None or time.monotonic() > self._access[1]:
                body = json.dumps({"refresh": token}).encode()
                status, data = self._request("POST", self._base + "api/token/refresh/", None, body)
                try:
                    access = json.loads(data)["access"] if status == HTTPStatus.OK else None
                except (ValueError, KeyError, TypeError):
                    access = None
                if not isinstance(access, str) or not access.isascii() or not access.isprintable():
                    raise ImageError(f"Label Studio answered {status} to its personal access token; make a new one")
                self._access = access, time.monotonic() + ACCESS_SECONDS
            return f"Bearer {self._access[0]}"

    def _request(
        self, method: str, url: str, authorisation: str | None, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Send one request, and return the status and the body. Redirects are not followed."""
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=SILENCE)
        headers = {"Accept-Encoding": "identity", "User-Agent": "diffseg"}
        headers |= {} if authorisation is None else {"Authorization": authorisation}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        late, timer = threading.Event(), None
        try:
            connection.connect()
            # The time limit of a socket is per read, so a server that sends one byte at a time could take forever.
            timer = threading.Timer(SECONDS, _end, (connection.sock, late))
            timer.daemon = True
            timer.start()
            target = quote(parts._replace(scheme="", netloc="", fragment="").geturl(), SAFE)
            connection.request(method, target, body, headers)
            with connection.getresponse() as response:
                data = self._read(response)
                if late.is_set():
                    raise TimeoutError
                return response.status, data
        except ImageError:
            raise
        except (HTTPException, OSError, ValueError) as error:
            reason = f"no answer within {SECONDS:g} s" if late.is_set() else str(error) or type(error).__name__
            raise ImageError(f"Label Studio cannot be reached ({cut(' '.join(reason.split()))})") from None
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()

    def _read(self, response: HTTPResponse) -> bytes:
        data = bytearray()
        while part := response.read(CHUNK):
            data += part
            if len(data) > self._most:
                raise ImageError(f"an image may have at most {self._most:,} bytes; scale it down")
        if response.length:
            raise HTTPException("the image did not arrive completely")
        return bytes(data)


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _end(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
