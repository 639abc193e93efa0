"""Access control: bearer tokens and Host headers."""

from __future__ import annotations

import hmac
import ipaddress
from http import HTTPStatus
from typing import Annotated

from diffseg.serving.http.errors import HTTPRequestError
from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
bearer = HTTPBearer(
    auto_error=False, description="The token that the server was started with. A server without a token ignores it."
)


def is_loopback(host: str) -> bool:
    """Return whether a server bound to `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(header: str) -> str:
    """Return the host name from a Host header, without the port and in lower case."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def is_foreign(headers: Headers) -> bool:
    """Return whether a page of another site sent a request, according to the browser.

    Other ports of this machine count as other sites. Old browsers send the header Origin alone; programs send neither.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def same_token(expected: str, found: str) -> bool:
    """Compare two tokens in constant time, so that timing does not reveal how many characters match."""
    # Starlette decodes headers as Latin-1; clients send other characters as UTF-8.
    return hmac.compare_digest(expected.encode(), found.encode("latin-1", "replace"))


async def authorised(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> None:
    """Check the bearer token before the body is read.

    Raises:
        RequestError: the server has a token, and the request does not send it (401).
    """
    token: str | None = request.app.state.service.token
    if token is not None and not (credentials and same_token(token, credentials.credentials)):
        raise HTTPRequestError(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "this server needs a token: send the header Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer", "Connection": "close"},
        )
