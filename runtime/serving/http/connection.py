"""Connections with time limits for the head of a request and for the reading of its response."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

LEAST_READ = 100_000
"""Bytes of a waiting response that a client must read within the time limit."""


class Impatient(H11Protocol):
    """A protocol that ends slow connections.

    It protects the server from slowloris attacks, and from responses that nobody reads, which would stay in memory. It
    builds on private parts of uvicorn, because uvicorn has no such limits, and a server without a proxy in front must
    bound slow clients itself.

    Attributes:
        head_seconds: seconds that a client may take to send a request head.
        write_seconds: seconds within which a client must read `LEAST_READ` bytes of a response that waits for it.
    """

    head_seconds: ClassVar[float] = 10.0
    write_seconds: ClassVar[float] = 10.0
    _alarm: asyncio.TimerHandle | None = None
    _write_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._disarm()
        self._disarm_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start to wait for the client to read."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Go on writing: the client has read."""
        self._disarm_writing()
        super().resume_writing()

    def _watch(self) -> None:
        between: Any = self.cycle is None or self.cycle.response_complete
        if not between:
            self._disarm()
        elif self._alarm is None:
            self._alarm = self.loop.call_later(self.head_seconds, self.transport.close)

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _watch_writing(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._write_alarm = self.loop.call_later(self.write_seconds, self._check_reader, unsent)

    def _check_reader(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() > unsent - LEAST_READ:
            self.transport.abort()
        else:
            self._watch_writing()

    def _disarm_writing(self) -> None:
        if self._write_alarm is not None:
            self._write_alarm.cancel()
            self._write_alarm = None


def impatient(head_seconds: float, write_seconds: float) -> type[Impatient]:
    """Return the protocol with its time limits; see `Impatient`."""
    limits = {"head_seconds": head_seconds, "write_seconds": write_seconds}
    return type("ImpatientProtocol", (Impatient,), limits)
