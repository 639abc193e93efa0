"""Convert checkpoint files to ONNX graphs and their manifest, and verify the graphs. This module imports PyTorch."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.manifest import ENCODER, QUERIES_KEYS, UNET, Graph, Manifest, Precision
from diffseg.engines.packages import installed_version
from diffseg.export import parity
from diffseg.export.checkpoint import Checkpoint, load_files
from diffseg.export.features import FeatureUNet
from diffseg.export.graphs import AttentionUNet, Encoder
from diffseg.export.locate import CheckpointFiles
from diffseg.export.magnitudes import LargestMagnitude, upcast_operators
from diffseg.export.noise import make_noise, signal_share
from diffseg.export.recorders import QueriesKeys
from diffseg.export.settings import ExportSettings
from diffseg.export.trace import trace
from diffusers import UNet2DConditionModel
from msgspec.structs import replace
from torch.utils.flop_counter import FlopCounterMode

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES: dict[Precision, specs.DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
RECORDED = ("diffseg", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@torch.no_grad()
def convert(
    files: CheckpointFiles,
    folder: Path,
    settings: ExportSettings,
    name: str,
    progress: Callable[[str], None],
) -> Manifest:
    """Write a checkpoint's graphs to `folder` and compare their outputs with PyTorch.

    Args:
        files: the result of `find_checkpoint`.
        folder: an empty folder.
        settings: image size, precision, timestep, maximum batch size and default merge settings.
        name: the bundle's name.
        progress: called at the beginning of each step, with one line of text.

    Returns:
        The manifest, without the hashes of the files.

    Raises:
        CheckpointError: the checkpoint cannot be read or is not supported.
        ParityError: the outputs of a graph differ from PyTorch's by more than its precision allows.
    """
    loaded = load_files(files)
    if loaded.card is not None:
        shutil.copyfile(loaded.card, folder / loaded.card.name)  # states the licence of the weights
    size, precision, max_batch = settings.size, settings.precision, settings.max_batch
    dtype = DTYPES[precision]
    unet_parameters, unet_flops = _parameters(loaded.unet), _flops(loaded.unet, size, loaded.prompt)
    vae_parameters = _parameters(loaded.vae)
    source, scale = loaded.source, float(loaded.vae.config.scaling_factor)
    encoder = Encoder(loaded.vae)
    channels = encoder.channels
    unet = _make_unet(loaded, files.folder, settings, channels)

    progress("run the checkpoint in PyTorch")
    images = parity.sample_images(size)
    with LargestMagnitude() as encoded:
        latent = parity.reference(encoder, images)[0]
    with LargestMagnitude(upcast_operators(unet)) as attended:
        truth = parity.reference(unet, latent)
    figures = {graph: {parity.MAGNITUDE: each.value} for graph, each in ((ENCODER, encoded), (UNET, attended))}
    parity.check(figures, precision, size)  # before anything is traced
    outputs = unet.outputs() if isinstance(unet, AttentionUNet) else ()
    features = unet.output() if isinstance(unet, FeatureUNet) else None

    encoder_tensors = specs.encoder_tensors(size, channels, max_batch)
    if features is not None:
        unet_tensors = specs.features_tensors(size, channels, features, max_batch)
    else:
        unet_tensors = specs.unet_tensors(size, channels, outputs, max_batch)
    progress(f"trace the VAE encoder in {precision}")
    traced_encoder = trace(encoder.to(dtype), encoder_tensors, folder / f"{ENCODER}.onnx")
    progress(f"trace the UNet in {precision}")
    path = folder / f"{UNET}.onnx"
    traced_unet = trace(unet.to(dtype), unet_tensors, path, external=True)
    forms: dict[str, Graph] = {}
    if isinstance(unet, AttentionUNet):
        form_tensors = specs.queries_keys_tensors(size, channels, outputs, unet.widths(), NAMES[precision], max_batch)
        unet.recorder = QueriesKeys()
        forms[QUERIES_KEYS] = trace(unet, form_tensors, folder / f"{UNET}.{QUERIES_KEYS}.onnx", weights_of=path)
    del loaded, encoder, unet  # the only references: ONNX Runtime needs the memory

    progress("compare the graphs with PyTorch")
    for suffix, encoder_file, unet_file in (
        ("", traced_encoder.file, traced_unet.file),
        ("_cpu", traced_encoder.cpu_file, traced_unet.cpu_file),
    ):
        if encoder_file is None or unet_file is None:
            continue
        found = parity.execute(folder / encoder_file, images, precision, max_batch)
        figures[f"latent{suffix}"] = parity.measure_latent(latent, found[0])
        found = parity.execute(folder / unet_file, latent, precision, max_batch)
        measure = parity.measure_attention if features is None else parity.measure_features
        for tensor, expected, actual in zip(unet_tensors.outputs, truth, found, strict=True):
            figures[f"{tensor.name}{suffix}"] = measure(expected, actual)
    for kind, form in forms.items():
        found = parity.execute_form(folder / form.file, latent, precision)
        for tensor, expected, actual in zip(unet_tensors.outputs, truth, found, strict=True):
            figures[f"{tensor.name}_{kind}"] = parity.measure_attention(expected, actual)
    parity.check(figures, precision, size)

    return Manifest(
        name=name,
        source=source,
        image_size=size,
        latent_scale=scale,
        timestep=settings.timestep,
        precision=precision,
        graphs={
            ENCODER: replace(traced_encoder, parameters_dropped=vae_parameters - traced_encoder.parameters),
            UNET: replace(
                traced_unet,
                parameters_dropped=unet_parameters - traced_unet.parameters,
                flops_dropped=unet_flops - traced_unet.flops,
                forms=forms,
            ),
        },
        attention=outputs,
        defaults=settings.defaults,
        versions={"python": platform.python_version(), **{p: v for p in RECORDED if (v := installed_version(p))}},
        parity=figures,
        methods=(settings.method,),
        features=features,
    )


def _make_unet(
    loaded: Checkpoint, folder: Path, settings: ExportSettings, channels: int
) -> AttentionUNet | FeatureUNet:
    """Return the network of the method."""
    if settings.method == "diffseg":
        return AttentionUNet(loaded.unet, loaded.prompt, settings.timestep, settings.size)
    shape = 1, channels, *(n // specs.LATENT_FACTOR for n in settings.size)
    share = signal_share(folder, settings.timestep)
    return FeatureUNet(loaded.unet, loaded.prompt, settings.timestep, make_noise(shape, settings.noise), share)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(unet: UNet2DConditionModel, size: tuple[int, int], prompt: torch.Tensor) -> int:
    """Return the FLOPs of the whole UNet per image. Only shapes are computed, on the `meta` device."""
    with torch.device("meta"):
        twin = UNet2DConditionModel.from_config(unet.config)
        rows, columns = (n // specs.LATENT_FACTOR for n in size)
        latent = torch.zeros(1, unet.config.in_channels, rows, columns)
        with FlopCounterMode(display=False) as counter:
            twin(latent, torch.zeros(1), torch.zeros(prompt.shape))
    return int(counter.get_total_flops())
