"""A budget of memory for decoded images, over all requests in flight."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import threading

from diffseg.serving.http.errors import busy
from diffseg.serving.protocol.errors import too_large

LARGE = 64_000_000
"""Bytes. When a charge of more than this is released, its memory is returned to the system."""

MAPPED = 16 << 20
"""Bytes. Larger arrays are returned to the system when freed. By default, freeing one raises the limit permanently."""
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h


def set_allocator() -> None:
    """Make the C library of Linux return large arrays to the system when they are freed. For the whole process."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 2)  # by default, each thread keeps what it has freed
            mallopt(M_MMAP_THRESHOLD, MAPPED)


def trim() -> None:
    """Return freed memory that the C library keeps for reuse to the system."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def collect() -> None:
    """Free what refers to itself, as the finished tasks of a request do, and return it to the system."""
    gc.collect()
    trim()


class MemoryBudget:
    """Counts the bytes that decoded images take, from their decoding to their response.

    Args:
        capacity: largest total in bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._lock = threading.Lock()

    def charge(self, size: int) -> Charge:
        """Take `size` bytes out of the budget. The caller releases the charge.

        Raises:
            RequestError: the images can never fit (413), or do not fit beside those of other requests (503).
        """
        if size > self.capacity:
            raise too_large(
                f"the images of a request may take at most {self.capacity // 1_000_000:,} MB of memory, "
                f"found {size // 1_000_000:,} MB; send fewer or smaller ones"
            )
        with self._lock:
            if self.held + size > self.capacity:
                raise busy("the server has no memory for further images; try again later", 1)
            self.held += size
        return Charge(self, size)

    def give_back(self, size: int) -> None:
        """Return `size` bytes to the budget. Large amounts are returned to the system first."""
        if size > LARGE:
            collect()  # the tasks of the request refer to its masks
        with self._lock:
            self.held -= size


async def release(charge: Charge) -> None:
    """Release a charge at the end of a request, without blocking other requests."""
    if charge.size > LARGE:
        await asyncio.to_thread(charge.release)
    else:
        charge.release()


class Charge:
    """Bytes that are reserved in a budget until all their users have released them."""

    def __init__(self, memory: MemoryBudget, size: int) -> None:
        self.memory = memory
        self.size = size
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Add a user, such as a thread that decodes an image and may outlive the request.

        Raises:
            TimeoutError: all users have released the charge: the request has ended.
        """
        with self._lock:
            if self._users == 0:
                raise TimeoutError
            self._users += 1

    def release(self) -> None:
        """Remove a user. The last one returns the bytes, which takes a while if they are many."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.memory.give_back(self.size)
