"""The state that the routes share: the segmenter and its queue, the stored attention, and threads for other work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from cachetools import TTLCache
from diffseg.annotation.picking import PickableMasks
from diffseg.cancellation import StoppedError, stoppable
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import ImageError
from diffseg.image import Fit, ImageSource
from diffseg.prepared import Prepared
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.serving.annotation.label_studio import LabelStudio
from diffseg.serving.http.attention_store import AttentionStore
from diffseg.serving.http.batcher import Batcher, Health
from diffseg.serving.http.errors import busy, client_disconnected, late
from diffseg.serving.http.limits import Bodies, Limits, open_image
from diffseg.serving.http.memory import Charge, MemoryBudget
from diffseg.serving.http.metrics import Metrics
from diffseg.serving.protocol.errors import bad_request
from diffseg.serving.protocol.masking import Budget
from diffseg.serving.protocol.untrusted import RESULT_BYTES, decode_in_strips, memory_of
from PIL import Image

if TYPE_CHECKING:
    from fastapi import Request

T = TypeVar("T")
THREADS = 4
MERGES_WAITING = 8
KEEP_SECONDS = 600.0
PICKABLE_BYTES = 64 << 20
"""Bytes of masks that answer the clicks of Label Studio's smart tools: 1 MB and 2 bytes per pixel for each image."""
SHORTEST_TIMEOUT = 1e-6  # seconds; the same as in the Open Inference Protocol, which counts microseconds


class Service:
    """The parts of one server.

    Args:
        segmenter: segments the images.
        limits: limits of requests. None: the defaults.
        token: bearer token that requests must send. None: no token is needed.
        keep: largest amount of attention to store for new masks, in bytes.
        keep_seconds: seconds after which unused attention is dropped.
        label_studio: source of the images of annotation tasks. None: the server has no routes for Label Studio.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        limits: Limits | None = None,
        *,
        token: str | None = None,
        keep: int = 1 << 30,
        keep_seconds: float = KEEP_SECONDS,
        label_studio: LabelStudio | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.limits = limits or Limits()
        self.token = token
        self.label_studio = label_studio
        self.draining = False
        self.metrics = Metrics()
        self.bodies = Bodies(self.limits)
        self.memory = MemoryBudget(self.limits.decoded)
        self.store = AttentionStore(keep, keep_seconds)
        self.pickable: TTLCache[str, PickableMasks] = TTLCache(
            PICKABLE_BYTES, keep_seconds, getsizeof=lambda masks: masks.nbytes
        )
        stall = max(120.0, 2 * self.limits.deadline)
        self.batcher = Batcher(segmenter, self.metrics, capacity=self.limits.queue, stall=stall)
        self._threads = ThreadPoolExecutor(THREADS, "diffseg-answer")
        self._openers = ThreadPoolExecutor(THREADS, "diffseg-open")
        self._merger = ThreadPoolExecutor(1, "diffseg-merge")
        self._merging = 0
        manifest = segmenter.bundle.manifest
        self.facts = {"model": manifest.name, "provider": segmenter.provider}
        self.metrics.describe(model=manifest.name, precision=manifest.precision, provider=segmenter.provider)
        for name, text, value in (
            ("queue_length", "Images that wait for the network", lambda: self.batcher.waiting),
            ("ready", "1 while images can be segmented", lambda: float(self.ready)),
            ("bodies_bytes", "Bytes of request bodies in memory", lambda: self.bodies.held),
            ("decoded_bytes", "Bytes that are reserved for decoded images", lambda: self.memory.held),
            ("kept_bytes", "Bytes of attention that are kept for new masks", lambda: self.store.bytes),
            ("kept_images", "Images whose attention is kept", lambda: len(self.store)),
        ):
            self.metrics.watch(f"diffseg_{name}", text, value)

    @property
    def live(self) -> bool:
        """Whether the worker is running. If it is not, the server must be restarted."""
        return self.batcher.health in (Health.STARTING, Health.READY, Health.STALLED)

    @property
    def ready(self) -> bool:
        """Whether the server is ready for requests."""
        return self.batcher.health is Health.READY and not self.draining

    def close(self, seconds: float) -> None:
        """Wait at most `seconds` for queued images to finish, then stop."""
        self.batcher.close(seconds)
        self._threads.shutdown(cancel_futures=True)
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._merger.shutdown(cancel_futures=True)

    async def segment(
        self,
        request: Request,
        sources: Sequence[bytes | ImageSource],
        settings: MergeSettings,
        fit: Fit,
        *,
        keep: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - named as in the request
    ) -> list[Segmentation]:
        """Segment the images of a request, which are encoded images or arrays.

        Raises:
            RequestError: an image is too large or damaged, the queue is full, the deadline passed, or the client
                disconnected.
        """
        if timeout is not None and timeout < SHORTEST_TIMEOUT:
            raise bad_request(f"timeout must be at least {SHORTEST_TIMEOUT:g} s, found {timeout:g}")
        whole = min(self.limits.deadline, timeout or self.limits.deadline)
        try:
            seconds = _remaining(request, whole)
            async with asyncio.timeout(seconds):
                opened = await asyncio.get_running_loop().run_in_executor(self._openers, self._open, sources)
            seconds = _remaining(request, whole)
            charge = self.memory.charge(sum(map(_memory, opened)))
            request.state.charge = charge  # released by the middleware, after the response
            prepares: list[Callable[[], Prepared]] = [
                partial(self._prepare, charge, item, settings, fit, keep) for item in opened
            ]
            return await unless_disconnected(request, self.batcher.segment(prepares, seconds))
        except ImageError as error:
            raise bad_request(str(error)) from None
        except TimeoutError:
            raise late(whole) from None

    def _prepare(
        self,
        charge: Charge,
        source: ImageSource,
        settings: MergeSettings,
        fit: Fit,
        keep: bool,
    ) -> Prepared:
        charge.hold()  # a request may end before its image is decoded
        try:
            if isinstance(source, Image.Image):
                source = decode_in_strips(source)
            return self.segmenter.prepare(source, settings, fit=fit, keep_attention=keep)
        finally:
            charge.release()

    def _open(self, sources: Sequence[bytes | ImageSource]) -> list[ImageSource]:
        return [open_image(item, self.limits.pixels) if isinstance(item, bytes) else item for item in sources]

    async def resegment(self, request: Request, kept: Segmentation, settings: MergeSettings) -> Segmentation:
        """Make new masks from stored attention, for one request at a time.

        Raises:
            RequestError: too many requests wait, the masks take too long, the deadline passed, or the client
                disconnected.
        """
        if self._merging >= MERGES_WAITING:
            raise busy("too many requests for new masks are waiting; try again later", 1)
        self._merging += 1
        budget = Budget(self.batcher.masking_seconds, request.state.start + self.limits.deadline)

        def call() -> Segmentation:
            try:
                with stoppable(budget):
                    return kept.with_settings(settings)
            except StoppedError:
                raise budget.error from None

        try:
            work = asyncio.get_running_loop().run_in_executor(self._merger, call)
            async with asyncio.timeout(_remaining(request, self.limits.deadline)):
                return await unless_disconnected(request, work)
        except TimeoutError:
            raise late(self.limits.deadline) from None
        finally:
            budget.abandoned = True
            self._merging -= 1

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
        """Run a function that takes milliseconds on another thread, so that it does not block other requests."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work`, and cancel it if the client disconnects. The body must have been read already.

    Raises:
        RequestError: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise client_disconnected()
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _memory(source: ImageSource) -> int:
    if isinstance(source, Image.Image):
        return memory_of(source)
    return source.size * RESULT_BYTES // 3 if isinstance(source, np.ndarray) else 0


def _remaining(request: Request, whole: float) -> float:
    """Return how many of a request's `whole` seconds are left.

    Raises:
        TimeoutError: no time is left.
    """
    start: float = request.state.start
    left = whole - (time.monotonic() - start)
    if left <= 0:
        raise TimeoutError
    return left


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
