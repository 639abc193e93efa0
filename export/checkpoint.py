"""Load the parts of a diffusers checkpoint that segmentation needs, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffseg.engines.bundle.manifest import Source
from diffseg.engines.bundle.specs import LATENT_FACTOR
from diffseg.engines.errors import CheckpointError
from diffseg.export.card import read_licence
from diffseg.export.latents import LatentScale, latent_scale
from diffseg.export.locate import CheckpointFiles, find_checkpoint
from diffseg.export.prompt import embed_empty_prompt
from diffseg.export.supported import SUPPORTED
from diffseg.export.weights import load_model
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

ENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parts of a text-to-image checkpoint that segmentation needs."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    latents: LatentScale
    prompt: torch.Tensor  # (1, tokens, width): the embedding of the empty prompt
    pooled: torch.Tensor | None  # (1, width): its pooled embedding; SDXL-class checkpoints only
    source: Source
    card: Path | None  # the README.md of the checkpoint, which states its origin and licence


def load_checkpoint(checkpoint: str | Path, *, vae: str | Path | None = None) -> Checkpoint:
    """Load a diffusers checkpoint from a folder or the hub (`owner/name[@revision]`).

    Args:
        checkpoint: a diffusers folder, or a hub id; see `find_checkpoint`.
        vae: folder or hub id of another autoencoder for the same latents, such as TAESD.

    Raises:
        CheckpointError: the checkpoint is not found, has missing or unreadable parts, or is not supported.
    """
    return load_files(find_checkpoint(checkpoint, vae=vae))


def load_files(files: CheckpointFiles) -> Checkpoint:
    """Load the files that `find_checkpoint` found.

    Raises:
        CheckpointError: weights cannot be read, or the parts do not belong to one checkpoint.
    """
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    folder = files.folder
    prompt = embed_empty_prompt(files)  # first: the text encoders of SDXL take 3.3 GB and are then dropped
    unet = _load_unet(folder)
    vae = _load_vae(files.vae, files.vae_kind)
    if unet.config.in_channels != vae.config.latent_channels:
        raise CheckpointError(
            f"the UNet of {folder} takes {unet.config.in_channels} channels "
            f"and its VAE gives {vae.config.latent_channels}; "
            f"inpainting, depth and image-editing checkpoints are not supported; {SUPPORTED}"
        )
    if prompt.tokens.shape[-1] != unet.config.cross_attention_dim:
        raise CheckpointError(
            f"the text encoder of {folder} gives {prompt.tokens.shape[-1]} features "
            f"and the UNet expects {unet.config.cross_attention_dim}; use parts of one checkpoint"
        )
    if prompt.pooled is not None:
        _check_pooled(folder, unet, prompt.pooled.shape[-1])
    card = folder / "README.md"
    source = Source(files.name, files.revision, read_licence(card))
    found = card if card.is_file() else None
    return Checkpoint(unet, vae, latent_scale(files, vae.config), prompt.tokens, prompt.pooled, source, found)


def _load_unet(folder: Path) -> UNet2DConditionModel:
    unet = load_model(UNet2DConditionModel, folder / "unet")
    if not any(name.endswith("attn1") for name, _ in unet.named_modules()):
        raise CheckpointError(f"the UNet of {folder} has no self-attention; {SUPPORTED}")
    return unet


def _load_vae(folder: Path, kind: str) -> AutoencoderKL | AutoencoderTiny:
    vae = load_model(ENCODERS[kind], folder)
    blocks = vae.config.block_out_channels if kind == "AutoencoderKL" else vae.config.encoder_block_out_channels
    factor = 2 ** (len(blocks) - 1)
    if factor != LATENT_FACTOR:
        raise CheckpointError(
            f"the VAE in {folder} reduces images {factor}-fold, expected {LATENT_FACTOR}-fold; {SUPPORTED}"
        )
    return vae


def _check_pooled(folder: Path, unet: UNet2DConditionModel, width: int) -> None:
    """Check that the UNet takes the pooled embedding and the six numbers of SDXL's image sizes."""
    expected = unet.config.projection_class_embeddings_input_dim
    found = width + 6 * unet.config.addition_time_embed_dim
    if found != expected:
        raise CheckpointError(
            f"the second text encoder and the image sizes of {folder} give {found} features and the UNet expects "
            f"{expected}; use parts of one checkpoint, and not a refiner"
        )
