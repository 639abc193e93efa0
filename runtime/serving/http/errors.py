"""Errors with HTTP status codes and headers, and the status codes of the errors that every server shares."""

from __future__ import annotations

import math
from http import HTTPStatus

from diffseg.serving.protocol.errors import BAD_REQUEST, TOO_LARGE, RequestError

CLIENT_DISCONNECTED = 499
"""Nginx's status code for a client that disconnected before its answer; only the log shows it."""
STATUS = {BAD_REQUEST: HTTPStatus.BAD_REQUEST, TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
# The rest of a body that is too large is not read, so the connection cannot be used again.
HEADERS = {TOO_LARGE: {"Connection": "close"}}


class HTTPRequestError(RequestError):
    """A request error with a status code of its own.

    Attributes:
        status: HTTP status code.
        headers: headers of the answer.
    """

    def __init__(self, status: int, outcome: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(outcome, message)
        self.status = status
        self.headers = headers or {}


def status_and_headers(error: RequestError) -> tuple[int, dict[str, str]]:
    """Return the status code and the headers with which an error is answered."""
    if isinstance(error, HTTPRequestError):
        return error.status, error.headers
    return STATUS[error.outcome], HEADERS.get(error.outcome, {})


def busy(message: str, seconds: float, headers: dict[str, str] | None = None) -> HTTPRequestError:
    """Return the error of a full server that expects to have room after `seconds`."""
    after = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return HTTPRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "full", message, after | (headers or {}))


def unavailable(message: str) -> HTTPRequestError:
    """Return the error of a server that cannot segment images at the moment, or until it is restarted."""
    return HTTPRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message, {"Retry-After": "10"})


def late(seconds: float) -> HTTPRequestError:
    """Return the error of a request that missed its deadline."""
    return HTTPRequestError(HTTPStatus.GATEWAY_TIMEOUT, "deadline", f"not done within {seconds:g} s; try again later")


def client_disconnected() -> HTTPRequestError:
    """Return the error of a client that closed its connection before its answer."""
    return HTTPRequestError(CLIENT_DISCONNECTED, "left", "the client disconnected before its answer")
