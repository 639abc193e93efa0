"""Request errors with HTTP status codes and headers, and the status codes of the errors that all protocols share."""

from __future__ import annotations

import math
from http import HTTPStatus

from diffseg.serving.protocol.errors import BAD_REQUEST, COSTLY, TOO_LARGE, RequestError

CLIENT_DISCONNECTED = 499
"""Nginx's status code for a client that disconnected before the response. It appears in the log only."""
STATUS = {
    BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    COSTLY: HTTPStatus.BAD_REQUEST,
}
# The server does not read the rest of an oversized body, so the connection cannot be reused.
HEADERS = {TOO_LARGE: {"Connection": "close"}}


class HTTPRequestError(RequestError):
    """A request error with its own status code.

    Attributes:
        status: HTTP status code.
        headers: headers of the response.
    """

    def __init__(self, status: int, outcome: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(outcome, message)
        self.status = status
        self.headers = headers or {}


def status_and_headers(error: RequestError) -> tuple[int, dict[str, str]]:
    """Return the status code and headers of the response to an error."""
    if isinstance(error, HTTPRequestError):
        return error.status, error.headers
    return STATUS[error.outcome], HEADERS.get(error.outcome, {})


def busy(message: str, seconds: float, headers: dict[str, str] | None = None) -> HTTPRequestError:
    """Return the error for a server that is full and expects to have room after `seconds`."""
    after = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return HTTPRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "full", message, after | (headers or {}))


def unavailable(message: str) -> HTTPRequestError:
    """Return the error for a server that cannot segment images, either temporarily or until it is restarted."""
    return HTTPRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message, {"Retry-After": "10"})


def late(seconds: float) -> HTTPRequestError:
    """Return the error for a request that missed its deadline."""
    return HTTPRequestError(
        HTTPStatus.GATEWAY_TIMEOUT, "deadline", f"the request was not done within {seconds:g} s; try again later"
    )


def client_disconnected() -> HTTPRequestError:
    """Return the error for a client that closed its connection before the response."""
    return HTTPRequestError(CLIENT_DISCONNECTED, "left", "the client disconnected before the response")
