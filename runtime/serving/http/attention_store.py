"""Attention that is kept for new masks: bounded, expiring, in memory only."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffseg.arrays import namespace
from diffseg.segmentation import Segmentation
from PIL import Image


@dataclass(slots=True)
class _Kept:
    result: Segmentation
    used: float


class AttentionStore:
    """Segmentations with their attention, by ids that nobody can guess; the picture itself is not kept.

    Args:
        capacity: bytes of attention and of what was found out about it; the one that was unused longest makes room.
        seconds: after which an unused one is forgotten.
        clock: seconds that never go back.
    """

    def __init__(self, capacity: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # longest unused first
        self._lock = threading.Lock()

    def add(self, result: Segmentation) -> str | None:
        """Keep a segmentation; None: it alone is larger than the store."""
        if result.attention is None or _held(result) > self.capacity:
            return None
        attention = result.attention
        if _root_bytes(attention) > attention.nbytes:  # a view would hold the attention of the whole batch
            attention = namespace(attention).asarray(attention, copy=True)
        key = secrets.token_urlsafe(16)
        # Labels and picture would not be counted, and are not needed again.
        kept = replace(
            result, attention=attention, image=Image.new("RGB", (1, 1)), labels=result.labels[:0], segments=()
        )
        with self._lock:
            self._expire()
            while self._kept and self._bytes() + _held(kept) > self.capacity:
                self._kept.popitem(last=False)
            self._kept[key] = _Kept(kept, self._clock())
        return key

    def get(self, key: str) -> Segmentation | None:
        """Return what was kept, without its picture and labels, or None."""
        with self._lock:
            self._expire()
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.used = self._clock()
            self._kept.move_to_end(key)
            return kept.result

    def drop(self, key: str) -> None:
        """Forget one."""
        with self._lock:
            self._kept.pop(key, None)

    def expire(self) -> None:
        """Forget what was unused for too long."""
        with self._lock:
            self._expire()

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes that are held."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(_held(kept.result) for kept in self._kept.values())

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._kept and next(iter(self._kept.values())).used < oldest:
            self._kept.popitem(last=False)
        while len(self._kept) > 1 and self._bytes() > self.capacity:  # more anchors have more distances
            self._kept.popitem(last=False)


def _held(result: Segmentation) -> int:
    # A copy first: another thread may be putting the distances of other anchors there.
    arrays = [result.attention, *(distances.values for distances in tuple(result.distances.values()))]
    return sum(int(array.nbytes) for array in arrays if array is not None)


def _root_bytes(array: object) -> int:
    while (base := getattr(array, "base", None)) is not None:
        array = base
    return int(getattr(array, "nbytes", 0))
