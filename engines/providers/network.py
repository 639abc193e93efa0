"""The interface through which the runtime executes a bundle, and a pool of sessions that threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar


class Session(Protocol):
    """One pass through the two graphs at a time. Arrays are of the session's own library: NumPy's or CuPy's.

    `encode` and `attend` may return the session's own memory, which its next pass overwrites: copy it to keep it.
    """

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent."""

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → one (B, n², n²) float32 attention per resolution, finest first; the caller may write into them."""

    def wait(self) -> None:
        """Wait until the device has finished all its work, so that each stage is charged for its own time."""


class Network(Protocol):
    """A bundle's graphs in one provider. Threads may share it.

    Providers inherit from it, and thus get defaults for the methods that only some of them implement.
    """

    provider: str
    device: str
    """The device that runs it: `cpu`, `cuda` or another one. Unless it is `cpu`, the host can decode and write images
    while the network works."""

    def session(self) -> AbstractContextManager[Session]:
        """Take a session for one batch; no other thread uses it at the same time."""

    @property
    def placement(self) -> dict[str, dict[str, int]]:
        """Nodes by graph and ONNX Runtime's provider, as it reports them; empty for providers that report none."""
        return {}

    def sizes_to_warm(self, batch: int) -> Sequence[int]:  # noqa: ARG002 - for providers that plan each size anew
        """Batch sizes, up to a largest one, whose first pass takes longer, the largest first."""
        return [1]


S = TypeVar("S")


class SessionPool(Generic[S]):
    """Sessions for threads: one per thread that needs one at the same time, made when it is first needed."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._free: list[S] = []
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[S]:
        """Take a session, and give it back at the end; a session in which something failed is dropped."""
        with self._lock:
            session = self._free.pop() if self._free else None
        if session is None:
            session = self._make()
        yield session
        with self._lock:
            self._free.append(session)
