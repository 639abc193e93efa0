"""The full-size graphs in ONNX Runtime on the CPU: every file opens, and both forms of the UNet give the same maps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from diffseg.engines import Bundle, agreement
from diffseg.engines.bundle.manifest import ATTENTION, ENCODER, QUERIES_KEYS, UNET
from diffseg.engines.kernels.twin import averaged_attention
from diffseg.engines.providers.onnxruntime import check_tensors, load_session
from gpu_check.context import CheckFailedError, Context
from gpu_check.timing import network_images

LEAST_COSINE = 0.999


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Open every file, then compare the forms on an example image.

    ONNX Runtime has no bf16 on CPUs: of such a bundle, only the graphs for CPUs are opened.
    """
    bundle = Bundle.open(context.bundle)
    found: dict[str, Any] = {}
    for graph in bundle.manifest.graphs.values():
        for declared in (graph, *graph.forms.values()):
            files = [declared.file] if bundle.manifest.precision != "bf16" else []
            for file in (*files, *([declared.cpu_file] if declared.cpu_file else [])):
                begin = time.perf_counter()
                session = load_session(bundle.folder / file)
                if file == declared.file:
                    check_tensors(session, declared.tensors, bundle.folder / file)
                found[file] = {
                    "load_seconds": round(time.perf_counter() - begin, 2),
                    "outputs": {output.name: output.shape for output in session.get_outputs()},
                }
                del session
                yield {"files": found}
    if bundle.manifest.precision == "bf16" or not bundle.has_form(UNET, QUERIES_KEYS):
        return
    cosines = compare_forms(bundle)
    yield {"least_row_cosine": cosines}
    if wrong := {name: cosine for name, cosine in cosines.items() if not cosine >= LEAST_COSINE}:
        raise CheckFailedError(f"the forms of the UNet differ (least cosine of a row): {wrong}")


def compare_forms(bundle: Bundle) -> dict[str, float]:
    """The least cosine of a row of each map from queries and keys, by the kernel's twin, with the attention's."""
    latent = _execute(bundle, ENCODER, ATTENTION, np.stack(network_images(bundle, 1)))[0]
    expected = _execute(bundle, UNET, ATTENTION, latent)
    outputs = _execute(bundle, UNET, QUERIES_KEYS, latent)
    names = [output.name for output in bundle.graph(UNET).tensors.outputs]
    pairs = zip(names, expected, outputs[::2], outputs[1::2], strict=True)
    return {
        name: float(agreement.row_cosines(maps, averaged_attention(queries, keys)).min())
        for name, maps, queries, keys in pairs
    }


def _execute(bundle: Bundle, graph: str, form: str, value: Any) -> list[Any]:  # noqa: ANN401 - arrays
    session = load_session(bundle.graph_path(graph, form))
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: value})
    return outputs
