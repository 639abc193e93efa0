"""Write a diffusers checkpoint with seeded random weights, without a network, to test and measure the export.

    python scripts/make_checkpoint.py sd15 /tmp/sd15                 # full size: 860 M parameters in the UNet
    python scripts/make_checkpoint.py sd21 /tmp/sd21-small --small   # a few hundred thousand

The cost of a network does not depend on its weights, and parity needs none that mean something. Two things are
not as in a trained checkpoint: the tokenizer knows bytes only (it is asked for the empty prompt alone), and the
query projections are scaled up, since attention of untrained layers is so even that a wrong export could pass.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ATTENTION_DOWN, ATTENTION_UP = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
FOUR_LEVELS: dict[str, Any] = {
    "down_block_types": [*ATTENTION_DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *ATTENTION_UP],
    "block_out_channels": (320, 640, 1280, 1280),
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {**FOUR_LEVELS, "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        **FOUR_LEVELS,
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "bk-sdm-small": {
        **FOUR_LEVELS,
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "mid_block_type": None,
    },
    "bk-sdm-tiny": {
        "down_block_types": ATTENTION_DOWN,
        "up_block_types": ATTENTION_UP,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "mid_block_type": None,
    },
}
SHARPNESS = 8.0


def make_unet(family: str, *, small: bool) -> UNet2DConditionModel:
    """Return the UNet of a family; a small one keeps its topology and has a tenth of its width."""
    config = {"sample_size": 64, **UNETS[family]}
    if small:
        config["block_out_channels"] = tuple(c // 10 for c in config["block_out_channels"])
        config["cross_attention_dim"] = 32
        heads = config["attention_head_dim"]
        config["attention_head_dim"] = 2 if isinstance(heads, int) else (1, 2, 4, 4)
        config["norm_num_groups"] = 8
    unet = UNet2DConditionModel(**config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("attn1.to_q.weight"):
                parameter.mul_(SHARPNESS)
    return unet


def make_vae(kind: str, *, small: bool) -> AutoencoderKL | AutoencoderTiny:
    """Return the autoencoder: Stable Diffusion's (`kl`) or TAESD's (`tiny`)."""
    if kind == "tiny":
        width = (16,) * 4 if small else (64,) * 4
        return AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width[::-1])
    channels, layers = ((16, 16, 32, 32), 1) if small else ((128, 256, 512, 512), 2)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=8 if small else 32,
        sample_size=512,
        scaling_factor=0.18215,
    )


def make_text_encoder(family: str, width: int, *, small: bool) -> CLIPTextModel:
    """Return a CLIP text encoder of the family's size with a vocabulary of bytes."""
    layers, heads = (2, 2) if small else ((23, 16) if family == "sd21" else (12, 12))
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu" if family == "sd21" else "quick_gelu",
            projection_dim=width,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer whose vocabulary is the 256 bytes, with and without the end of a word."""
    folder.mkdir(parents=True)
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [chr(256 + i) for i in range(256 - len(printable))]
    letters = [chr(i) for i in printable] + hidden
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)


def make_checkpoint(family: str, folder: Path, *, small: bool = False, vae: str = "kl", seed: int = 0) -> None:
    """Write the checkpoint folder of a family."""
    torch.manual_seed(seed)
    unet = make_unet(family, small=small)
    unet.save_pretrained(folder / "unet")
    encoder = make_vae(vae, small=small)
    encoder.save_pretrained(folder / "vae")
    text = make_text_encoder(family, unet.config.cross_attention_dim, small=small)
    text.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(encoder).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=UNETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="a tenth of the width")
    parser.add_argument("--vae", choices=("kl", "tiny"), default="kl", help="tiny: AutoencoderTiny (TAESD)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists; choose another folder")
    make_checkpoint(arguments.family, arguments.folder, small=arguments.small, vae=arguments.vae, seed=arguments.seed)
    print(arguments.folder)


if __name__ == "__main__":
    main()
