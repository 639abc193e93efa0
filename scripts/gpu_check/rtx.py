"""TensorRT-RTX: plans of the embedded and of the full-size model, agreement with the CPU, and latency."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from diffseg.engines import Bundle, open_bundle
from gpu_check.context import CheckFailedError, Context
from gpu_check.timing import gpu_memory, latency, network_images, share_of_gemm
from gpu_check.tiny import agreement

ENGINE = "tensorrt-rtx"


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Build, compare and time, the small model first."""
    from diffseg import Segmenter

    for label, bundle in (("tiny", open_bundle("tiny")), ("network", Bundle.open(context.bundle))):
        found: dict[str, Any] = {"build": build("tiny" if bundle.embedded else str(bundle.folder))}
        yield {label: found}
        segmenter = Segmenter.load(bundle.folder, provider=ENGINE)
        found |= latency(segmenter, network_images(bundle, 4), context.runs) | gpu_memory()
        stages = found["milliseconds"]
        found |= share_of_gemm(bundle, (stages["encode"]["p50"] + stages["attend"]["p50"]) / 1e3, context.gemm)
        yield {label: found}
        found["agreement"] = agreement(bundle, ENGINE, 1)
        yield {label: found}
        if bundle.embedded and not found["agreement"]["passed"]:
            raise CheckFailedError(f"{ENGINE} differs from cpu: {found['agreement']['first_difference']}")


def build(model: str) -> dict[str, Any]:
    """Build a plan for this GPU with the command line."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "diffseg", "build", model, "--engine", ENGINE, "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailedError((done.stderr.strip() or f"build ended with {done.returncode}").splitlines()[-1])
    return {"seconds": round(time.perf_counter() - begin, 1), "said": done.stdout.splitlines()[-4:]}
