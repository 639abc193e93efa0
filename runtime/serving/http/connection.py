"""Connections with a time limit for the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient(seconds: float) -> type[H11Protocol]:
    """Return a protocol that disconnects clients that take longer than `seconds` to send a request head.

    This protects the server from slowloris attacks. It builds on private parts of uvicorn, because uvicorn has no such
    limit, and a server without a proxy in front must bound slow clients itself.
    """

    class Impatient(H11Protocol):
        _alarm: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _watch(self) -> None:
            between: Any = self.cycle is None or self.cycle.response_complete
            if not between:
                self._disarm()
            elif self._alarm is None:
                self._alarm = self.loop.call_later(seconds, self.transport.close)

        def _disarm(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    return Impatient
