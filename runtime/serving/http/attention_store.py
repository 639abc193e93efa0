"""An in-memory store of attention from which new masks can be made, limited in bytes and in time."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from cachetools import Cache, TTLCache
from diffseg.segmentation import Segmentation
from PIL import Image


class AttentionStore:
    """Segmentations and their attention, under ids that cannot be guessed. The image itself is not stored.

    Args:
        capacity: bytes of attention and anchor distances. When the store is full, a new segmentation replaces the least
            recently used ones.
        seconds: a segmentation is dropped when it has not been used for this long.
        clock: returns monotonic time in seconds.
        prefix: prefix of the ids, by which clients reach the same one of several servers again.
    """

    def __init__(
        self, capacity: int, seconds: float, clock: Callable[[], float] = time.monotonic, *, prefix: str = ""
    ) -> None:
        self.capacity = capacity
        self.prefix = prefix
        self._kept: TTLCache[str, Segmentation] = TTLCache(capacity, seconds, clock, self._size)
        self._lock = threading.Lock()

    def add(self, result: Segmentation) -> str | None:
        """Store a segmentation and return its id, or None if it has no attention or exceeds the capacity."""
        if result.attention is None or _held(result) > self.capacity:
            return None
        key = self.prefix + secrets.token_urlsafe(16)
        # Drop the image and its labels: they are not counted in the capacity, and nothing needs them again.
        kept = replace(result, image=Image.new("RGB", (1, 1)), labels=result.labels[:0], segments=())
        with self._lock:
            self._kept[key] = kept
        return key

    def get(self, key: str) -> Segmentation | None:
        """Return a stored segmentation without its image and labels, or None if there is none under this id.

        It is then the most recently used one. Its size is measured again, because masks with more anchors add
        distances; segmentations that no longer fit beside it are dropped. Call this again after making masks.
        """
        with self._lock:
            try:
                # Remove it first: to replace an entry, the cache would need room for both sizes.
                kept = self._kept.pop(key)
            except KeyError:
                return None
            self._kept[key] = kept
            return kept

    def drop(self, key: str) -> None:
        """Drop a segmentation, if it is stored."""
        with self._lock:
            self._kept.pop(key, None)

    def expire(self) -> None:
        """Drop the segmentations that have not been used for too long."""
        with self._lock:
            self._kept.expire()

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all stored segmentations."""
        with self._lock:
            # Read without marking them as used, which `TTLCache.__getitem__` does.
            return sum(_held(Cache.__getitem__(self._kept, key)) for key in self._kept)

    def _size(self, result: Segmentation) -> int:
        """Return the bytes that an entry counts for. One that outgrows the whole store stays as its only entry."""
        return min(_held(result), self.capacity)


def _held(result: Segmentation) -> int:
    return 0 if result.attention is None else result.attention.nbytes
