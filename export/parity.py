"""Compare the exported graphs, run by ONNX Runtime, with the loaded model in PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from diffseg.engines import agreement
from diffseg.engines.bundle.manifest import CPU_SUFFIX
from diffseg.engines.errors import ParityError
from diffseg.engines.examples import example_images
from diffseg.engines.kernels.twin import averaged_attention
from diffseg.engines.providers.onnxruntime import load_session
from diffseg.export.device import find_gpu, moved
from PIL import Image

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import Precision
    from numpy.typing import NDArray

MAGNITUDE = "largest_magnitude"
"""Measure of a whole graph: the largest magnitude of all tensors that PyTorch computed for the sample images."""
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {
        "latent_max_error": 1e-4,
        "attention_max_error": 1e-5,
        "row_sum_max_error": 1e-5,
        "place_cosine_distance_p99": 1e-5,
    },
    "fp16": {
        MAGNITUDE: 65504,
        "latent_cosine_distance": 1e-3,
        "row_cosine_distance_p99": 1e-3,
        "row_sum_max_error": 1e-3,
        "place_cosine_distance_p99": 1e-3,
    },
    "bf16": {
        "latent_cosine_distance": 1e-2,
        "row_cosine_distance_p99": 5e-2,
        "row_sum_max_error": 1e-3,
        "place_cosine_distance_p99": 5e-2,
    },
}
"""Largest value of each measure, per precision. A p99 distance of 1e-3 is a p1 cosine of 0.999.

The limit of the latent's error applies to an image of 512 × 512; see `check`.
"""

MOST_AT_ONCE = 1 << 30
"""If the results of all images take more bytes than this, each call gets a single image."""


def sample_images(size: tuple[int, int], count: int = 2) -> NDArray[np.uint8]:
    """Return images (count, H, W, 3): seeded noise first, then example images."""
    height, width = size
    images = [np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)]
    for path in example_images()[: count - 1]:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)))
    return np.stack(images)[:count]


@torch.no_grad()
def reference(
    module: torch.nn.Module, value: NDArray[Any], device: torch.device | None = None
) -> list[NDArray[np.float32]]:
    """Return the outputs of a PyTorch module. It runs on one image at a time to limit the memory.

    Args:
        module: on `device`.
        value: its input.
        device: None for the CPU.
    """
    results: list[NDArray[np.float32]] = []
    for i, item in enumerate(torch.from_numpy(value)[:, None]):
        outputs = module(item.to(device))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        results = results or [np.empty((len(value), *output.shape[1:]), np.float32) for output in outputs]
        for result, output in zip(results, outputs, strict=True):
            result[i] = output[0].float().cpu().numpy()
    return results


def reference_on_gpu(module: torch.nn.Module, value: NDArray[Any]) -> list[NDArray[np.float32]] | None:
    """Return the outputs that a module in half precision has on the GPU.

    ONNX Runtime's CPU computes half precision in float32, so only this shows sums that overflow within an operator.

    Returns:
        None if there is no GPU or no room on it, or if the module is in float32.
    """
    gpu = find_gpu()
    if gpu is None or next(module.parameters()).dtype == torch.float32:
        return None
    try:
        with moved(module, gpu):
            return reference(module, value, gpu)
    except torch.OutOfMemoryError:
        return None


def execute(path: Path, value: NDArray[Any], precision: Precision, max_batch: int) -> list[NDArray[np.float32]]:
    """Return the outputs of an ONNX file on the CPU, computed in batches of up to `max_batch`.

    ONNX Runtime has no CPU kernels for bfloat16, so a bfloat16 graph is run in float32 with every value rounded to
    bfloat16. This shows the error of the precision, but does not test the kernels of the device that will run it.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".widened-") as folder:
        if precision == "bf16" and not path.name.endswith(CPU_SUFFIX):
            path = _widen_bfloat16(path, Path(folder) / path.name)
        session = load_session(path)
        name = session.get_inputs()[0].name
        shapes = [(len(value), *output.shape[1:]) for output in session.get_outputs()]
        results = [np.empty(shape, np.float32) for shape in shapes]
        batch = max_batch if sum(result.nbytes for result in results) <= MOST_AT_ONCE else 1
        for i in range(0, len(value), batch):
            for result, output in zip(results, session.run(None, {name: value[i : i + batch]}), strict=True):
                result[i : i + batch] = output
        return results


def execute_form(path: Path, latent: NDArray[Any], precision: Precision) -> list[NDArray[np.float32]]:
    """Return the averaged attention of the UNet's form `queries_keys`, from its ONNX file and the kernel's NumPy twin.

    Both run on the CPU, on one image at a time, because all heads of a layer are in memory at once.
    """
    outputs = execute(path, latent, precision, 1)
    return [averaged_attention(queries, keys) for queries, keys in zip(outputs[::2], outputs[1::2], strict=True)]


def measure_latent(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """Compare latents (B, C, h, w)."""
    return {
        "latent_max_error": agreement.max_error(expected, found),
        "latent_cosine_distance": 1 - agreement.cosine(expected, found),
    }


def measure_attention(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """Compare one resolution's attention (B, n², n²), row by row."""
    return {
        "attention_max_error": agreement.max_error(expected, found),
        "row_cosine_distance_p99": float(np.percentile(1 - agreement.row_cosines(expected, found), 99)),
        "row_sum_max_error": agreement.row_sum_error(found),
    }


def measure_features(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """Compare features (B, n², C), place by place."""
    return {
        "feature_max_error": agreement.max_error(expected, found),
        "place_cosine_distance_p99": float(np.percentile(1 - agreement.row_cosines(expected, found), 99)),
    }


def check(figures: dict[str, dict[str, float]], precision: Precision, size: tuple[int, int]) -> None:
    """Compare measured figures with the limits of the precision.

    The encoder's normalisations are sums over all pixels, and their rounding error grows with the number of pixels:
    Stable Diffusion's latent is off by 1.7e-5 at 512 × 512 and by 1.9e-4 at 1024 × 1024. The limit grows accordingly.

    Raises:
        ParityError: a figure exceeds its limit; the message names the first one.
    """
    for output, measures in figures.items():
        for measure, value in measures.items():
            limit = LIMITS[precision].get(measure, float("inf"))
            if measure == "latent_max_error":
                limit *= max(1.0, size[0] * size[1] / 512**2)
            # `not value <= limit` also rejects NaN.
            if not value <= limit and measure == MAGNITUDE:
                raise ParityError(
                    f"{output} computes values of magnitude {value:.3g} for the sample images, and {precision} holds "
                    f"at most {limit:g}; nothing was written. Try --precision bf16 or fp32"
                )
            if not value <= limit:
                raise ParityError(
                    f"the exported {output} disagrees with PyTorch: {measure} is {value:.3g}, "
                    f"{precision} allows {limit:.3g}; nothing was written. "
                    "Try --precision fp32; if that fails too, please report the checkpoint"
                )


def _widen_bfloat16(source: Path, target: Path) -> Path:
    """Copy an ONNX file with float32 in place of bfloat16. A pair of casts rounds each result to bfloat16."""
    model = ir.load(source)
    wide, narrow = ir.DataType.FLOAT, ir.DataType.BFLOAT16
    for value in model.graph.initializers.values():
        if value.dtype == narrow and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = wide
    for node in list(model.graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == narrow:
            node.attributes["to"] = ir.AttrInt64("to", wide)
        for output in node.outputs:
            if output.dtype != narrow:
                continue
            output.dtype = wide
            consumers = list(output.uses())
            rounded = ir.node(
                "Cast",
                [output],
                {"to": narrow},
                outputs=[ir.Value(name=f"{output.name}_narrow", type=ir.TensorType(narrow))],
            )
            restored = ir.node(
                "Cast",
                rounded.outputs,
                {"to": wide},
                outputs=[ir.Value(name=f"{output.name}_wide", type=ir.TensorType(wide))],
            )
            model.graph.insert_after(node, [rounded, restored])
            for user, index in consumers:
                user.replace_input_with(index, restored.outputs[0])
    ir.save(model, target, external_data=f"{target.name}.data")
    return target
