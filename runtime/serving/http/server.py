"""Run the server: uvicorn, its signal handling and its time limits."""

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
    """A uvicorn server that reports itself as not ready as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to stop: mark the service as draining."""
        self.service.draining = True
        super().handle_exit(sig, frame)


def make_server(service: Service, host: str, port: int) -> Server:
    """Return a server that is not running yet. Port 0 selects any free port.

    Without a token, a server that only this machine can reach accepts only the host names of this machine.
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
    """Serve until a signal arrives.

    After SIGTERM or Ctrl-C, the server finishes the requests in progress. A second Ctrl-C stops it at once.
    """

    def done(*_: object) -> NoReturn:
        sys.exit(0)

    # Uvicorn raises the signal again once it has finished all requests; end the process then.
    signal.signal(signal.SIGTERM, done)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(service, host, port).run()
