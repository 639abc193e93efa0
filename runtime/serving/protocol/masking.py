"""Time limits for the masks of an image on a server, so that no request can block the others by its settings."""

from __future__ import annotations

import time
from collections.abc import Sequence

from diffseg.cancellation import StoppedError, processor_seconds
from diffseg.segmentation import Segmentation
from diffseg.serving.protocol.errors import COSTLY, RequestError

NETWORK = ("encode", "attend", "aggregate")  # the stages whose time each image takes, whatever its settings
LEAST_MASKING = 2.0
"""Processor seconds that the masks of any image may take. Usual settings take a tenth of that."""
PACE_MEMORY = 0.8
"""Share of the old value in the moving average of the seconds per image."""


class Budget:
    """The time limit for the masks of one image. It is called between steps of the work; the first call starts it.

    Args:
        seconds: processor time that the masks may take, of the calling thread and those that work for it. Other
            programs that keep the machine busy do not use it up.
        expires: when the request expires, in seconds of `time.monotonic`.
    """

    def __init__(self, seconds: float, expires: float) -> None:
        self.seconds = seconds
        self.expires = expires
        self.abandoned = False  # nobody waits for the masks any more
        self._end: float | None = None

    def __call__(self) -> None:
        """Check whether the work may continue.

        Raises:
            StoppedError: the time is used up.
        """
        spent = processor_seconds()
        if self._end is None:
            self._end = spent + self.seconds
        if self.abandoned or spent > self._end or time.monotonic() > self.expires:
            raise StoppedError

    @property
    def error(self) -> Exception:
        """Return the error for the client after the budget has stopped the work."""
        return TimeoutError() if self.abandoned or time.monotonic() >= self.expires else too_slow(self.seconds)


def network_seconds(results: Sequence[Segmentation]) -> float:
    """Return the seconds per image that the network took. Settings that make merging slow do not count."""
    return sum(result.timings.get(stage, 0.0) for result in results for stage in NETWORK) / len(results)


def next_pace(pace: float, results: Sequence[Segmentation]) -> float:
    """Return the moving average of the network's seconds per image after some more images."""
    return PACE_MEMORY * pace + (1 - PACE_MEMORY) * network_seconds(results) if results else pace


def too_slow(seconds: float) -> RequestError:
    """Return the error for settings whose masks take too long."""
    return RequestError(
        COSTLY,
        f"the masks of this image take more than {seconds:.1f} s with these settings; "
        "use fewer anchors, larger thresholds, a smaller tau or no refinement",
    )
