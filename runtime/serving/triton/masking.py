"""How long the masks of an image may take in Triton, whose clients can cancel a request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from diffseg.serving.protocol.errors import bad_request
from diffseg.serving.protocol.masking import Budget

AGGREGATIONS = 10
"""How many times as long as the aggregation of its attention the masks of an image may take, in an ensemble. Usual
settings take three times as long."""
LOOK_SECONDS = 0.05
"""Seconds between questions to Triton whether a request was cancelled; each is a message to another process."""


class Check:
    """Ends the masks of an image that take too long, or whose request was cancelled."""

    def __init__(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        self._budget = Budget(seconds, math.inf)
        self._cancelled = cancelled
        self._look = 0.0  # when to ask Triton again, in seconds of `time.monotonic`

    def __call__(self) -> None:
        """Check whether to go on.

        Raises:
            StoppedError: the time is over, or nobody waits for the masks.
        """
        if (now := time.monotonic()) >= self._look:
            self._look = now + LOOK_SECONDS
            self._budget.abandoned = self._cancelled()
        self._budget()

    @property
    def error(self) -> Exception:
        """What the client is told after the work has been stopped."""
        return bad_request("the request was cancelled") if self._budget.abandoned else self._budget.error
