"""An in-memory store of attention from which new masks can be made, limited in bytes and in time."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffseg.segmentation import Segmentation
from PIL import Image


@dataclass(slots=True)
class _Kept:
    result: Segmentation
    used: float


class AttentionStore:
    """Segmentations and their attention, under ids that cannot be guessed. The image itself is not stored.

    Args:
        capacity: bytes of attention and anchor distances. When the store is full, a new segmentation replaces the least
            recently used ones.
        seconds: a segmentation is dropped when it has not been used for this long.
        clock: returns monotonic time in seconds.
    """

    def __init__(self, capacity: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def add(self, result: Segmentation) -> str | None:
        """Store a segmentation and return its id, or None if it has no attention or exceeds the capacity."""
        if result.attention is None or _held(result) > self.capacity:
            return None
        key = secrets.token_urlsafe(16)
        # Drop the image and its labels: they are not counted in the capacity, and nothing needs them again.
        kept = replace(result, image=Image.new("RGB", (1, 1)), labels=result.labels[:0], segments=())
        with self._lock:
            self._expire()
            while self._kept and self._bytes() + _held(kept) > self.capacity:
                self._kept.popitem(last=False)
            self._kept[key] = _Kept(kept, self._clock())
        return key

    def get(self, key: str) -> Segmentation | None:
        """Return a stored segmentation without its image and labels, or None if there is none under this id."""
        with self._lock:
            self._expire()
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.used = self._clock()
            self._kept.move_to_end(key)
            return kept.result

    def drop(self, key: str) -> None:
        """Drop a segmentation, if it is stored."""
        with self._lock:
            self._kept.pop(key, None)

    def expire(self) -> None:
        """Drop the segmentations that have not been used for too long."""
        with self._lock:
            self._expire()

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all stored segmentations."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(_held(kept.result) for kept in self._kept.values())

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._kept and next(iter(self._kept.values())).used < oldest:
            self._kept.popitem(last=False)
        while len(self._kept) > 1 and self._bytes() > self.capacity:  # making masks with more anchors adds distances
            self._kept.popitem(last=False)


def _held(result: Segmentation) -> int:
    return 0 if result.attention is None else result.attention.nbytes
