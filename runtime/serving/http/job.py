"""One image in the queue, and how long its masks may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus

from diffseg.cancellation import StoppedError
from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.serving.http.errors import HTTPRequestError

LEAST_MASKING = 2.0
"""Processor seconds that the masks of any image may take. Usual settings take a tenth of that."""


class Budget:
    """The time limit for the masks of one image. It is called between steps of the work; the first call starts it.

    Args:
        seconds: processor time of the calling thread that the masks may take. Other programs that keep the machine busy
            do not use it up.
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
        spent = time.thread_time()
        if self._end is None:
            self._end = spent + self.seconds
        if self.abandoned or spent > self._end or time.monotonic() > self.expires:
            raise StoppedError

    @property
    def error(self) -> Exception:
        """Return the error for the client after the budget has stopped the work."""
        return TimeoutError() if self.abandoned or time.monotonic() >= self.expires else too_slow(self.seconds)


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


def too_slow(seconds: float) -> HTTPRequestError:
    """Return the error for settings whose masks take too long."""
    return HTTPRequestError(
        HTTPStatus.BAD_REQUEST,
        "costly",
        f"the masks of this image take more than {seconds:.1f} s with these settings; "
        "use fewer anchors, larger thresholds, a smaller tau or no refinement",
    )
