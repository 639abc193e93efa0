"""Checks of a checkpoint's configuration files: whether it can be exported. This module does not need PyTorch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from diffseg.engines.errors import CheckpointError

SUPPORTED = (
    "supported are checkpoints with the UNet of Stable Diffusion 1.x, 2.x or SDXL, among them SD-Turbo, LCM, BK-SDM, "
    "SSD-1B, Segmind-Vega and Playground v2.5"
)
TRANSFORMERS = r"StableDiffusion3|Flux|PixArt|AuraFlow|Sana|Lumina|Hunyuan|CogView|QwenImage|Chroma|HiDream"
"""Pipelines whose network is a transformer, by a part of their class name."""
OTHERS = r"Kandinsky|Kolors|Cascade|Wuerstchen|Video|Inpaint|Upscale|Pix2Pix"
"""Pipelines with other networks, or with a UNet that takes more than a latent."""
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}


def check_index(folder: Path) -> None:
    """Reject pipelines of other architectures before gigabytes of weights are read.

    Raises:
        CheckpointError: the pipeline is not supported.
    """
    index = read_config(folder, "model_index.json", optional=True)
    name = str(index.get("_class_name", "pipeline"))
    if "transformer" in index or (folder / "transformer").is_dir() or re.search(TRANSFORMERS, name):
        raise CheckpointError(
            f"{folder} is a {name}, whose network is a diffusion transformer (a DiT): it has a single resolution and "
            f"no UNet, whose attention at several resolutions or encoder features the methods need; {SUPPORTED}"
        )
    if re.search(OTHERS, name):
        raise CheckpointError(f"{folder} is a {name}, which is not supported; {SUPPORTED}")
    if index.get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder} is the refiner of SDXL, which is not supported; pass the base checkpoint")


def check_unet(folder: Path) -> dict[str, Any]:
    """Check the configuration of the UNet and return it.

    Raises:
        CheckpointError: it cannot be read, or the UNet is not supported.
    """
    config = read_config(folder / "unet", "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise CheckpointError(f"{folder / 'unet'} is a {kind}, expected a UNet2DConditionModel; {SUPPORTED}")
    blocks = {*config.get("down_block_types", BLOCKS), *config.get("up_block_types", BLOCKS)}
    added = config.get("addition_embed_type")
    unsupported = {
        "addition_embed_type": None if added == "text_time" else added,  # "text_time" is SDXL's
        "class_embed_type": config.get("class_embed_type"),
        "encoder_hid_dim_type": config.get("encoder_hid_dim_type"),
        "dual_cross_attention": config.get("dual_cross_attention"),
        "only_cross_attention": config.get("only_cross_attention"),
        "blocks": sorted(blocks - BLOCKS),
    }
    found = {key: value for key, value in unsupported.items() if value}
    if found:
        details = ", ".join(f"{key}={value}" for key, value in found.items())
        raise CheckpointError(f"the UNet of {folder} has {details}, which is not supported; {SUPPORTED}")
    return config


def read_config(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON file of a checkpoint; empty if it is optional and does not exist.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
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
