"""How an autoencoder's output becomes the latent that a UNet takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffseg.export.supported import read_config

if TYPE_CHECKING:
    from diffseg.export.locate import CheckpointFiles

SDXL_SCALE = 0.13025
"""Scaling factor of SDXL's autoencoder, by which TAESDXL's latents are scaled already."""


@dataclass(frozen=True, slots=True)
class LatentScale:
    """latent = (output - mean) · scale / std, per channel, as in diffusers' image-to-image pipelines.

    Attributes:
        scale: the scaling factor.
        mean: mean of each channel, or empty for 0.
        std: standard deviation of each channel, or empty for 1.
    """

    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def latent_scale(files: CheckpointFiles, vae: Any) -> LatentScale:  # noqa: ANN401 - a configuration of diffusers
    """Return the scale of a checkpoint's latents.

    Playground v2.5 uses SDXL's autoencoder, with a mean and a standard deviation per channel. Another autoencoder of
    SDXL, such as TAESDXL, does not state these, so they come from the checkpoint's own `vae/config.json`.

    Args:
        files: the checkpoint.
        vae: configuration of the autoencoder that is exported.
    """
    own = read_config(files.folder / "vae", "config.json", optional=True)
    tiny = files.vae_kind == "AutoencoderTiny"
    scale = float(vae.scaling_factor if tiny else own.get("scaling_factor", vae.scaling_factor))
    mean, std = own.get("latents_mean"), own.get("latents_std")
    if mean is None or std is None:
        return LatentScale(scale)
    # AutoencoderTiny returns latents that are scaled by SDXL's factor; the mean is that of unscaled ones.
    inner = SDXL_SCALE if tiny else 1.0
    scale = float(own.get("scaling_factor", 1.0))
    return LatentScale(scale, tuple(m * inner for m in mean), tuple(s * inner for s in std))
