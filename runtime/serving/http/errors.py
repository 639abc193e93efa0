"""Why a request is not answered with masks."""

from __future__ import annotations

import math
from http import HTTPStatus

LEFT = 499
"""Nginx's code for a client that left before its answer; nobody reads it but the log."""


class RequestError(Exception):
    """What the client is told, on one line.

    Attributes:
        status: HTTP status code.
        outcome: word for it in metrics and logs.
        headers: that the answer carries.
    """

    def __init__(self, status: int, outcome: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.headers = headers or {}


def bad_request(message: str) -> RequestError:
    """Return the error of a request that could never be answered as it is."""
    return RequestError(HTTPStatus.BAD_REQUEST, "bad_request", message)


def too_large(message: str) -> RequestError:
    """Return the error of a body, or an image, over the limits; the connection is closed, the rest stays unread."""
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message, {"Connection": "close"})


def busy(message: str, seconds: float, headers: dict[str, str] | None = None) -> RequestError:
    """Return the error of a server without room, which expects some after `seconds`."""
    after = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "full", message, after | (headers or {}))


def unavailable(message: str) -> RequestError:
    """Return the error of a server that can't segment, now or ever again."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message, {"Retry-After": "10"})


def late(seconds: float) -> RequestError:
    """Return the error of a request that was not answered within its deadline."""
    return RequestError(HTTPStatus.GATEWAY_TIMEOUT, "deadline", f"not done within {seconds:g} s; try again later")


def left() -> RequestError:
    """Return the error of a client that hung up."""
    return RequestError(LEFT, "left", "the client left before its answer")
