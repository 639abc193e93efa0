"""Write a diffusers checkpoint with seeded random weights, without a network, to test and measure the export.

    python scripts/make_checkpoint.py sd15 /tmp/sd15                 # full size: 860 M parameters in the UNet
    python scripts/make_checkpoint.py sd21 /tmp/sd21-small --small   # a few hundred thousand
    python scripts/make_checkpoint.py vega /tmp/vega                 # 745 M; SDXL-class, with two text encoders

The cost of a network does not depend on its weights, and a parity check does not need trained ones. Three things are
not as in a trained checkpoint: the tokenizers know bytes only (they are asked for the empty prompt alone), the
query projections are scaled up, since attention of untrained layers is so even that a wrong export could pass, and
a small SDXL-class checkpoint has one layer per level, and at most two transformer blocks where SDXL has ten.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    EDMEulerScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ATTENTION_DOWN, ATTENTION_UP = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
FOUR_LEVELS: dict[str, Any] = {
    "down_block_types": [*ATTENTION_DOWN, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *ATTENTION_UP],
    "block_out_channels": (320, 640, 1280, 1280),
}
SD15: dict[str, Any] = {**FOUR_LEVELS, "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768}
SD21: dict[str, Any] = {
    **FOUR_LEVELS,
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd21": SD21,
    "sd-turbo": SD21,
    "lcm": {**SD15, "time_cond_proj_dim": 256},
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
    "sdxl": SDXL,
    "sdxl-turbo": {**SDXL, "sample_size": 64},
    "ssd-1b": {
        **SDXL,
        "transformer_layers_per_block": (1, 2, 4),
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    },
    "vega": {**SDXL, "transformer_layers_per_block": (1, 1, 2), "mid_block_type": "UNetMidBlock2D"},
    "playground-v2.5": SDXL,
}
SDXL_CLASS = tuple(family for family, config in UNETS.items() if "addition_embed_type" in config)
PLAYGROUND_LATENTS: dict[str, Any] = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}
DEFAULT_PIPELINE = "StableDiffusionPipeline"
PIPELINES = {"lcm": "LatentConsistencyModelPipeline"}
SHARPNESS = 8.0
MOST_BLOCKS = 2
"""Largest number of transformer blocks per attention of a small SDXL-class UNet."""


def make_unet(family: str, *, small: bool) -> UNet2DConditionModel:
    """Return the UNet of a family; a small one keeps its topology and has a tenth of its width."""
    config = {"sample_size": 64, **UNETS[family]}
    if small:
        config["block_out_channels"] = tuple(c // 10 for c in config["block_out_channels"])
        config["cross_attention_dim"] = sum(text_widths(family, small=True))
        heads = config["attention_head_dim"]
        config["attention_head_dim"] = 2 if isinstance(heads, int) else (1, 2, 4, 4)
        config["norm_num_groups"] = 8
        if family in SDXL_CLASS:
            config |= fewer_layers(config)
            config["addition_time_embed_dim"] = 8
            config["projection_class_embeddings_input_dim"] = text_widths(family, small=True)[-1] + 6 * 8
    unet = UNet2DConditionModel(**config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("attn1.to_q.weight"):
                parameter.mul_(SHARPNESS)
    return unet


def fewer_layers(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings for one layer per level, with at most `MOST_BLOCKS` transformer blocks, and for fewer heads."""
    settings: dict[str, Any] = {"layers_per_block": 1, "attention_head_dim": (1, 2, 2)}
    settings["transformer_layers_per_block"] = [min(n, MOST_BLOCKS) for n in config["transformer_layers_per_block"]]
    if "reverse_transformer_layers_per_block" in config:
        *levels, last = config["reverse_transformer_layers_per_block"]
        ends = [[min(n, MOST_BLOCKS) for n in (level[0], level[-1])] for level in levels]
        settings["reverse_transformer_layers_per_block"] = [*ends, last]
    return settings


def make_vae(kind: str, family: str, *, small: bool) -> AutoencoderKL | AutoencoderTiny:
    """Return the autoencoder: that of Stable Diffusion or SDXL (`kl`), or TAESD or TAESDXL (`tiny`)."""
    if kind == "tiny":
        width = (16,) * 4 if small else (64,) * 4
        return AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width[::-1])
    channels, layers = ((16, 16, 32, 32), 1) if small else ((128, 256, 512, 512), 2)
    own: dict[str, Any] = {"scaling_factor": 0.18215, "sample_size": 512}
    if family in SDXL_CLASS:
        own = {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True}
    if family == "playground-v2.5":
        own |= PLAYGROUND_LATENTS
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=8 if small else 32,
        **own,
    )


def text_widths(family: str, *, small: bool) -> tuple[int, ...]:
    """Return the width of each text encoder. The UNet's cross-attention has their sum."""
    if family in SDXL_CLASS:
        return (16, 32) if small else (768, 1280)
    return (32,) if small else (UNETS[family]["cross_attention_dim"],)


def make_text_encoder(family: str, width: int, *, small: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return a CLIP text encoder of the family's size with a vocabulary of bytes."""
    layers, heads = {768: (12, 12), 1024: (23, 16), 1280: (32, 20)}.get(width, (2, 2))
    second = family in SDXL_CLASS and width == text_widths(family, small=small)[1]
    return (CLIPTextModelWithProjection if second else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu" if second or UNETS[family] is SD21 else "quick_gelu",
            projection_dim=width,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=0 if second else 513,
        )
    )


def make_scheduler(family: str) -> DDPMScheduler | EDMEulerScheduler | LCMScheduler:
    """Return the scheduler, whose configuration tells the export how the UNet takes noise."""
    if family == "playground-v2.5":
        return EDMEulerScheduler()
    stable_diffusion = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if family == "lcm":
        return LCMScheduler(**stable_diffusion)
    return DDPMScheduler(**stable_diffusion) if family in SDXL_CLASS else DDPMScheduler()


def write_tokenizer(folder: Path, **options: str) -> None:
    """Write a CLIP tokenizer whose vocabulary is the 256 bytes, with and without the end of a word."""
    folder.mkdir(parents=True)
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [chr(256 + i) for i in range(256 - len(printable))]
    letters = [chr(i) for i in printable] + hidden
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    CLIPTokenizer(*files, model_max_length=77, **options).save_pretrained(folder)


def make_checkpoint(family: str, folder: Path, *, small: bool = False, vae: str = "kl", seed: int = 0) -> None:
    """Write the checkpoint folder of a family."""
    torch.manual_seed(seed)
    unet = make_unet(family, small=small)
    unet.save_pretrained(folder / "unet")
    encoder = make_vae(vae, family, small=small)
    encoder.save_pretrained(folder / "vae")
    scheduler = make_scheduler(family)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": PIPELINES.get(family, "StableDiffusionXLPipeline" if family in SDXL_CLASS else DEFAULT_PIPELINE),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(encoder).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    for suffix, width in zip(("", "_2"), text_widths(family, small=small), strict=False):
        text = make_text_encoder(family, width, small=small)
        text.save_pretrained(folder / f"text_encoder{suffix}")
        write_tokenizer(folder / f"tokenizer{suffix}", **({"pad_token": "!"} if suffix else {}))
        index |= {
            f"text_encoder{suffix}": ["transformers", type(text).__name__],
            f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"],
        }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=UNETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="a tenth of the width")
    parser.add_argument("--vae", choices=("kl", "tiny"), default="kl", help="tiny: AutoencoderTiny (TAESD, TAESDXL)")
    parser.add_argument("--only-vae", action="store_true", help="write the autoencoder alone, for `export --vae`")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists; choose another folder")
    if arguments.only_vae:
        torch.manual_seed(arguments.seed)
        make_vae(arguments.vae, arguments.family, small=arguments.small).save_pretrained(arguments.folder)
    else:
        options = {"small": arguments.small, "vae": arguments.vae, "seed": arguments.seed}
        make_checkpoint(arguments.family, arguments.folder, **options)
    print(arguments.folder)


if __name__ == "__main__":
    main()
