"""Gather images from many requests into batches for the single worker thread that runs the network."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from enum import StrEnum
from functools import partial

import numpy as np
from diffseg.cancellation import StoppedError
from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.serving.http.errors import HTTPRequestError, busy, unavailable
from diffseg.serving.http.job import Job
from diffseg.serving.http.metrics import Metrics
from diffseg.serving.protocol.masking import LEAST_MASKING, network_seconds, next_pace

logger = logging.getLogger(__name__)

DECODERS = 4


class Health(StrEnum):
    """Whether images can be segmented."""

    STARTING = "starting"
    READY = "ready"
    STALLED = "stalled"  # one batch has run for longer than the `stall` limit
    DEAD = "dead"
    CLOSED = "closed"


# No library is used, because this batcher decodes ahead, drops the images of disconnected clients, rejects images that
# would be late, and runs the network on one thread.
class Batcher:
    """A bounded queue that feeds one worker thread. A pool of other threads decodes images ahead of the worker.

    Args:
        segmenter: runs the network; its `batch` is the largest batch size.
        metrics: records batches and timings.
        capacity: images that may wait.
        gather: seconds that the first image of a batch waits for others while the network is idle.
        stall: seconds in one batch after which the worker counts as stalled.

    Attributes:
        leftovers: whether a request ended before the worker was done with its image. Who frees the memory clears it.
    """

    def __init__(
        self, segmenter: Segmenter, metrics: Metrics, *, capacity: int = 64, gather: float = 0.004, stall: float = 120.0
    ) -> None:
        self.segmenter = segmenter
        self.metrics = metrics
        self.capacity = capacity
        self.gather = gather
        self.stall = stall
        self.leftovers = False
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._health = Health.STARTING
        self._closing = False
        self._running = 0  # images in the current batch
        self._since = 0.0
        self._pace = 0.0  # recent seconds per image
        self._decoders = ThreadPoolExecutor(DECODERS, "diffseg-decode")
        self._thread = threading.Thread(target=self._work, name="diffseg-network", daemon=True)

    def start(self) -> None:
        """Start the worker, which warms up before it is ready."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Stop accepting images, and wait at most `seconds` for the queued ones to finish."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @property
    def health(self) -> Health:
        """The state of the worker."""
        if self._health is Health.READY and self._running and time.monotonic() - self._since > self.stall:
            return Health.STALLED
        return self._health

    @property
    def waiting(self) -> int:
        """Number of images in the queue."""
        return len(self._jobs)

    @property
    def expected_wait(self) -> float:
        """Estimated seconds before a new image would start, from the pace of recent batches."""
        return (len(self._jobs) + self._running) * self._pace

    @property
    def masking_seconds(self) -> float:
        """Seconds that the masks of one image may take: as long as the network, so that no settings block others."""
        return max(LEAST_MASKING, self._pace)

    async def segment(self, prepares: Sequence[Callable[[], Prepared]], seconds: float) -> list[Segmentation]:
        """Segment the images of one request. Either all of them are queued, or none is.

        The images may be split across batches and share them with other requests.

        Args:
            prepares: one function per image; a decoding thread calls it shortly before the image's turn.
            seconds: time limit for all of the images.

        Raises:
            ImageError: an image can't be decoded.
            TimeoutError: the time limit passed after an image had started, or with no other images ahead in the
                queue.
            RequestError: the queue is full, the images had no turn in time or the worker has ended (503), or the
                network failed (500).
        """
        jobs = [Job(prepare, seconds) for prepare in prepares]
        ahead = self._submit(jobs)
        try:
            async with asyncio.timeout(seconds):
                return list(await asyncio.gather(*(asyncio.wrap_future(job.result) for job in jobs)))
        except TimeoutError:
            if not ahead or any(job.begun for job in jobs):
                raise
            message = "no turn before the deadline: other images were ahead; try again later"
            raise busy(message, self.expected_wait) from None
        finally:
            for job in jobs:  # if the client disconnects or one image fails, free the places of all its images
                job.abandon()

    def _submit(self, jobs: list[Job]) -> bool:
        """Queue jobs, and return whether others are ahead of them."""
        with self._changed:
            ahead = bool(self._jobs or self._running)
            if self._closing or self._health in (Health.DEAD, Health.CLOSED):
                raise unavailable(f"the server no longer segments images: its worker is {self._health}")
            if len(jobs) > self.capacity:
                raise busy(
                    f"the queue takes {self.capacity} images, found {len(jobs)} in one request; send fewer at once", 1
                )
            if len(self._jobs) + len(jobs) > self.capacity:
                raise busy(f"the queue is full: {_images(len(self._jobs))}; try again later", self.expected_wait)
            # Reject requests that cannot meet their deadline. When idle, accept anyway, so one slow batch cannot block
            # the estimate from recovering.
            done = self.expected_wait + len(jobs) * self._pace
            if ahead and done > jobs[0].seconds:
                message = f"{_images(len(self._jobs))}, too many for {jobs[0].seconds:.1f} s; try again later"
                raise busy(message, self.expected_wait)
            for job in jobs:
                self._jobs.append(job)
                job.result.add_done_callback(partial(self._forget, job))
            self._decode_ahead()
            self._changed.notify_all()
            return ahead

    def _forget(self, job: Job, _: Future[Segmentation]) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                if job.prepared is not None:
                    job.prepared.cancel()
                self._decode_ahead()

    def _decode_ahead(self) -> None:
        """Start to decode the images of the next two batches. Decoding more would only take memory."""
        for job in list(self._jobs)[: 2 * self.segmenter.batch]:
            self._decoding(job)

    def _decoding(self, job: Job) -> None:
        if job.prepared is None:
            job.prepared = self._decoders.submit(job.prepare)
            job.prepared.add_done_callback(self._wake)

    def _wake(self, _: Future[Prepared]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _decoded(self) -> list[Job]:
        """The jobs that the worker can take now. It passes over an image that takes long to decode."""
        return [job for job in self._jobs if job.prepared is not None and job.prepared.done()]

    def _full(self) -> bool:
        return len(self._decoded()) >= self.segmenter.batch or self._closing

    def _work(self) -> None:
        try:
            self._warm_up()
            self._health = Health.READY
            while self._step():
                pass
            self._health = Health.CLOSED
        except BaseException:
            logger.critical("the worker ended, and no more images are segmented; restart the server", exc_info=True)
            self._health = Health.DEAD
        finally:
            with self._changed:
                self._running = 0
                rest = list(self._jobs)
            for job in rest:
                job.fail(unavailable("the worker ended before this image's turn"))

    def _warm_up(self) -> None:
        """Segment grey images in batches of each size whose first pass takes longer; if none does, a single image."""
        for size in self.segmenter.network.sizes_to_warm(self.segmenter.batch):
            self._probe(size)

    def _probe(self, count: int = 1) -> None:
        """Segment a batch of grey images, to see whether the device works."""
        size = self.segmenter.bundle.manifest.image_size
        self._pace = network_seconds(self.segmenter([np.full((*size, 3), 127, np.uint8)] * count))

    def _step(self) -> bool:
        group = self._take()  # a separate function, so that no local variable keeps results alive during the next wait
        if not group:
            return False
        self._run(group)
        with self._changed:
            self._running = 0
        return True

    def _take(self) -> list[Job]:
        """Wait for the next batch and return it. An empty batch means that the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._decoded() or (self._closing and not self._jobs))
                if not self._jobs:
                    return []
                patience = self._jobs[0].queued + self.gather - time.monotonic()
                self._changed.wait_for(self._full, max(0.0, patience))
                group: list[Job] = []
                for job in self._decoded():
                    if len(group) == self.segmenter.batch:
                        break
                    self._jobs.remove(job)
                    size = min(len(group) + 1 + len(self._jobs), self.segmenter.batch)
                    pace = self._pace if self._jobs else 0.0  # always try the last job, as an idle worker would
                    if time.monotonic() + size * pace > job.expires:
                        job.fail(TimeoutError())
                    elif job.result.set_running_or_notify_cancel():
                        job.begin(self.masking_seconds)
                        group.append(job)
                if group:
                    self._decode_ahead()
                    self._running, self._since = len(group), time.monotonic()
                    return group

    def _run(self, group: list[Job]) -> None:
        good: list[tuple[Job, Prepared]] = []
        for job in group:
            assert job.prepared is not None  # noqa: S101 - see `_decoded`
            try:
                good.append((job, replace(job.prepared.result(0), check=job.budget)))
            except Exception as error:  # fails this image only  # noqa: BLE001
                job.fail(error)
        if not good:
            return
        start = time.monotonic()
        try:
            outcomes = self.segmenter.outcomes([prepared for _, prepared in good])
        except BaseException as error:
            for job, _ in good:
                job.fail(HTTPRequestError(500, "failed", "the network failed on this batch; see the log of the server"))
            if not isinstance(error, Exception):
                raise
            logger.exception("a batch of size %d failed", len(good))
            self._probe()  # raises if the device is lost; the worker then ends, and the server is no longer ready
            return
        # Count the network's time only: settings that make merging slow must not make the server reject other requests.
        done = [outcome for outcome in outcomes if not isinstance(outcome, StoppedError)]
        self._pace = next_pace(self._pace, done)
        self.metrics.batch([start - job.queued for job, _ in good])
        if len(done) < len(good) or any(job.budget.abandoned for job, _ in good):
            self.leftovers = True
        for (job, _), outcome in zip(good, outcomes, strict=True):
            if isinstance(outcome, StoppedError):
                job.fail(job.budget.error)
            else:
                self.metrics.image(outcome.timings)
                job.result.set_result(outcome)


def _images(count: int) -> str:
    return "1 image waits" if count == 1 else f"{count} images wait"
