"""The time embedding of a UNet, which never changes: timestep, image size, pooled prompt and guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

GUIDANCE = 8.5
"""Guidance scale that an LCM's UNet takes: the default of diffusers' pipeline.

The UNet was trained to imitate guidance of a scale from 3 to 15. With an empty prompt, guidance changes
nothing, so any scale is right, and this one lies within the range.
"""


@torch.no_grad()
def embed_time(unet: UNet2DConditionModel, condition: float, size: tuple[int, int], pooled: Tensor | None) -> Tensor:
    """Return the time embedding (1, width) that each residual block of the UNet reads.

    Args:
        unet: the UNet, with all its layers.
        condition: the timestep, or the number that the UNet takes in its place.
        size: height and width of the images in pixels.
        pooled: (1, width), the pooled embedding of the prompt, for SDXL-class checkpoints.
    """
    guidance = None
    if unet.config.time_cond_proj_dim:
        guidance = embed_guidance(GUIDANCE, unet.config.time_cond_proj_dim)
    embedding: Tensor = unet.time_embedding(unet.time_proj(torch.tensor([condition])), guidance)
    if pooled is not None:
        numbers = unet.add_time_proj(image_sizes(size)[0]).reshape(1, -1)
        embedding = embedding + unet.add_embedding(torch.cat([pooled, numbers], dim=-1))
    return embedding


def image_sizes(size: tuple[int, int]) -> Tensor:
    """Return the six numbers that tell SDXL the original size, the crop's corner and the size: (1, 6).

    Images are not cropped, so both sizes, height before width, are those of the network's input.
    """
    return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def embed_guidance(scale: float, width: int) -> Tensor:
    """Return the sinusoidal embedding (1, width) of a guidance scale, as diffusers' pipelines compute it for LCMs."""
    half = width // 2
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) / (half - 1) * torch.arange(half))
    angles = (scale - 1) * 1000 * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]
