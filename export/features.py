"""DiffCut's network: a UNet's encoder up to the layer whose features are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffseg.engines.bundle import specs
from diffseg.engines.errors import CheckpointError
from diffseg.export.graphs import bake_constants
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from diffseg.export.noise import NoiseLevel
    from diffusers import UNet2DConditionModel
    from numpy.typing import NDArray

SCORES_AT_ONCE = 1 << 28
"""Largest number of attention scores that are computed at once: 1 GiB in float32."""


class FeatureUNet(nn.Module):
    """Graph 2 of DiffCut: latent (B, C, h, w) → features (B, n², C) float32 (Couairon et al., 2024, section 3.1).

    The features are the output of `attn1`, after its projection and before the residual, of the last transformer block
    of the last attention in `down_blocks[-2]`, or in `down_blocks[-1]` for SDXL-class UNets, which have one level less.
    Noise is added to the latent first: z = √ᾱ·latent + √(1-ᾱ)·ε, with the same ε for every image. The layers after this
    one are not computed.

    `unet` is modified in place, because a copy would take 3.4 GB.

    Raises:
        CheckpointError: that block has no attention.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        prompt: Tensor,
        embedding: Tensor,
        noise: NDArray[np.float32],
        level: NoiseLevel,
    ) -> None:
        """Build the network.

        Args:
            unet: the whole UNet.
            prompt: (1, tokens, width), the embedding of the empty prompt.
            embedding: (1, width), the time embedding.
            noise: ε, (1, C, h, w).
            level: the noise level of the timestep.
        """
        super().__init__()
        last = -1 if unet.config.addition_embed_type is not None else -2
        blocks = list(unet.down_blocks)[: len(unet.down_blocks) + 1 + last]
        if not blocks or not getattr(blocks[-1], "attentions", None):
            raise CheckpointError(f"the UNet's down_blocks[{last}] has no attention, which DiffCut needs")
        self.signal = level.gain * level.share**0.5
        self.noise = (
            torch.from_numpy(noise) * (1 - level.share) ** 0.5
        )  # not a buffer, so it stays float32 in every precision
        self.prompt_shape = tuple(prompt.shape)
        self._recorder = AllHeads()
        for processor in bake_constants(unet, prompt, embedding):
            processor.recorder = self._recorder
        self.conv_in, self.blocks = unet.conv_in, nn.ModuleList(blocks)
        self.grid = tuple(n >> (len(blocks) - 1) for n in noise.shape[2:])
        self._wanted = blocks[-1].attentions[-1].transformer_blocks[-1].attn1
        self._features: Tensor | None = None
        self._wanted.register_forward_hook(self._keep)

    def forward(self, latent: Tensor) -> Tensor:
        """Run the encoder as far as its last attention."""
        noisy = self.signal * latent + self.noise
        dtype = self.conv_in.weight.dtype
        prompt = torch.zeros(1, *self.prompt_shape[1:], dtype=dtype).expand(
            latent.shape[0], -1, -1
        )  # a shape: its values are baked in
        hidden = self.conv_in(noisy.to(dtype))
        block: Any
        for block in self.blocks[:-1]:
            hidden = self._stage(block, hidden, prompt)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
        self._stage(self.blocks[-1], hidden, prompt)
        assert self._features is not None  # noqa: S101 - the hook ran
        features, self._features = self._features, None
        return features.float()

    def output(self) -> specs.FeatureOutput:
        """Describe the features."""
        return specs.FeatureOutput((self.grid[0], self.grid[1]), self._wanted.to_out[0].out_features)

    def _stage(self, block: Any, hidden: Tensor, prompt: Tensor) -> Tensor:  # noqa: ANN401 - diffusers has a class per kind
        """Run the residual blocks and transformers of one level; the time embedding is baked in."""
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            hidden = resnet(hidden, self._time(hidden))
            if attention is not None:
                hidden = attention(hidden, encoder_hidden_states=prompt, return_dict=False)[0]
        return hidden

    @staticmethod
    def _time(hidden: Tensor) -> Tensor:
        """Return a time embedding that no layer reads: each layer has a constant in its place."""
        return torch.zeros(1, 1, dtype=hidden.dtype)

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._features = output


class AllHeads:
    """Attention of all heads at once, which engines can fuse, in blocks of queries, which limits the memory elsewhere.

    At 1024 px, all scores of one layer of Stable Diffusion 1.x would take 8.6 GB. It records nothing.
    """

    heads: dict[int, list[int]] = {}  # noqa: RUF012 - never filled
    widths: dict[int, int] = {}  # noqa: RUF012

    def clear(self) -> None:
        """Do nothing."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, upcast: bool) -> Tensor:
        """Attend with scaled queries; everything is (B, heads, N, d).

        `upcast` is ignored: a fused attention sums in float32, and operands in float32 would not be fused.
        """
        del upcast
        places = query.shape[2]
        rows = max(1, SCORES_AT_ONCE // (query.shape[1] * places))
        blocks = [
            (part @ key.transpose(-1, -2)).float().softmax(-1).to(value.dtype) @ value
            for part in torch.split(query, min(rows, places), 2)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)

    def results(self) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()
