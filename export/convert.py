"""Convert checkpoint files to ONNX graphs and their manifest, and verify the graphs. This module imports PyTorch."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.manifest import (
    CPU_SUFFIX,
    ENCODER,
    FEATURES,
    QUERIES_KEYS,
    UNET,
    Graph,
    Manifest,
    Precision,
)
from diffseg.engines.bundle.settings import Method
from diffseg.engines.packages import installed_version
from diffseg.export import parity
from diffseg.export.checkpoint import Checkpoint, load_files
from diffseg.export.features import FeatureUNet
from diffseg.export.graphs import AttentionUNet, Encoder
from diffseg.export.locate import CheckpointFiles
from diffseg.export.magnitudes import LargestMagnitude, upcast_operators
from diffseg.export.noise import make_noise, noise_level
from diffseg.export.recorders import QueriesKeys
from diffseg.export.settings import TIMESTEPS_OF, ExportSettings
from diffseg.export.time_embedding import embed_time, image_sizes
from diffseg.export.trace import trace
from diffseg.export.widen import widen
from diffusers import UNet2DConditionModel
from msgspec.structs import replace
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    size = settings.image_size(sdxl=files.sdxl, native_size=files.native_size)
    precision, max_batch = settings.precision, settings.max_batch
    encoder_precision = _encoder_precision(loaded, precision)
    unet_parameters, unet_flops = _parameters(loaded.unet), _flops(loaded, size)
    vae_parameters = _parameters(loaded.vae)
    source, scale = loaded.source, loaded.latents.scale
    encoder = Encoder(loaded.vae, loaded.latents)
    channels = encoder.channels
    unet = make_network(loaded, files.folder, settings, size, "diffseg" if settings.both else settings.method)

    progress("run the checkpoint in PyTorch")
    images = parity.sample_images(size)
    with LargestMagnitude() as encoded:
        latent = parity.reference(encoder, images)[0]
    with LargestMagnitude(upcast_operators(unet)) as attended:
        truth = parity.reference(unet, latent)
    magnitudes = {graph: {parity.MAGNITUDE: each.value} for graph, each in ((ENCODER, encoded), (UNET, attended))}
    parity.check({ENCODER: magnitudes[ENCODER]}, encoder_precision, size)  # before anything is traced
    parity.check({UNET: magnitudes[UNET]}, precision, size)
    outputs = unet.outputs() if isinstance(unet, AttentionUNet) else ()
    features = unet.output() if isinstance(unet, FeatureUNet) else None

    encoder_tensors = specs.encoder_tensors(size, channels, max_batch)
    unet_tensors = (
        specs.unet_tensors(size, channels, outputs, max_batch)
        if features is None
        else specs.features_tensors(size, channels, features, max_batch)
    )
    progress(f"trace the VAE encoder in {encoder_precision}")
    traced_encoder = trace(encoder.to(DTYPES[encoder_precision]), encoder_tensors, folder / f"{ENCODER}.onnx")
    gpu_latent = parity.reference_on_gpu(encoder, images)
    progress(f"trace the UNet in {precision}")
    path = folder / f"{UNET}.onnx"
    traced_unet = trace(unet.to(DTYPES[precision]), unet_tensors, path, external=True)
    gpu_outputs = parity.reference_on_gpu(unet, latent)
    forms: dict[str, Graph] = {}
    if isinstance(unet, AttentionUNet):
        form_tensors = specs.queries_keys_tensors(size, channels, outputs, unet.widths(), NAMES[precision], max_batch)
        unet.recorder = QueriesKeys()
        forms[QUERIES_KEYS] = trace(unet, form_tensors, folder / f"{UNET}.{QUERIES_KEYS}.onnx", weights_of=path)
    del loaded, encoder, unet  # the only references: ONNX Runtime needs the memory

    progress("compare the graphs with PyTorch")
    measure = parity.measure_attention if features is None else parity.measure_features
    latents = _compare(traced_encoder, folder, images, [latent], parity.measure_latent, encoder_precision)
    latents |= _measured(encoder_tensors.outputs, [latent], gpu_latent, parity.measure_latent)
    parity.check(latents, encoder_precision, size)
    figures = _compare(traced_unet, folder, latent, truth, measure, precision)
    figures |= _measured(unet_tensors.outputs, truth, gpu_outputs, measure)
    for kind, form in forms.items():
        found = parity.execute_form(folder / form.file, latent, precision)
        for tensor, expected, actual in zip(unet_tensors.outputs, truth, found, strict=True):
            figures[f"{tensor.name}_{kind}"] = parity.measure_attention(expected, actual)
    parity.check(figures, precision, size)

    manifest = Manifest(
        name=name,
        source=source,
        image_size=size,
        latent_scale=scale,
        timestep=TIMESTEPS_OF["diffseg"] if settings.both else settings.timestep,
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
        parity=magnitudes | latents | figures,
        methods=settings.methods,
        features=features,
    )
    return add_features(manifest, files, folder, settings, latent, progress) if settings.both else manifest


def add_features(
    manifest: Manifest,
    files: CheckpointFiles,
    folder: Path,
    settings: ExportSettings,
    latent: NDArray[np.float32],
    progress: Callable[[str], None],
) -> Manifest:
    """Add DiffCut's network to DiffSeg's, as a form of the UNet with the same weights.

    Args:
        manifest: of the bundle so far.
        files: the checkpoint.
        folder: folder of the bundle.
        settings: the settings of the export.
        latent: latents of the sample images.
        progress: called at the beginning of each step, with one line of text.

    Returns:
        The manifest of both.

    Raises:
        CheckpointError: DiffCut cannot use the UNet.
        ParityError: the outputs of the graph differ from PyTorch's by more than its precision allows.
    """
    progress("run the UNet's encoder in PyTorch")
    loaded = load_files(files)  # again: the first network has taken the UNet over
    size, precision = manifest.image_size, settings.precision
    parameters, flops, channels = _parameters(loaded.unet), _flops(loaded, size), loaded.unet.config.in_channels
    unet = make_network(loaded, files.folder, settings, size, "diffcut")
    assert isinstance(unet, FeatureUNet)  # noqa: S101 - by the method
    with LargestMagnitude(upcast_operators(unet)) as attended:
        truth = parity.reference(unet, latent)
    name, weights = f"{UNET}.{FEATURES}", folder / f"{UNET}.onnx"
    magnitudes = {name: {parity.MAGNITUDE: attended.value}}
    parity.check(magnitudes, precision, size)
    features = replace(unet.output(), timestep=TIMESTEPS_OF["diffcut"])
    progress(f"trace the UNet's encoder in {precision}")
    path = folder / f"{name}.onnx"
    tensors = specs.features_tensors(size, channels, features, settings.max_batch)
    graph = trace(unet.to(DTYPES[precision]), tensors, path, weights_of=weights)
    del loaded, unet
    if precision != "fp32":
        widen(path, path.with_suffix(CPU_SUFFIX))
        graph = replace(graph, cpu_file=path.with_suffix(CPU_SUFFIX).name)
    progress("compare it with PyTorch")
    figures = _compare(graph, folder, latent, truth, parity.measure_features, precision)
    parity.check(figures, precision, size)
    form = replace(graph, parameters_dropped=parameters - graph.parameters, flops_dropped=flops - graph.flops)
    main = manifest.graphs[UNET]
    main = replace(main, forms=main.forms | {FEATURES: form})
    return replace(
        manifest,
        graphs=manifest.graphs | {UNET: main},
        features=features,
        parity=manifest.parity | magnitudes | figures,
    )


def _compare(
    graph: Graph,
    folder: Path,
    value: NDArray[Any],
    truth: list[NDArray[np.float32]],
    measure: Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, float]],
    precision: Precision,
) -> dict[str, dict[str, float]]:
    """Compare the outputs of a graph, and of its form for CPUs, with those of PyTorch."""
    outputs, max_batch = graph.tensors.outputs, graph.tensors.inputs[0].axes[0].max
    figures: dict[str, dict[str, float]] = {}
    for suffix, file in (("", graph.file), ("_cpu", graph.cpu_file)):
        if file is not None:
            found = parity.execute(folder / file, value, precision, max_batch)
            for tensor, expected, actual in zip(outputs, truth, found, strict=True):
                figures[f"{tensor.name}{suffix}"] = measure(expected, actual)
    return figures


def _measured(
    outputs: Sequence[specs.TensorSpec],
    truth: list[NDArray[np.float32]],
    found: list[NDArray[np.float32]] | None,
    measure: Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """Compare the outputs of PyTorch on the GPU, if there are any, with those on the CPU."""
    if found is None:
        return {}
    pairs = zip(outputs, truth, found, strict=True)
    return {f"{tensor.name}_gpu": measure(expected, actual) for tensor, expected, actual in pairs}


def _encoder_precision(loaded: Checkpoint, precision: Precision) -> Precision:
    """Return the precision of the VAE: float32 if SDXL's configuration requires it, because activations overflow.

    Diffusers also sets `force_upcast` for Stable Diffusion, but its pipelines ignore it there.
    """
    return "fp32" if loaded.pooled is not None and loaded.vae.config.force_upcast else precision


def make_network(
    loaded: Checkpoint, folder: Path, settings: ExportSettings, size: tuple[int, int], method: Method | None = None
) -> AttentionUNet | FeatureUNet:
    """Return the network of a method. It modifies `loaded.unet` in place.

    Args:
        loaded: the checkpoint.
        folder: folder of the checkpoint, for the scheduler.
        settings: timestep and noise.
        size: height and width of the images in pixels.
        method: `diffseg` or `diffcut`; None: that of the settings.

    Raises:
        CheckpointError: the schedule is unknown, or DiffCut cannot use the UNet.
    """
    method = method or settings.method
    level = noise_level(folder, TIMESTEPS_OF[method] if settings.both else settings.timestep)
    embedding = embed_time(loaded.unet, level.condition, size, loaded.pooled)
    if method == "diffseg":
        return AttentionUNet(loaded.unet, loaded.prompt, embedding, size, level.gain)
    shape = 1, loaded.vae.config.latent_channels, *(n // specs.LATENT_FACTOR for n in size)
    return FeatureUNet(loaded.unet, loaded.prompt, embedding, make_noise(shape, settings.noise), level)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(loaded: Checkpoint, size: tuple[int, int]) -> int:
    """Return the FLOPs of the whole UNet per image. Only shapes are computed, on the `meta` device."""
    config = loaded.unet.config
    with torch.device("meta"):
        twin = UNet2DConditionModel.from_config(config)
        rows, columns = (n // specs.LATENT_FACTOR for n in size)
        latent = torch.zeros(1, config.in_channels, rows, columns)
        added = {}
        if loaded.pooled is not None:
            added = {"text_embeds": torch.zeros(loaded.pooled.shape), "time_ids": image_sizes(size).to("meta")}
        with FlopCounterMode(display=False) as counter:
            twin(latent, torch.zeros(1), torch.zeros(loaded.prompt.shape), added_cond_kwargs=added)
    return int(counter.get_total_flops())
