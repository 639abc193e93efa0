"""Images per second by batch, while other images are decoded and written, and the share of the GPU's rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from diffseg import Segmenter
from diffseg.engines import Bundle
from gpu_check.context import Context
from gpu_check.timing import gpu_memory, network_images, share_of_gemm

ON_HOST = ("decode", "resize", "write")


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Measure batches of 1, 2, 4 and so on, up to what the bundle allows."""
    bundle = Bundle.open(context.bundle)
    segmenter = Segmenter.load(bundle.folder, provider=context.provider)
    found: dict[int, dict[str, Any]] = {}
    largest = min(2, bundle.manifest.max_batch) if context.rehearse else bundle.manifest.max_batch
    for batch in (1 << i for i in range(largest.bit_length())):
        many = Segmenter(bundle, segmenter.network, batch=batch)
        images = network_images(bundle, batch if context.rehearse else max(64, 8 * batch))
        many(images[: 2 * batch], refine="none")
        begin = time.perf_counter()
        done = many(images, refine="none")
        seconds = time.perf_counter() - begin
        busy = sum(value for each in done for stage, value in each.timings.items() if stage not in ON_HOST)
        found[batch] = {
            "images_per_second": round(len(done) / seconds, 2),
            "busy": round(busy / seconds, 3),
            **share_of_gemm(bundle, seconds / len(done), context.gemm),
            **gpu_memory(),
        }
        yield {"batches": found}
