"""Checkpoint → bundle, in one call."""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffseg.engines import tensors
from diffseg.engines.bundle import Bundle, atomic_folder, seal
from diffseg.engines.manifest import ENCODER, UNET, Defaults, Graph, Manifest, Precision
from diffseg.engines.packages import installed_version
from diffseg.export import parity
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.graphs import AttentionUNet, Encoder
from diffseg.export.trace import OPSET, trace
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIZE_STEP = 64
TIMESTEPS = 1000
RECORDED = ("diffseg", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What a bundle is made for.

    Raises:
        ValueError: a setting that no UNet takes.
    """

    size: tuple[int, int] = (512, 512)  # height, width in pixels
    precision: Precision = "fp32"
    timestep: int = 300
    max_batch: int = 4
    defaults: Defaults = field(default_factory=Defaults)

    def __post_init__(self) -> None:
        if any(n < SIZE_STEP or n % SIZE_STEP for n in self.size):
            raise ValueError(f"size must be multiples of {SIZE_STEP} pixels, found {self.size[0]}x{self.size[1]}")
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, found {self.precision!r}")
        if not 0 <= self.timestep < TIMESTEPS:
            raise ValueError(f"timestep must be 0 to {TIMESTEPS - 1}, found {self.timestep}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, found {self.max_batch}")
        thresholds, anchors = self.defaults.thresholds, self.defaults.anchors
        if not thresholds or not all(0 <= t < math.inf for t in thresholds) or anchors < 1:
            raise ValueError(
                f"defaults need finite thresholds of at least 0 and at least one anchor, found {self.defaults}"
            )


def export_bundle(
    checkpoint: str | Path,
    target: str | Path,
    settings: ExportSettings | None = None,
    *,
    name: str | None = None,
    vae: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a diffusers checkpoint to a bundle of ONNX graphs, and verify it against torch.

    Args:
        checkpoint: folder or hub id of a diffusers checkpoint.
        target: folder to write; it appears only when everything in it is verified.
        settings: image size, precision, timestep, largest batch, default thresholds.
        name: the bundle's name; None takes the target's.
        vae: another autoencoder for the same latents (TAESD), folder or hub id.
        overwrite: replace a bundle that is there already.
        progress: is told each step, as one line of text.

    Raises:
        CheckpointError: the checkpoint can't be read or is not supported.
        ParityError: a graph disagrees with torch by more than its precision allows.
        BundleError: `target` is in the way.
    """
    settings = settings or ExportSettings()
    target = Path(target).expanduser().resolve()
    with atomic_folder(target, overwrite=overwrite) as folder:
        manifest = _export(checkpoint, vae, folder, settings, name or target.name, progress)
        progress("hash the files")
        seal(folder, manifest)
    return Bundle.open(target)


@torch.no_grad()
def _export(
    checkpoint: str | Path,
    vae: str | Path | None,
    folder: Path,
    settings: ExportSettings,
    name: str,
    progress: Callable[[str], None],
) -> Manifest:
    progress("load the checkpoint")
    loaded = load_checkpoint(checkpoint, vae=vae)
    if loaded.card is not None:
        shutil.copyfile(loaded.card, folder / loaded.card.name)  # the licence goes where the weights go
    size, precision, max_batch = settings.size, settings.precision, settings.max_batch
    dtype = DTYPES[precision]
    unet_parameters, unet_flops = _parameters(loaded.unet), _flops(loaded.unet, size, loaded.prompt)
    vae_parameters = _parameters(loaded.vae)
    source, scale = loaded.source, float(loaded.vae.config.scaling_factor)
    encoder, unet = Encoder(loaded.vae), AttentionUNet(loaded.unet, loaded.prompt, settings.timestep, size)
    channels = encoder.channels

    progress("run it in torch")
    images = parity.sample_images(size)
    latent = parity.reference(encoder, images)[0]
    attention = parity.reference(unet, latent)
    outputs = unet.outputs()

    encoder_tensors = tensors.encoder_tensors(size, channels, max_batch)
    unet_tensors = tensors.unet_tensors(size, channels, outputs, max_batch)
    progress(f"trace the VAE encoder in {precision}")
    traced_encoder = trace(encoder.to(dtype), encoder_tensors, folder / f"{ENCODER}.onnx")
    progress(f"trace the UNet in {precision}")
    traced_unet = trace(unet.to(dtype), unet_tensors, folder / f"{UNET}.onnx")
    del loaded, encoder, unet  # the only references: ONNX Runtime needs the room

    progress("compare with torch")
    figures: dict[str, dict[str, float]] = {}
    for suffix, encoder_file, unet_file in (
        ("", traced_encoder.file, traced_unet.file),
        ("_cpu", traced_encoder.cpu_file, traced_unet.cpu_file),
    ):
        if encoder_file is None or unet_file is None:
            continue
        found = parity.execute(folder / encoder_file, images, precision, max_batch)
        figures[f"latent{suffix}"] = parity.measure_latent(latent, found[0])
        found = parity.execute(folder / unet_file, latent, precision, max_batch)
        for output, expected, actual in zip(outputs, attention, found, strict=True):
            figures[f"{output.name}{suffix}"] = parity.measure_attention(expected, actual)
    parity.check(figures, precision, size)

    return Manifest(
        name=name,
        source=source,
        image_size=size,
        latent_scale=scale,
        timestep=settings.timestep,
        precision=precision,
        graphs={
            ENCODER: Graph(
                file=traced_encoder.file,
                external_data=traced_encoder.external_data,
                cpu_file=traced_encoder.cpu_file,
                tensors=encoder_tensors,
                opset=OPSET,
                parameters=traced_encoder.parameters,
                flops=traced_encoder.flops,
                layers=traced_encoder.layers,
                activation_bytes=traced_encoder.activation_bytes,
                parameters_dropped=vae_parameters - traced_encoder.parameters,
            ),
            UNET: Graph(
                file=traced_unet.file,
                external_data=traced_unet.external_data,
                cpu_file=traced_unet.cpu_file,
                tensors=unet_tensors,
                opset=OPSET,
                parameters=traced_unet.parameters,
                flops=traced_unet.flops,
                layers=traced_unet.layers,
                activation_bytes=traced_unet.activation_bytes,
                parameters_dropped=unet_parameters - traced_unet.parameters,
                flops_dropped=unet_flops - traced_unet.flops,
            ),
        },
        attention=outputs,
        defaults=settings.defaults,
        versions={"python": platform.python_version(), **{p: v for p in RECORDED if (v := installed_version(p))}},
        parity=figures,
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read `512` or `512x768` (height x width).

    Raises:
        ValueError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):  # noqa: PLR2004
        raise ValueError(f"size must be N or HEIGHTxWIDTH in pixels, found {text!r}")
    return int(parts[0]), int(parts[-1])


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(unet: UNet2DConditionModel, size: tuple[int, int], prompt: torch.Tensor) -> int:
    """FLOPs of the whole UNet for one image, counted on shapes alone."""
    with torch.device("meta"):
        twin = UNet2DConditionModel.from_config(unet.config)
        rows, columns = (n // tensors.LATENT_FACTOR for n in size)
        latent = torch.zeros(1, unet.config.in_channels, rows, columns)
        with FlopCounterMode(display=False) as counter:
            twin(latent, torch.zeros(1), torch.zeros(prompt.shape))
    return int(counter.get_total_flops())
