"""The embedded model on `cuda`: where its nodes are executed, agreement with the CPU, and latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from diffseg import Segmenter
from diffseg.engines import Bundle, example_images, open_bundle
from diffseg.measure.compare import compare_providers
from gpu_check.context import CheckFailedError, Context
from gpu_check.timing import latency, network_images


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Compare with the CPU, then time."""
    bundle = open_bundle("tiny")
    compared = agreement(bundle, context.provider, 1 if context.rehearse else 3)
    yield {"agreement": compared}
    segmenter = Segmenter.load("tiny", provider=context.provider)
    yield latency(segmenter, network_images(bundle, 4), context.runs, context.warm_up)
    if not compared["passed"]:
        raise CheckFailedError(f"{context.provider} differs from cpu: {compared['first_difference']}")


def agreement(bundle: Bundle, provider: str, images: int) -> dict[str, Any]:
    """Compare a provider with the CPU: every output's numbers, the masks' IoU, and the placement of nodes."""
    found = compare_providers(bundle, provider, example_images()[:images])
    return asdict(found) | {"passed": found.passed, "first_difference": found.first_difference}
