"""Losses of a batch for the training of the embedded model: of its attention, its denoiser and its VAE."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from network import TIMESTEP, Probe
from photographs import Batch, shrink
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

TEMPERATURE = 0.12
QUERIES = 192  # random rows per map and step that are compared with their target
DEPTHS = (1.0, 0.7, 0.5, 0.3)  # weights of the attention loss, from the finest maps to the coarsest
WEIGHTS = {"attention": 1.0, "denoise": 0.5, "rebuild": 1.0, "prior": 0.1, "divergence": 0.0}


def attention_losses(probes: list[list[Probe]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every layer's maps, and of each resolution's mean map, with their targets.

    The second value, for the log, is the KL divergence of the finest mean maps from their targets.
    """
    device, count = batch.images.device, len(batch.images)
    loss, distance = torch.zeros((), device=device), torch.zeros((), device=device)
    image = torch.arange(count, device=device)[:, None, None]
    for weight, layers in zip(DEPTHS, probes, strict=True):
        cells = layers[0].key.shape[2]
        rows = torch.randperm(cells, device=device)[:QUERIES]
        at = shrink(batch.pixels, math.isqrt(cells)).flatten(1)  # (B, n²): superpixel of each cell
        near = batch.affinity[image, at[:, rows, None], at[:, None, :]].float() / 255  # (B, rows, n²)
        target = ((near - 1) / TEMPERATURE).softmax(-1)
        maps = torch.stack([layer.maps(count, rows) for layer in layers])  # (layer, B, rows, n²)
        each = -(target * (maps + 1e-8).log()).sum(-1).mean()
        mean = -(target * (maps.mean(0) + 1e-8).log()).sum(-1).mean()
        loss = loss + weight * (0.5 * each + 0.5 * mean)
        if layers is probes[0]:
            distance = mean.detach() + (target * (target + 1e-8).log()).sum(-1).mean()
    return loss / sum(DEPTHS), distance


def vae_losses(
    vae: AutoencoderKL, images: Tensor, posterior: DiagonalGaussianDistribution, latent: Tensor
) -> dict[str, Tensor]:
    """Return the reconstruction loss of a 16 × 16 window of latents in two images, and the prior on the latents."""
    y, x = torch.randint(latent.shape[-1] - 15, (2,)).tolist()
    window = posterior.sample()[:2, :, y : y + 16, x : x + 16]
    wanted = images[:2, :, 8 * y : 8 * y + 128, 8 * x : 8 * x + 128]
    # The denoiser needs latents of mean 0 and variance 1; the posterior must stay narrow.
    moments = latent.mean((0, 2, 3)) ** 2 + latent.var((0, 2, 3)).log() ** 2
    prior = moments.mean() + 1e-6 * posterior.kl().mean() / latent[0].numel()
    return {"rebuild": functional.l1_loss(vae.decode(window).sample, wanted), "prior": prior}


def step_losses(
    pipeline: StableDiffusionPipeline,
    probes: list[list[Probe]],
    prompt: Tensor,
    batch: Batch,
    *,
    learn_vae: bool,
    noised: int,
) -> dict[str, Tensor]:
    """Return all losses of a batch, from one pass of VAE and UNet. The first `noised` images are also denoised."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(learn_vae):
        posterior = pipeline.vae.encode(images).latent_dist
        latent = posterior.mean * pipeline.vae.config.scaling_factor  # (B, 4, size/8, size/8)
    losses = vae_losses(pipeline.vae, images, posterior, latent) if learn_vae else {}
    # Detached: otherwise the latents would be trained to be easy to denoise.
    clean = latent[:noised].detach()
    noise, at = torch.randn_like(clean), torch.randint(1000, (noised,), device=clean.device)
    inputs = torch.cat([latent, pipeline.scheduler.add_noise(clean, noise, at)])
    times = torch.cat([torch.full((len(latent),), TIMESTEP, device=at.device), at])
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    velocity = pipeline.unet(inputs, times, prompt.expand(len(inputs), -1, -1)).sample
    if noised:
        wanted = pipeline.scheduler.get_velocity(clean, noise, at)
        losses["denoise"] = functional.mse_loss(velocity[len(latent) :], wanted)
    losses["attention"], losses["divergence"] = attention_losses(probes, batch)
    return losses
