"""Errors of requests, without the status codes of a particular protocol."""

from __future__ import annotations

BAD_REQUEST, TOO_LARGE, COSTLY = "bad_request", "too_large", "costly"


class RequestError(Exception):
    """A request that cannot be answered; the message is one line for the client.

    Each server turns the outcome into its own status codes.

    Attributes:
        outcome: the kind of problem, as one word for metrics and logs.
    """

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def bad_request(message: str) -> RequestError:
    """Return the error of a request that must be changed before it can be answered."""
    return RequestError(BAD_REQUEST, message)


def too_large(message: str) -> RequestError:
    """Return the error of a request body or an image that exceeds the limits."""
    return RequestError(TOO_LARGE, message)
