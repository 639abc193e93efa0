"""Make a bundle for DiffCut of the embedded model, to measure how its encoder's features cut.

    python scripts/training/tiny_diffcut.py tiny-diffcut
    diffseg evaluate FOLDER --model tiny-diffcut --methods diffcut --protocol full

The features are those that DiffCut takes of a Stable Diffusion UNet: the output of the last self-attention in
`down_blocks[-2]`, 16 × 16 places of 96 channels at 512 px. Two things differ from `diffseg export --method diffcut`,
because they are constants of the graph: the timestep is 300, and no noise is added. Needs the package `onnx`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import onnx
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.bundle import new_bundle, open_bundle, write_manifest
from diffseg.engines.bundle.manifest import ENCODER, UNET, Graph
from diffseg.engines.bundle.settings import MergeSettings
from msgspec.structs import replace
from onnx.utils import Extractor

BIAS = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_out.0.bias"
"""Bias of the projection whose result are the features."""
DEPTH = 2
"""Halvings of the latent before that layer."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tiny = open_bundle("tiny")
    manifest = tiny.manifest
    model = onnx.load(tiny.cpu_path(UNET), load_external_data=False)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == BIAS)
    (value,) = (node.output[0] for node in model.graph.node if _adds(model, node, BIAS))
    part = Extractor(model).extract_model(["latent"], [value])
    part.graph.node.append(onnx.helper.make_node("Identity", [value], ["features"]))
    rows, columns = (n // specs.LATENT_FACTOR >> DEPTH for n in manifest.image_size)
    features = specs.FeatureOutput((rows, columns), bias.dims[0])
    channels = manifest.graphs[ENCODER].tensors.outputs[0].axes[1].opt
    tensors = specs.features_tensors(manifest.image_size, channels, features, manifest.max_batch)
    shape = [axis.name if axis.dynamic else axis.opt for axis in tensors.outputs[0].axes]
    del part.graph.output[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, shape))
    encoder = manifest.graphs[ENCODER]
    with new_bundle(folder) as target:
        for name in (*encoder.files, encoder.cpu_file, "unet.onnx.data"):
            shutil.copyfile(tiny.folder / str(name), target / str(name))
        onnx.save(part, target / "unet.onnx")
        write_manifest(
            target,
            replace(
                manifest,
                name="tiny-diffcut",
                graphs={ENCODER: encoder, UNET: Graph("unet.onnx", ("unet.onnx.data",), tensors, 18, 0, 0)},
                attention=(),
                features=features,
                methods=("diffcut",),
                defaults=MergeSettings(method="diffcut", tau=0.5),
                files={},
            ),
        )
    print(folder)


def _adds(model: onnx.ModelProto, node: onnx.NodeProto, bias: str) -> bool:
    """Whether a node adds a bias, which may be cast first."""
    casts = {each.output[0] for each in model.graph.node if each.op_type == "Cast" and bias in each.input}
    return node.op_type == "Add" and bool({bias, *casts} & {*node.input})


if __name__ == "__main__":
    main()
