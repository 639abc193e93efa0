"""Run the server: its address, uvicorn, its signal handling and its time limits."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextvars import Context
from types import FrameType
from typing import NoReturn

import uvicorn
from diffseg.serving.http.access import LOCAL_NAMES, is_loopback
from diffseg.serving.http.app import make_app
from diffseg.serving.http.connection import impatient
from diffseg.serving.http.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 256
REASONS = {
    errno.EADDRINUSE: "the port is in use; choose another one with --port",
    errno.EADDRNOTAVAIL: "this machine does not have the address; choose another one with --host",
    errno.EACCES: "ports below 1024 need more rights; choose another one with --port",
}


class Server(uvicorn.Server):
    """A uvicorn server that logs its address, and reports itself as not ready as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        facts = self.service.facts
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        logger.info("%s with provider %s is running on http://%s:%d", facts["model"], facts["provider"], host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to stop: mark the service as draining."""
        if not self.service.draining:
            # A signal may arrive while a request runs. Its id must not appear in this line.
            Context().run(logger.info, "stopping once the requests in progress are finished")
        self.service.draining = True
        super().handle_exit(sig, frame)


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of a host, without listening yet. Port 0 selects any free port.

    Raises:
        OSError: an address cannot be bound. Its text is one line that says why.
    """
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            opened.append(socket.socket(family, kind, protocol))
            if sys.platform != "win32":  # there, it would let two servers share a port
                opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened[-1].bind(address)
    except OSError as error:
        for item in opened:
            item.close()
        raise OSError(bind_problem(error, host, port)) from None
    return opened


def bind_problem(error: OSError, host: str, port: int) -> str:
    """Say in one line why the server cannot listen."""
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {host}: no such host; choose another one with --host"
    reason = REASONS.get(error.errno or 0) or error.strerror or type(error).__name__
    return f"cannot listen on {host}, port {port}: {reason}"


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
        http=impatient(limits.header_seconds, limits.write_seconds),
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


def run_server(service: Service, host: str, port: int, sockets: Sequence[socket.socket]) -> None:
    """Serve until a signal arrives.

    After SIGTERM or Ctrl-C, the server finishes the requests in progress. A second Ctrl-C stops it at once.

    Args:
        service: the service to run.
        host: name or address that `sockets` are bound to.
        port: their port, or 0.
        sockets: see `open_sockets`.

    Raises:
        OSError: another server began to listen on the port after the sockets were bound.
    """

    def done(*_: object) -> NoReturn:
        sys.exit(0)

    # Uvicorn raises the signal again once it has finished all requests; end the process then.
    signal.signal(signal.SIGTERM, done)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(service, host, port).run(sockets=list(sockets))
