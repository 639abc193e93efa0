"""The noise level that a UNet expects at a timestep, and the noise that DiffCut adds to every latent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from diffseg.engines.errors import CheckpointError
from diffseg.export.supported import read_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

Noise = Literal["seeded", "official"]
SEED = 42
"""Seed of the official implementation."""
STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The schedule of a checkpoint without a scheduler/."""


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """A timestep, as a UNet takes it.

    Attributes:
        share: ᾱ, the share of the signal in the variance of the UNet's input.
        condition: the number from which the time embedding is computed.
        gain: factor that gives latents the variance 1 for which `share` holds.
    """

    share: float
    condition: float
    gain: float = 1.0


def noise_level(folder: Path, timestep: int) -> NoiseLevel:
    """Return the noise level of a timestep.

    The UNet of Playground v2.5 was trained with the preconditioning of EDM (Karras et al., 2022, table 1): its latents
    have the standard deviation σ_data, it takes c_in·z with c_in = 1/√(σ² + σ_data²), and it is conditioned on ln(σ)/4
    in place of the timestep. This function uses the σ with the same share of the signal as Stable Diffusion's timestep:
    ᾱ = σ_data²/(σ² + σ_data²).

    Args:
        folder: the checkpoint, whose scheduler/scheduler_config.json is read if there is one.
        timestep: 0 to 999.

    Raises:
        CheckpointError: the file cannot be read, or its schedule is unknown.
    """
    share = signal_share(folder, timestep)
    config = read_config(folder / "scheduler", "scheduler_config.json", optional=True)
    if not str(config.get("_class_name", "")).startswith("EDM"):
        return NoiseLevel(share, timestep)
    deviation = float(config.get("sigma_data", 0.5))
    sigma = deviation * math.sqrt((1 - share) / share)
    return NoiseLevel(share, math.log(sigma) / 4, 1 / deviation)


def signal_share(folder: Path, timestep: int) -> float:
    """Return ᾱ of a timestep, the share of the signal in the variance, by the checkpoint's schedule.

    Args:
        folder: the checkpoint, whose scheduler/scheduler_config.json is read if there is one.
        timestep: 0 to 999.

    Raises:
        CheckpointError: the file cannot be read, or its schedule is unknown.
    """
    found = read_config(folder / "scheduler", "scheduler_config.json", optional=True)
    schedule = STABLE_DIFFUSION | {k: v for k, v in found.items() if k in STABLE_DIFFUSION}
    kind, steps = schedule["beta_schedule"], int(schedule["num_train_timesteps"])
    first, last = float(schedule["beta_start"]), float(schedule["beta_end"])
    if kind == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    elif kind == "linear":
        betas = np.linspace(first, last, steps)
    else:
        raise CheckpointError(f"the scheduler of {folder} has the schedule {kind!r}, expected scaled_linear or linear")
    return float(np.cumprod(1 - betas)[timestep])


def make_noise(shape: tuple[int, ...], kind: Noise = "seeded") -> NDArray[np.float32]:
    """Return standard normal noise for a fixed seed, as NumPy or as PyTorch on a GPU generates it."""
    if kind == "official":
        return cuda_noise(shape)
    return np.random.default_rng(SEED).standard_normal(shape, np.float32)


def cuda_noise(shape: tuple[int, ...], seed: int = SEED) -> NDArray[np.float32]:
    """Return the first result of `torch.randn(shape, device="cuda")` after `torch.manual_seed(seed)`.

    This is Philox 4×32 with ten rounds (Salmon et al., 2011), one counter per element, and the Box-Muller transform.
    Each thread of the GPU makes one element, so the shape must have no more elements than the GPU has threads.
    """
    count = int(np.prod(shape))
    counter = np.zeros((4, count), np.uint64)
    counter[2] = np.arange(count)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        low, high = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        counter = np.stack(
            [
                (high >> half) ^ counter[1] ^ np.uint64(key[0]),
                high & mask,
                (low >> half) ^ counter[3] ^ np.uint64(key[1]),
                low & mask,
            ]
        )
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    scale = 2.0**-32
    radius = np.sqrt(-2 * np.log(counter[0] * scale + scale / 2))
    angle = 2 * np.pi * (counter[1] * scale + scale / 2)
    values: NDArray[np.float32] = (radius * np.sin(angle)).astype(np.float32)
    return values.reshape(shape)
