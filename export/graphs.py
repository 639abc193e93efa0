"""The two modules that are traced: an image encoder, and a UNet that returns its self-attention."""

from __future__ import annotations

import torch
from diffseg.engines.bundle import specs
from diffseg.export.latents import LatentScale
from diffseg.export.recorders import Accumulator, Recorder, attend_by_head
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class Encoder(nn.Module):
    """Graph 1: uint8 (B, H, W, 3) → float32 latent (B, C, H/8, W/8), the scaled posterior mean; see `LatentScale`."""

    mean: Tensor
    factor: Tensor

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, latents: LatentScale) -> None:
        super().__init__()
        self.scale, self.standardised = latents.scale, bool(latents.mean)
        if self.standardised:
            mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (latents.mean, latents.std))
            self.mean, self.factor = mean, latents.scale / std  # not buffers, so they stay float32 in every precision
        self.encoder = vae.encoder
        self.quant = getattr(vae, "quant_conv", None)
        self.channels = int(vae.config.latent_channels)
        for module in self.encoder.modules():
            if isinstance(module, Attention):
                module.set_processor(SelfAttention())

    def forward(self, image: Tensor) -> Tensor:
        """Normalise, encode and scale."""
        pixels = image.float().permute(0, 3, 1, 2) / 127.5 - 1  # cast first: TensorRT can only cast uint8
        moments = self.encoder(pixels.to(next(self.encoder.parameters()).dtype))
        if self.quant is not None:
            moments = self.quant(moments)
        output: Tensor = moments[:, : self.channels].float()  # the rest is the variance
        return (output - self.mean) * self.factor if self.standardised else output * self.scale


class AttentionUNet(nn.Module):
    """Graph 2: latent (B, C, h, w) → the results of `recorder` for each resolution, finest first.

    The default recorder is an `Accumulator`, which returns the averaged attention: (B, n², n²) float32. Assign a
    `QueriesKeys` to get the other form of the same network.

    The prompt and the timestep never change, so values that depend only on them are computed here, once: the keys
    and values of the cross-attention, and the offset that each residual block adds for the timestep. Tracing drops
    everything that the outputs do not need: all layers after the last self-attention, and the values of that one.

    `unet` is modified in place, because a copy would take 3.4 GB.
    """

    def __init__(
        self, unet: UNet2DConditionModel, prompt: Tensor, embedding: Tensor, size: tuple[int, int], gain: float = 1.0
    ) -> None:
        """Build the network.

        Args:
            unet: the whole UNet.
            prompt: (1, tokens, width), the embedding of the empty prompt.
            embedding: (1, width), the time embedding.
            size: height and width of the images in pixels.
            gain: factor that gives latents the variance that the UNet expects.
        """
        super().__init__()
        self.unet, self.gain = unet, gain
        self.prompt_shape = tuple(prompt.shape)
        latent = [n // specs.LATENT_FACTOR for n in size]
        self._processors = bake_constants(self.unet, prompt, embedding)
        self.grids = self._grids(latent)
        self.recorder = Accumulator()

    @property
    def recorder(self) -> Recorder:
        """The object that computes the self-attention of every layer and keeps the results of the graph."""
        return self._recorder

    @recorder.setter
    def recorder(self, recorder: Recorder) -> None:
        self._recorder = recorder
        for processor in self._processors:
            processor.recorder = recorder

    def _grids(self, latent: list[int]) -> dict[int, tuple[int, int]]:
        """Return the grid of each possible number of queries."""
        levels = len(self.unet.config.down_block_types)
        return {(latent[0] >> i) * (latent[1] >> i): (latent[0] >> i, latent[1] >> i) for i in range(levels)}

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Run the UNet for its attention; its prediction is discarded."""
        batch = latent.shape[0]
        dtype = self.unet.conv_in.weight.dtype
        prompt = torch.zeros(1, *self.prompt_shape[1:], dtype=dtype).expand(
            batch, -1, -1
        )  # only its shape matters: the values are constants of the graph
        self.recorder.clear()
        if self.gain != 1:
            latent = latent * self.gain
        self.unet(latent.to(dtype), torch.zeros((), dtype=torch.long), encoder_hidden_states=prompt, return_dict=False)
        return self.recorder.results()

    def outputs(self) -> tuple[specs.AttentionOutput, ...]:
        """Describe the averaged attention. Call this after a forward pass, which records the layers."""
        return tuple(
            specs.AttentionOutput(specs.attention_name(self.grids[n]), self.grids[n], len(heads), heads[0])
            for n, heads in self.recorder.heads.items()
        )

    def widths(self) -> tuple[int, ...]:
        """Return the width of the heads of each output. Call this after a forward pass, which records the layers."""
        return tuple(self.recorder.widths[n] for n in self.recorder.heads)


@torch.no_grad()
def bake_constants(unet: UNet2DConditionModel, prompt: Tensor, embedding: Tensor) -> list[SelfAttention]:
    """Replace everything that depends only on the prompt and the time embedding by constants, in place.

    Returns:
        The processors of the self-attention layers, in the order of the modules.
    """
    processors: list[SelfAttention] = []
    if unet.config.addition_embed_type is not None:  # it is a part of `embedding`
        unet.register_to_config(addition_embed_type=None)
        del unet.add_embedding
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            if name.endswith("attn1"):
                processors.append(SelfAttention())
                module.set_processor(processors[-1])
            else:
                module.set_processor(CrossAttention(module, prompt))
                del module.to_k, module.to_v
        elif getattr(module, "time_emb_proj", None) is not None:
            activated = embedding if module.skip_time_act else module.nonlinearity(embedding)
            module.time_emb_proj = Constant(module.time_emb_proj(activated))
    return processors


class Constant(nn.Module):
    """A layer whose input never changes."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        """Return the value."""
        return self.value


class SelfAttention:
    """Attention processor with a float32 softmax at any precision. If `recorder` is set, it computes the attention."""

    recorder: Recorder | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from every place to every place; (B, N, C), or (B, C, H, W) inside the VAE."""
        del encoder_hidden_states, attention_mask, temb  # part of diffusers' signature; self-attention has none
        residual, image_shape = hidden_states, hidden_states.shape
        if len(image_shape) == 4:  # noqa: PLR2004
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        value = split_heads(attn.to_v(hidden_states), attn.heads)
        # Scaled before the product: in float16 the scores of SD 2.x would overflow after it.
        query = split_heads(attn.to_q(hidden_states), attn.heads) * attn.scale
        key = split_heads(attn.to_k(hidden_states), attn.heads)
        if self.recorder is not None:
            attended = self.recorder.attend(query, key, value, upcast=attn.upcast_attention)
        else:
            attended = torch.stack([r for r, _ in attend_by_head(query, key, value, upcast=attn.upcast_attention)], 1)
        hidden_states = project_out(attn, attended)
        if len(image_shape) == 4:  # noqa: PLR2004
            hidden_states = hidden_states.transpose(1, 2).reshape(image_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        if attn.rescale_output_factor != 1:
            hidden_states = hidden_states / attn.rescale_output_factor
        return hidden_states


class CrossAttention(nn.Module):
    """Attention processor with the keys (scaled) and values of a prompt that never changes."""

    key: Tensor
    value: Tensor

    def __init__(self, attn: Attention, prompt: Tensor) -> None:
        super().__init__()
        self.register_buffer(
            "key", (split_heads(attn.to_k(prompt), attn.heads) * attn.scale).transpose(-1, -2).contiguous()
        )
        self.register_buffer("value", split_heads(attn.to_v(prompt), attn.heads).contiguous())

    def forward(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from every place, (B, N, C), to the prompt's tokens."""
        del encoder_hidden_states, attention_mask, temb  # part of diffusers' signature; the prompt is a constant
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = self.key
        if attn.upcast_attention:
            query, key = query.float(), key.float()
        probabilities = (query @ key).float().softmax(-1).to(self.value.dtype)
        return project_out(attn, probabilities @ self.value)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads·d) → (B, heads, N, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def project_out(attn: Attention, x: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, C): join the heads and project."""
    joined: Tensor = attn.to_out[0](x.transpose(1, 2).flatten(2))
    return joined
