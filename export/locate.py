"""Find the files of a checkpoint and check that it can be exported. This module does not need PyTorch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.hub import is_hub_id, snapshot
from diffseg.engines.errors import BundleNotFoundError, CheckpointError
from diffseg.engines.files import expand_user

PARTS = ("unet", "vae", "text_encoder", "tokenizer")
SUPPORTED = "supported are checkpoints with Stable Diffusion's UNet: SD 1.x, SD 2.x, BK-SDM and similar"
VAES = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint with a supported configuration. Its weights have not been read."""

    name: str  # hub id, or the folder's name
    revision: str | None  # on the hub; None for a folder
    folder: Path
    vae: Path  # folder of the VAE, which may belong to another checkpoint
    vae_kind: str  # class of the VAE, one of VAES


def find_checkpoint(checkpoint: str | Path, *, vae: str | Path | None = None) -> CheckpointFiles:
    """Find a diffusers checkpoint, in a folder or on the hub (`owner/name[@revision]`), and check its configuration.

    Args:
        checkpoint: folder with `unet/`, `vae/`, `text_encoder/` and `tokenizer/`, or a hub id.
        vae: folder or hub id of another autoencoder for the same latents, such as TAESD.

    Raises:
        CheckpointError: the checkpoint is not found, has missing or unreadable parts, or is not supported.
    """
    folder, revision = _resolve(checkpoint)
    _check_index(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir() and not (part == "vae" and vae)]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(f'{part}/' for part in missing)}; pass a diffusers checkpoint ({SUPPORTED})"
        )
    _check_unet(folder)
    vae_folder = _resolve_vae(vae) if vae else folder / "vae"
    kind = _config(vae_folder, "config.json").get("_class_name")
    if kind not in VAES:
        raise CheckpointError(f"{vae_folder} is a {kind}, expected {' or '.join(VAES)}")
    # Record only the name of a folder, because its path means nothing on another machine.
    name = str(checkpoint).partition("@")[0] if revision else folder.resolve().name
    return CheckpointFiles(name, revision, folder, vae_folder, kind)


def _resolve(checkpoint: str | Path) -> tuple[Path, str | None]:
    folder = expand_user(checkpoint)
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
    """Reject pipelines of other architectures before gigabytes of weights are read."""
    index = _config(folder, "model_index.json", optional=True)
    name = str(index.get("_class_name", ""))
    if re.search(r"XL|StableDiffusion3|Flux|PixArt|Kandinsky|Cascade|Video|Inpaint|Upscale", name):
        raise CheckpointError(f"{folder} is a {name}, which is not supported; {SUPPORTED}")
    if (folder / "transformer").is_dir():
        raise CheckpointError(
            f"{folder} has a transformer/ instead of a UNet (a DiT), which is not supported; {SUPPORTED}"
        )


def _check_unet(folder: Path) -> None:
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


def _config(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    path = folder / name
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); download the checkpoint again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a configuration file; download the checkpoint again")
    return value
