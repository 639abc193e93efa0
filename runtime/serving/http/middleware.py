"""Middleware for every request: its id, log line and metrics, and the security headers of its response."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Collection
from http import HTTPStatus

from diffseg.serving.http.access import host_name, is_foreign
from diffseg.serving.http.errors import CLIENT_DISCONNECTED
from diffseg.serving.http.memory import release
from diffseg.serving.http.metrics import Metrics
from diffseg.serving.protocol.echo import cut
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

logger = logging.getLogger(__name__)

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
OUTCOMES = {401: "unauthorized", 404: "not_found", 500: "failed", 503: "unavailable"}
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing, and whose answers other sites cannot read
QUIET = ("/v2/health/live", "/v2/health/ready", "/v2/models/{model}/ready", "/metrics")
"""Routes that monitoring requests every few seconds. They are logged at debug level."""


class RequestContext:
    """The outermost middleware. It turns uncaught exceptions into a JSON response and a log line.

    Args:
        app: the application that handles the requests.
        metrics: records every request.
        hosts: host names that the server accepts. None accepts any. A server for this machine only must restrict them,
            so that a website cannot reach it through its own domain name (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Collection[str] | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: check its origin, pass it to the application, and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        given = Headers(scope=scope)
        name = given.get("x-request-id", "")
        current = name if GIVEN_ID.fullmatch(name) else secrets.token_hex(16)
        client = (scope.get("client") or ("",))[0]
        with bound_contextvars(request_id=current, client=client):
            await self._handle(scope, receive, send, current, start)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, current: str, start: float) -> None:
        given = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["start"] = start
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = current
                for key, value in SECURITY_HEADERS.items():
                    headers.setdefault(key, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            # Not Starlette's TrustedHostMiddleware: it answers in plain text, without the names that are accepted, and
            # its older versions read every IPv6 address as "[".
            if self.hosts is not None and host_name(given.get("host", "")) not in self.hosts:
                names = ", ".join(dict.fromkeys(self.hosts))
                message = f"this server accepts only the host names {names}; start it with a token to accept others"
                await _error(answer, HTTPStatus.MISDIRECTED_REQUEST, message)
                return
            if self.hosts is not None and scope["method"] not in SAFE and is_foreign(given):
                await _error(answer, HTTPStatus.FORBIDDEN, "this server accepts no requests from pages of other sites")
                return
            if "content-length" in given and "transfer-encoding" in given:
                message = "a request must not have both Content-Length and Transfer-Encoding"
                await _error(answer, HTTPStatus.BAD_REQUEST, message)
                return
            await self.app(scope, receive, answer)
        except Exception:
            logger.exception("unexpected error")
            state["outcome"] = "failed"
            if not status:
                await _error(answer, HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected error; see the log of the server")
        finally:
            if (charge := state.get("charge")) is not None:
                await release(charge)
            self._note(scope, status or CLIENT_DISCONNECTED, time.monotonic() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        outcome = scope["state"].get("outcome") or OUTCOMES.get(status) or ("ok" if status < 400 else "bad_request")  # noqa: PLR2004
        self.metrics.requests.labels(route, outcome).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        facts = {
            "method": scope["method"],
            "path": cut(scope["path"]),
            "route": route,
            "status": status,
            "outcome": outcome,
            "ms": round(1000 * seconds, 1),
        }
        logger.log(logging.DEBUG if route in QUIET else logging.INFO, "request", extra=facts)


async def _error(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
