"""What executes a bundle, as the runtime sees it; and sessions that threads take turns with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar


class Session(Protocol):
    """One pass through the two graphs at a time. Arrays are of the session's own library: NumPy's or CuPy's.

    What `encode` and `attend` return may be the session's own memory: it holds until the session's next pass.
    """

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent."""

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → one (B, n², n²) float32 attention a resolution, finest first; the caller may write into them."""

    def wait(self) -> None:
        """Return when the device has done all that it was given, so that the time of a stage is its own."""


class Network(Protocol):
    """A bundle's graphs in one provider. Threads may share it."""

    provider: str
    overlaps: bool
    """Whether the host is free while the network works, so that decoding and writing can go on beside it."""
    lends: bool
    """Whether the arrays of a session are its own memory, to be copied by who keeps them."""

    def session(self) -> AbstractContextManager[Session]:
        """Take a session for one batch; nobody else has it meanwhile."""


S = TypeVar("S")


class SessionPool(Generic[S]):
    """As many sessions as there are threads that want one at once; each is made when it is first needed."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._free: list[S] = []
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[S]:
        """Take a session, and give it back at the end; one in which something failed is dropped."""
        with self._lock:
            session = self._free.pop() if self._free else None
        if session is None:
            session = self._make()
        yield session
        with self._lock:
            self._free.append(session)
