"""Sessions on one or several GPUs. Their number is bounded, because each keeps its own scratch memory and buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from diffseg.engines.errors import ProviderError

S = TypeVar("S")


class DevicePool(Generic[S]):
    """Sessions for threads, one on each device. Threads wait while all sessions are taken.

    Args:
        make: makes a session on a device; called when no session is free and the device has none.
        devices: indices of the devices, in the order in which they are preferred.
    """

    def __init__(self, make: Callable[[int], S], devices: Sequence[int]) -> None:
        self._make = make
        # Devices of sessions that may still be created, and idle sessions with their devices.
        self._unmade = list(devices)
        self._free: list[tuple[int, S]] = []
        self._returned = threading.Condition()

    def add(self, device: int, session: S) -> None:
        """Add an existing session, in place of one that would be created on demand."""
        with self._returned:
            self._unmade.remove(device)
            self._free.append((device, session))

    @contextmanager
    def take(self) -> Iterator[S]:
        """Take a session, or wait for one. A session that failed is dropped, and replaced on demand.

        Raises:
            DeviceMemoryError: a session must be created, and the device's memory is full.
        """
        with self._returned:
            self._returned.wait_for(lambda: self._free or self._unmade)
            device, session = self._free.pop() if self._free else (self._unmade.pop(0), None)
        healthy = False
        try:
            if session is None:
                session = self._make(device)
            yield session
            healthy = True
        finally:
            with self._returned:
                if healthy and session is not None:
                    self._free.append((device, session))
                else:
                    self._unmade.append(device)
                self._returned.notify()


def check_devices(devices: Sequence[int], count: int) -> tuple[int, ...]:
    """Check the indices of devices against the number of GPUs.

    Raises:
        ProviderError: there are none, one is named twice, or one does not exist.
    """
    if not devices or len(set(devices)) < len(devices):
        raise ProviderError(f"--device names each GPU once, found {', '.join(map(str, devices)) or 'none'}")
    for device in devices:
        if not 0 <= device < count:
            known = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise ProviderError(f"there is no GPU {device} here, only {known}: choose another --device")
    return tuple(devices)
