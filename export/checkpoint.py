"""Reading a diffusers checkpoint: the parts that segmentation needs, in float32."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffseg.engines.errors import BundleNotFoundError, CheckpointError
from diffseg.engines.hub import is_hub_id, snapshot
from diffseg.engines.manifest import Source
from diffseg.engines.tensors import LATENT_FACTOR
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

PARTS = ("unet", "vae", "text_encoder", "tokenizer")
SUPPORTED = "supported are UNets of Stable Diffusion's shape: SD 1.x, SD 2.x, BK-SDM and alike"
ENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is left of a text-to-image checkpoint when no text and no image is to be made."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    prompt: torch.Tensor  # (1, tokens, width): the embedding of the empty prompt
    source: Source
    card: Path | None  # its README.md, which states origin and licence


def load_checkpoint(checkpoint: str | Path, *, vae: str | Path | None = None) -> Checkpoint:
    """Load a diffusers checkpoint from a folder or the hub (`owner/name[@revision]`).

    Args:
        checkpoint: folder with `unet/`, `vae/`, `text_encoder/` and `tokenizer/`, or a hub id.
        vae: folder or hub id of another autoencoder, TAESD for example, that knows the same latents.

    Raises:
        CheckpointError: not found, parts missing or unreadable, or an architecture that is not supported.
    """
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    folder, revision = _resolve(checkpoint)
    _check_index(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir() and not (part == "vae" and vae)]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(f'{part}/' for part in missing)}; pass a diffusers checkpoint ({SUPPORTED})"
        )
    unet = _load_unet(folder)
    encoder = _load_vae(_resolve_vae(vae) if vae else folder / "vae")
    if unet.config.in_channels != encoder.config.latent_channels:
        raise CheckpointError(
            f"the UNet of {folder} takes {unet.config.in_channels} channels "
            f"and its VAE gives {encoder.config.latent_channels}; "
            f"inpainting, depth and image-editing checkpoints can't be used, {SUPPORTED}"
        )
    prompt = _embed_empty_prompt(folder)
    if prompt.shape[-1] != unet.config.cross_attention_dim:
        raise CheckpointError(
            f"the text encoder of {folder} gives {prompt.shape[-1]} features "
            f"and the UNet wants {unet.config.cross_attention_dim}; the parts are not of one checkpoint"
        )
    # A folder is recorded by name: the path on the machine that exported it tells a user of the bundle nothing.
    name = str(checkpoint).partition("@")[0] if revision else folder.resolve().name
    card = folder / "README.md"
    source = Source(name, revision, _licence(card))
    return Checkpoint(unet, encoder, prompt, source, card if card.is_file() else None)


def _resolve(checkpoint: str | Path) -> tuple[Path, str | None]:
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file; single-file checkpoints must be converted to a diffusers folder first"
        )
    if not is_hub_id(str(checkpoint)):
        raise CheckpointError(f"no checkpoint {str(checkpoint)!r}: neither a folder nor a hub id (owner/name)")
    small = ["*.json", "*.txt", "README.md"]
    configs = ["unet/config.json", "vae/config.json", "text_encoder/config.json"]
    try:
        found = snapshot(str(checkpoint), [*small, *(f"{part}/*.safetensors" for part in PARTS)], required=configs)
        if not any((found.folder / "unet").glob("*.safetensors")):
            found = snapshot(str(checkpoint), [*small, *(f"{part}/*.bin" for part in PARTS)], required=configs)
    except BundleNotFoundError as error:
        raise CheckpointError(str(error)) from None
    return found.folder, found.revision


def _resolve_vae(vae: str | Path) -> Path:
    folder, _ = _resolve(vae)
    return folder if (folder / "config.json").is_file() else folder / "vae"


def _check_index(folder: Path) -> None:
    """Refuse pipelines that are known to be something else before gigabytes of them are read."""
    index = _config(folder, "model_index.json", optional=True)
    name = str(index.get("_class_name", ""))
    if re.search(r"XL|StableDiffusion3|Flux|PixArt|Kandinsky|Cascade|Video|Inpaint|Upscale", name):
        raise CheckpointError(f"{folder} is a {name}, which is not supported; {SUPPORTED}")
    if (folder / "transformer").is_dir():
        raise CheckpointError(
            f"{folder} has a transformer/ instead of a UNet (a DiT), which is not supported; {SUPPORTED}"
        )


def _config(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    path = folder / name
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); download the checkpoint again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no configuration; download the checkpoint again")
    return value


def _load(kind: Any, folder: Path, **options: Any) -> Any:  # noqa: ANN401 - any model class of diffusers or transformers
    """`from_pretrained` with whatever variant of the weights there is, and one line when it fails."""
    names = [path.name for path in folder.glob("*.safetensors")] or [path.name for path in folder.glob("*.bin")]
    if not names:
        raise CheckpointError(f"{folder} holds no weights (*.safetensors or *.bin); download the checkpoint again")
    if names and all(".fp16." in name for name in names):
        options["variant"] = "fp16"
    try:
        model = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # each library under it raises its own  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot load {folder}: {reason}; download the checkpoint again") from None
    return model.float().eval().requires_grad_(requires_grad=False)


def _load_unet(folder: Path) -> UNet2DConditionModel:
    config = _config(folder / "unet", "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise CheckpointError(f"{folder / 'unet'} is a {kind}, expected a UNet2DConditionModel; {SUPPORTED}")
    known_blocks = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    blocks = {*config.get("down_block_types", known_blocks), *config.get("up_block_types", known_blocks)}
    unsupported = {
        "addition_embed_type": config.get("addition_embed_type"),
        "class_embed_type": config.get("class_embed_type"),
        "encoder_hid_dim_type": config.get("encoder_hid_dim_type"),
        "dual_cross_attention": config.get("dual_cross_attention"),
        "only_cross_attention": config.get("only_cross_attention"),
        "blocks": sorted(blocks - known_blocks),
    }
    found = {key: value for key, value in unsupported.items() if value}
    if found:
        details = ", ".join(f"{key}={value}" for key, value in found.items())
        raise CheckpointError(f"the UNet of {folder} has {details}, which is not supported; {SUPPORTED}")
    unet = _load(UNet2DConditionModel, folder / "unet")
    if not any(name.endswith("attn1") for name, _ in unet.named_modules()):
        raise CheckpointError(f"the UNet of {folder} has no self-attention; {SUPPORTED}")
    return unet


def _load_vae(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    kind = _config(folder, "config.json").get("_class_name")
    if kind not in ENCODERS:
        raise CheckpointError(f"{folder} is a {kind}, expected {' or '.join(ENCODERS)}")
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
    except Exception as error:  # each library under it raises its own  # noqa: BLE001
        raise CheckpointError(f"cannot load {folder / 'tokenizer'}: {error}; download the checkpoint again") from None
    embedding: torch.Tensor = encoder(tokens.input_ids)[0]
    return embedding


def _licence(card: Path) -> str | None:
    """The licence that a hub model card states in its front matter."""
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:50]
    for line in lines:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None
