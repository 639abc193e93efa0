"""The embedded model in diffusers, untrained or from a checkpoint, and probes of its self-attention."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for make_checkpoint

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from make_checkpoint import write_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TIMESTEP = 300


class Probe:
    """A self-attention processor that keeps its queries and keys, (B, heads, n², channels)."""

    def __init__(self) -> None:
        self.query = self.key = torch.empty(0)

    def __call__(self, attn: nn.Module, hidden_states: Tensor, **_: object) -> Tensor:
        """Compute the same as diffusers' own processor."""
        layers = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
        self.query, self.key = query, key
        out = functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def maps(self, count: int, rows: Tensor | slice) -> Tensor:
        """Return the head-averaged attention (count, rows, n²) of the first images of the batch."""
        query = self.query[:count, :, rows] * self.query.shape[-1] ** -0.5
        return (query @ self.key[:count].transpose(-1, -2)).softmax(-1).mean(1)


def probe(unet: UNet2DConditionModel) -> list[list[Probe]]:
    """Put a probe into every self-attention. Return the probes of each resolution, finest first."""
    probes = {name: Probe() for name in unet.attn_processors if "attn1" in name}
    unet.set_attn_processor({**unet.attn_processors, **probes})
    depths = ("down_blocks.0 up_blocks.3", "down_blocks.1 up_blocks.2", "down_blocks.2 up_blocks.1")
    return [
        [p for name, p in probes.items() if name.startswith(tuple(depth.split()))] for depth in (*depths, "mid_block")
    ]


def build(folder: Path, start: Path | None = None) -> StableDiffusionPipeline:
    """Return the model, untrained or from a checkpoint. The text encoder stays random: its only input is empty."""
    if start:
        return StableDiffusionPipeline.from_pretrained(start)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=512,
    )
    with torch.no_grad():  # so that scaled latents have a deviation near 1
        vae.encoder.conv_out.weight[:4] *= 5
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(48, 80, 96, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(2, 4, 4, 4),  # the number of heads, in spite of its name
        cross_attention_dim=32,
        norm_num_groups=8,
        time_embedding_dim=64,
    )
    ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=514, num_attention_heads=2, **sizes, **ends))
    if not folder.exists():
        write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    schedule = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def empty_prompt(pipeline: StableDiffusionPipeline) -> Tensor:
    """Return the embedding (1, 77, channels) of the empty prompt."""
    settings = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return pipeline.text_encoder(pipeline.tokenizer("", **settings).input_ids).last_hidden_state
