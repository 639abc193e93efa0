"""The full-size network on `cuda`: its outputs, its latency, and the effect of each of our options."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from diffseg import Segmenter
from diffseg.arrays import to_host
from diffseg.engines import Bundle
from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET
from diffseg.engines.providers.forms import VARIABLE
from diffseg.engines.providers.onnxruntime_gpu import NAMES, OPTIONS
from gpu_check.context import CheckFailedError, Context
from gpu_check.timing import gpu_memory, latency, network_images, share_of_gemm
from gpu_check.tiny import agreement

FORMS = {form: {VARIABLE: form} for form in (QUERIES_KEYS, ATTENTION)}
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "no tensor cores in convolutions": {OPTIONS: "use_tf32=0"},
    "NCHW": {OPTIONS: "prefer_nhwc=0"},
    "no CUDA graphs": {OPTIONS: "enable_cuda_graph=0"},
    "NCHW, no CUDA graphs": {OPTIONS: "prefer_nhwc=0,enable_cuda_graph=0"},
}
SHOWN = ("use_tf32", "prefer_nhwc", "enable_cuda_graph", "cudnn_conv_algo_search")


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Measure with our options, then compare with the CPU, which takes longest."""
    bundle = Bundle.open(context.bundle)
    found = measure(context, bundle, {})
    yield found
    if not found["finite"]:
        raise CheckFailedError("an output of the network has NaN or infinite entries")
    if not context.rehearse:
        yield {"agreement": agreement(bundle, context.provider, 1)}


def compare_forms(context: Context) -> Iterator[dict[str, Any]]:
    """Measure both forms of the UNet; on the CPU, which knows one form, there is nothing to compare."""
    yield from _variants(context, FORMS)


def compare_options(context: Context) -> Iterator[dict[str, Any]]:
    """Measure with each option of the CUDA provider switched off."""
    yield from _variants(context, VARIANTS)


def measure(context: Context, bundle: Bundle, variables: dict[str, str]) -> dict[str, Any]:
    """Load the network under environment variables, and measure it.

    Returns:
        Seconds to load, placement, options as ONNX Runtime reports them, outputs of the UNet, whether all are finite,
        latency, memory, and the share of the GPU's matrix product.
    """
    with variables_set(variables):
        begin = time.perf_counter()
        segmenter = Segmenter.load(bundle.folder, provider=context.provider)
        loaded = time.perf_counter() - begin
        images = network_images(bundle, 4)
        result: dict[str, Any] = {
            "variables": variables,
            "load_seconds": round(loaded, 2),
            **describe(segmenter.network, bundle),
            "finite": is_finite(segmenter, images[0]),
            **latency(segmenter, images, context.runs, context.warm_up),
        }
        result["captured"] = getattr(segmenter.network, "capture", None)  # False if capturing failed
        stages = result["milliseconds"]
        seconds = (stages["encode"]["p50"] + stages["attend"]["p50"]) / 1e3
        return result | share_of_gemm(bundle, seconds, context.gemm) | gpu_memory()


def describe(network: Any, bundle: Bundle) -> dict[str, Any]:  # noqa: ANN401 - of any provider
    """Return the placement of nodes, the options, the outputs and the UNet's form; empty without ONNX Runtime."""
    found: dict[str, Any] = {"placement": network.placement}
    averaged = [tensor.name for tensor in bundle.manifest.graphs[UNET].tensors.outputs]
    for graphs in list(getattr(network, "sessions", {}).values())[:1]:
        for name, session in graphs.items():
            options = session.get_provider_options().get(NAMES["cuda"], {})
            found[name] = {
                "options": {key: options[key] for key in SHOWN if key in options},
                "outputs": {output.name: output.type for output in session.get_outputs()},
            }
            if name.startswith(UNET):
                found["form"] = ATTENTION if list(found[name]["outputs"]) == averaged else QUERIES_KEYS
    return found


def is_finite(segmenter: Segmenter, image: Any) -> bool:  # noqa: ANN401 - (H, W, 3) uint8
    """Whether the latent and the attention of an image contain no NaN or infinity."""
    with segmenter.network.session() as session:
        latent = session.encode(image[None])
        outputs = [to_host(latent), *(to_host(output) for output in session.attend(latent))]
    return all(bool(np.isfinite(output).all()) for output in outputs)


@contextmanager
def variables_set(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _variants(context: Context, variants: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(context.bundle)
    found: dict[str, Any] = {}
    for name, variables in variants.items():
        try:
            found[name] = measure(context, bundle, variables)
            if found[name].get("form", variables.get(VARIABLE)) != variables.get(VARIABLE, found[name].get("form")):
                found[name]["failed"] = f"{VARIABLE} is not followed: the form is {found[name]['form']}"
        except Exception as error:  # one variant must not stop the others  # noqa: BLE001
            reason = (str(error).strip() or "?").splitlines()[0]
            found[name] = {"variables": variables, "failed": f"{type(error).__name__}: {reason}"}
        gc.collect()
        yield {"variants": found}
    if failed := [name for name, each in found.items() if "failed" in each]:
        raise CheckFailedError(f"could not be measured: {'; '.join(failed)}")
