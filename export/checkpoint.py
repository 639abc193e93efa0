"""Load the parts of a diffusers checkpoint that segmentation needs, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffseg.engines.bundle.manifest import Source
from diffseg.engines.bundle.specs import LATENT_FACTOR
from diffseg.engines.errors import CheckpointError
from diffseg.export.locate import SUPPORTED, CheckpointFiles, find_checkpoint
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

ENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parts of a text-to-image checkpoint that segmentation needs."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    prompt: torch.Tensor  # (1, tokens, width): the embedding of the empty prompt
    source: Source
    card: Path | None  # the README.md of the checkpoint, which states its origin and licence


def load_checkpoint(checkpoint: str | Path, *, vae: str | Path | None = None) -> Checkpoint:
    """Load a diffusers checkpoint from a folder or the hub (`owner/name[@revision]`).

    Args:
        checkpoint: folder with `unet/`, `vae/`, `text_encoder/` and `tokenizer/`, or a hub id.
        vae: folder or hub id of another autoencoder for the same latents, such as TAESD.

    Raises:
        CheckpointError: the checkpoint is not found, has missing or unreadable parts, or is not supported.
    """
    return load_files(find_checkpoint(checkpoint, vae=vae))


def load_files(files: CheckpointFiles) -> Checkpoint:
    """Load what `find_checkpoint` found.

    Raises:
        CheckpointError: weights cannot be read, or the parts do not belong to one checkpoint.
    """
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    folder = files.folder
    unet = _load_unet(folder)
    encoder = _load_vae(files.vae, files.vae_kind)
    if unet.config.in_channels != encoder.config.latent_channels:
        raise CheckpointError(
            f"the UNet of {folder} takes {unet.config.in_channels} channels "
            f"and its VAE gives {encoder.config.latent_channels}; "
            f"inpainting, depth and image-editing checkpoints are not supported; {SUPPORTED}"
        )
    prompt = _embed_empty_prompt(folder)
    if prompt.shape[-1] != unet.config.cross_attention_dim:
        raise CheckpointError(
            f"the text encoder of {folder} gives {prompt.shape[-1]} features "
            f"and the UNet expects {unet.config.cross_attention_dim}; use parts of one checkpoint"
        )
    card = folder / "README.md"
    source = Source(files.name, files.revision, _licence(card))
    return Checkpoint(unet, encoder, prompt, source, card if card.is_file() else None)


def _load(kind: Any, folder: Path, **options: Any) -> Any:  # noqa: ANN401 - any model class of diffusers or transformers
    """Load a model from the available variant of its weights. A failure is reported in one line."""
    names = [path.name for path in folder.glob("*.safetensors")] or [path.name for path in folder.glob("*.bin")]
    if not names:
        raise CheckpointError(f"{folder} holds no weights (*.safetensors or *.bin); download the checkpoint again")
    if names and all(".fp16." in name for name in names):
        options["variant"] = "fp16"
    try:
        model = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # each library raises its own exceptions  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot load {folder}: {reason}; download the checkpoint again") from None
    return model.float().eval().requires_grad_(requires_grad=False)


def _load_unet(folder: Path) -> UNet2DConditionModel:
    unet = _load(UNet2DConditionModel, folder / "unet")
    if not any(name.endswith("attn1") for name, _ in unet.named_modules()):
        raise CheckpointError(f"the UNet of {folder} has no self-attention; {SUPPORTED}")
    return unet


def _load_vae(folder: Path, kind: str) -> AutoencoderKL | AutoencoderTiny:
    vae = _load(ENCODERS[kind], folder)
    blocks = vae.config.block_out_channels if kind == "AutoencoderKL" else vae.config.encoder_block_out_channels
    factor = 2 ** (len(blocks) - 1)
    if factor != LATENT_FACTOR:
        raise CheckpointError(
            f"the VAE in {folder} reduces images {factor}-fold, expected {LATENT_FACTOR}-fold; {SUPPORTED}"
        )
    return vae


@torch.no_grad()
def _embed_empty_prompt(folder: Path) -> torch.Tensor:
    encoder = _load(CLIPTextModel, folder / "text_encoder")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        tokens = tokenizer(
            "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
    except Exception as error:  # each library raises its own exceptions  # noqa: BLE001
        raise CheckpointError(f"cannot load {folder / 'tokenizer'}: {error}; download the checkpoint again") from None
    embedding: torch.Tensor = encoder(tokens.input_ids)[0]
    return embedding


def _licence(card: Path) -> str | None:
    """Return the licence in the front matter of a model card; None if there is none."""
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:50]
    for line in lines:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None
