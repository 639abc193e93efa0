"""One image in the queue, and how long its masks may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.serving.protocol.masking import Budget


@dataclass(slots=True, eq=False)
class Job:
    """One image in the queue.

    Attributes:
        prepare: decodes the image; called on a decoding thread.
        seconds: time limit from `queued` on.
        queued: when the image was queued, in seconds of `time.monotonic`.
        result: the masks.
        prepared: the decoded image; None until its decoding has begun.
        begun: whether the worker has taken it.
        budget: the time limit for its masks.
    """

    prepare: Callable[[], Prepared]
    seconds: float
    queued: float = field(default_factory=time.monotonic)
    result: Future[Segmentation] = field(default_factory=Future)
    prepared: Future[Prepared] | None = None
    begun: bool = False
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(math.inf, self.expires)

    @property
    def expires(self) -> float:
        """When the request expires, in seconds of `time.monotonic`."""
        return self.queued + self.seconds

    def begin(self, masking: float) -> None:
        """Note that the worker has taken the image. Its masks may then take `masking` seconds."""
        self.begun = True
        self.budget.seconds = masking

    def abandon(self) -> None:
        """Free the place of the image in the queue, or stop the work on its masks."""
        self.result.cancel()
        self.budget.abandoned = True

    def fail(self, error: BaseException) -> None:
        """End the job with an error, unless its request has ended."""
        if self.result.running() or self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)
