"""A bundle of two graphs of a few nodes each, which a builder builds in a second."""

import shutil
from pathlib import Path

import numpy as np
import onnx
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.bundle import Bundle, write_manifest
from diffseg.engines.bundle.manifest import ENCODER, FEATURES, UNET, Graph, Manifest, Source
from diffseg.engines.bundle.settings import MergeSettings, Method
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

SIZE = (64, 64)


def make_toy(folder: Path, precision: str = "fp32", dtype: str = "float32", scale: float = 1.0) -> Bundle:
    """Write the bundle. Its graphs compute in `dtype`, independent of the manifest. `scale` multiplies the weights."""
    folder.mkdir(parents=True)
    attention = (specs.AttentionOutput("attention_8", (8, 8), 1, 1),)
    encoder, unet = specs.encoder_tensors(SIZE, 4, 4), specs.unet_tensors(SIZE, 4, attention, 4)
    rng = np.random.default_rng(0)
    write(
        folder / "vae_encoder.onnx",
        encoder,
        [
            helper.make_node("Cast", ["image"], ["cast"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
            helper.make_node("Transpose", ["cast"], ["pixels"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["pixels", "kernel"], ["found"], strides=[8, 8]),
            helper.make_node("Cast", ["found"], ["latent"], to=TensorProto.FLOAT),
        ],
        {"kernel": (rng.standard_normal((4, 3, 8, 8)) * scale).astype(dtype)},
    )
    write(
        folder / "unet.onnx",
        unet,
        [
            helper.make_node("Cast", ["latent"], ["cast"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
            helper.make_node("Conv", ["cast", "kernel"], ["wide"]),
            helper.make_node("Reshape", ["wide", "shape"], ["keys"]),
            helper.make_node("Transpose", ["keys"], ["queries"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["queries", "keys"], ["scores"]),
            helper.make_node("Cast", ["scores"], ["logits"], to=TensorProto.FLOAT),
            helper.make_node("Softmax", ["logits"], ["attention_8"], axis=-1),
        ],
        {
            "kernel": (rng.standard_normal((32, 4, 1, 1)) * scale).astype(dtype),
            "shape": np.array([0, 32, 64]),
        },
    )
    manifest = Manifest(
        name="toy",
        source=Source("nowhere"),
        image_size=SIZE,
        latent_scale=1.0,
        timestep=300,
        precision=precision,  # type: ignore[arg-type]
        graphs={
            ENCODER: Graph("vae_encoder.onnx", (), encoder, 18, 768, 98304),
            UNET: Graph("unet.onnx", (), unet, 18, 128, 278528),
        },
        attention=attention,
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def make_features_toy(folder: Path) -> Bundle:
    """Write the toy for DiffCut. Its features are the latent of each place and products of its channels."""
    manifest = make_toy(folder).manifest
    features = specs.FeatureOutput((8, 8), 16)
    unet = specs.features_tensors(SIZE, 4, features, 4)
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("Reshape", ["bent", "shape"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["features"], perm=[0, 2, 1]),
    ]
    kernel = np.random.default_rng(1).standard_normal((16, 4, 1, 1)).astype(np.float32) / 1000
    write(folder / "unet.onnx", unet, nodes, {"kernel": kernel, "shape": np.array([0, 16, 64])})
    graphs = {**manifest.graphs, UNET: Graph("unet.onnx", (), unet, 18, 64, 8192)}
    defaults = MergeSettings(method="diffcut", tau=0.5)
    written = replace(manifest, graphs=graphs, attention=(), features=features, methods=("diffcut",), defaults=defaults)
    write_manifest(folder, replace(written, files={}))
    return Bundle.open(folder)


def make_both_toy(folder: Path, method: Method = "diffseg") -> Bundle:
    """Write the toy for both kinds of methods: the first toy, with the UNet of the second one as a form of its own."""
    folder.mkdir(parents=True)
    for name, make in (("attention", make_toy), ("features", make_features_toy)):
        make(folder / name)
    attention, features = (Bundle.open(folder / name).manifest for name in ("attention", "features"))
    for name in ("vae_encoder.onnx", "unet.onnx"):
        (folder / "attention" / name).rename(folder / name)
    (folder / "features" / "unet.onnx").rename(folder / "unet.features.onnx")
    shutil.rmtree(folder / "attention")
    shutil.rmtree(folder / "features")
    form = replace(features.graphs[UNET], file="unet.features.onnx")
    unet = replace(attention.graphs[UNET], forms={FEATURES: form})
    defaults = features.defaults if method == "diffcut" else attention.defaults
    both = replace(
        attention,
        name="both",
        graphs=attention.graphs | {UNET: unet},
        features=replace(features.features, timestep=50),
        methods=("diffcut", "diffseg") if method == "diffcut" else ("diffseg", "diffcut"),
        defaults=defaults,
    )
    write_manifest(folder, both)
    return Bundle.open(folder)


def write(path: Path, declared: specs.GraphTensors, nodes: list, weights: dict) -> None:
    """Write an ONNX file with the declared inputs and outputs."""

    def value(tensor: specs.TensorSpec) -> onnx.ValueInfoProto:
        shape = [axis.name if axis.dynamic else axis.opt for axis in tensor.axes]
        return helper.make_tensor_value_info(
            tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape
        )

    graph = helper.make_graph(
        nodes,
        path.stem,
        [value(t) for t in declared.inputs],
        [value(t) for t in declared.outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
