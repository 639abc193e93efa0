"""The toy bundle with a UNet of two resolutions and two heads each, in both of its forms."""

import numpy as np
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.bundle import Bundle, write_manifest
from diffseg.engines.bundle.manifest import QUERIES_KEYS, UNET, Graph
from msgspec.structs import replace
from onnx import TensorProto, helper

from tests.engines.toy import SIZE, make_toy, write

HEADS, WIDTHS = 2, (16, 8)
PRECISIONS = {"float32": "fp32", "float16": "fp16"}


def make_formed(folder, dtype="float32", widths=WIDTHS):
    """Write the bundle. Queries and keys are of `dtype`, `widths` wide; queries differ from keys."""
    toy = make_toy(folder, scale=0.02)
    attention = tuple(specs.AttentionOutput(f"attention_{n}", (n, n), 1, HEADS) for n in (8, 4))
    tensors = specs.unet_tensors(SIZE, 4, attention, 4)
    form = specs.queries_keys_tensors(SIZE, 4, attention, widths, dtype, 4)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(7)
    nodes, averages, weights = [], [], {"mean": np.array([1])}
    for attended, width in zip(attention, widths, strict=True):
        n, step = attended.grid[0], 8 // attended.grid[0]
        weights[f"shape_{n}"] = np.array([0, HEADS, width, n * n])
        for name in ("queries", "keys"):
            weights[f"{name}_weights_{n}"] = rng.standard_normal((HEADS * width, 4, 1, 1)).astype(np.float32) * 0.03
            nodes += [
                helper.make_node("Conv", ["latent", f"{name}_weights_{n}"], [f"{name}_wide_{n}"], strides=[step, step]),
                helper.make_node("Reshape", [f"{name}_wide_{n}", f"shape_{n}"], [f"{name}_heads_{n}"]),
                helper.make_node("Transpose", [f"{name}_heads_{n}"], [f"{name}_last_{n}"], perm=[0, 1, 3, 2]),
                helper.make_node("Cast", [f"{name}_last_{n}"], [f"{name}_{n}"], to=kind),
            ]
        averages += [
            helper.make_node("Cast", [f"queries_{n}"], [f"queries_float_{n}"], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"keys_{n}"], [f"keys_float_{n}"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", [f"keys_float_{n}"], [f"keys_first_{n}"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", [f"queries_float_{n}", f"keys_first_{n}"], [f"logits_{n}"]),
            helper.make_node("Softmax", [f"logits_{n}"], [f"maps_{n}"], axis=-1),
            helper.make_node("ReduceMean", [f"maps_{n}", "mean"], [f"attention_{n}"], keepdims=0),
        ]
    write(folder / "unet.onnx", tensors, nodes + averages, weights)
    write(folder / "unet.queries_keys.onnx", form, nodes, {k: v for k, v in weights.items() if k != "mean"})
    graphs = toy.manifest.graphs | {
        UNET: Graph(
            "unet.onnx",
            (),
            tensors,
            18,
            384,
            1000,
            forms={QUERIES_KEYS: Graph("unet.queries_keys.onnx", (), form, 18, 384, 1000)},
        )
    }
    write_manifest(folder, replace(toy.manifest, graphs=graphs, attention=attention, precision=PRECISIONS[dtype]))
    return Bundle.open(folder)
