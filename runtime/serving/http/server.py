"""The running server: uvicorn, its signals and its time limits."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import uvicorn
from diffseg.serving.http.access import LOCAL_NAMES, is_loopback
from diffseg.serving.http.app import make_app
from diffseg.serving.http.connection import impatient
from diffseg.serving.http.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 256


class Server(uvicorn.Server):
    """Tells readiness that it drains as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self.service.draining = True
        super().handle_exit(sig, frame)


def make_server(service: Service, host: str, port: int) -> Server:
    """Return a server that is not running yet; port 0: any free one.

    Without a token, a server of this machine alone answers to this machine's names only.
    """
    local = service.token is None and is_loopback(host)
    limits = service.limits
    config = uvicorn.Config(
        make_app(service, (*LOCAL_NAMES, host) if local else None),
        host=host,
        port=port,
        http=impatient(limits.header_seconds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(limits.deadline + limits.body_seconds),
    )
    return Server(config, service)


def run_server(service: Service, host: str, port: int) -> None:
    """Serve until a signal: SIGTERM and Ctrl-C finish what was begun, and a second Ctrl-C doesn't."""

    def done(*_: object) -> NoReturn:
        sys.exit(0)

    # Uvicorn raises the signal once more when it has drained: that is the time to end.
    signal.signal(signal.SIGTERM, done)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(service, host, port).run()
