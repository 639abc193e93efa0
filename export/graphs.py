"""The two modules that are traced: an image encoder, and a UNet that returns its self-attention."""

from __future__ import annotations

import torch
from diffseg.engines.bundle import specs
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class Encoder(nn.Module):
    """Graph 1: uint8 (B, H, W, 3) → float32 latent (B, C, H/8, W/8), the posterior mean times the scaling factor."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.scale = float(vae.config.scaling_factor)
        self.encoder = vae.encoder
        self.quant = getattr(vae, "quant_conv", None)
        self.channels = int(vae.config.latent_channels)
        for module in self.encoder.modules():
            if isinstance(module, Attention):
                module.set_processor(SelfAttention())

    def forward(self, image: Tensor) -> Tensor:
        """Normalise, encode, scale."""
        pixels = image.float().permute(0, 3, 1, 2) / 127.5 - 1  # TensorRT can do nothing with uint8 but cast it
        moments = self.encoder(pixels.to(next(self.encoder.parameters()).dtype))
        if self.quant is not None:
            moments = self.quant(moments)
        latent: Tensor = moments[:, : self.channels].float() * self.scale  # the rest is the variance
        return latent


class AttentionUNet(nn.Module):
    """Graph 2: latent (B, C, h, w) → (B, n², n²) float32 self-attention a resolution, finest first.

    The prompt and the timestep never change, so all that depends on them alone is computed here, once: the keys
    and values of the cross-attention, and what each residual block adds for the timestep. Tracing drops what the
    outputs don't need: every layer after the last self-attention, and the values of that one.

    Takes `unet` over and alters it: a copy would be 3.4 GB.
    """

    def __init__(self, unet: UNet2DConditionModel, prompt: Tensor, timestep: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.unet = unet
        self.prompt_shape = tuple(prompt.shape)
        latent = [n // specs.LATENT_FACTOR for n in size]
        self.attention = Accumulator()
        with torch.no_grad():
            embedding = self.unet.time_embedding(self.unet.time_proj(torch.tensor([timestep])))
            for name, module in self.unet.named_modules():
                if isinstance(module, Attention):
                    if name.endswith("attn1"):
                        module.set_processor(SelfAttention(self.attention))
                    else:
                        module.set_processor(CrossAttention(module, prompt))
                        del module.to_k, module.to_v
                elif getattr(module, "time_emb_proj", None) is not None:
                    activated = embedding if module.skip_time_act else module.nonlinearity(embedding)
                    module.time_emb_proj = Constant(module.time_emb_proj(activated))
        self.grids = self._grids(latent)

    def _grids(self, latent: list[int]) -> dict[int, tuple[int, int]]:
        """Grid of each possible number of queries."""
        levels = len(self.unet.config.down_block_types)
        return {(latent[0] >> i) * (latent[1] >> i): (latent[0] >> i, latent[1] >> i) for i in range(levels)}

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Run the UNet for its attention; its prediction is dropped."""
        batch = latent.shape[0]
        dtype = self.unet.conv_in.weight.dtype
        prompt = torch.zeros(1, *self.prompt_shape[1:], dtype=dtype).expand(
            batch, -1, -1
        )  # a shape: its values are baked in
        self.attention.clear()
        self.unet(latent.to(dtype), torch.zeros((), dtype=torch.long), encoder_hidden_states=prompt, return_dict=False)
        return self.attention.means()

    def outputs(self) -> tuple[specs.AttentionOutput, ...]:
        """Describe the outputs, after a forward pass has shown them."""
        return tuple(
            specs.AttentionOutput(specs.attention_name(self.grids[n]), self.grids[n], len(heads), heads[0])
            for n, heads in self.attention.heads.items()
        )


class Accumulator:
    """Adds up the attention of a pass, map by map: one (B, N, N) tensor a resolution is all that lives."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: a pass begins."""
        self._totals: dict[int, Tensor] = {}
        self._heads: dict[int, list[int]] = {}

    def add(self, probabilities: Tensor) -> None:
        """Add the (B, N, N) attention of one head."""
        n = probabilities.shape[-1]
        self._totals[n] = self._totals[n] + probabilities if n in self._totals else probabilities

    def end_layer(self, n: int, heads: int) -> None:
        """Note that a layer of N = n places had so many heads."""
        self._heads.setdefault(n, []).append(heads)

    @property
    def heads(self) -> dict[int, list[int]]:
        """Number of heads of each layer, by number of places, the most first."""
        return {n: self._heads[n] for n in sorted(self._heads, reverse=True)}

    def means(self) -> tuple[Tensor, ...]:
        """Mean over the heads, then over the layers, of each resolution, finest first.

        All layers of a resolution have as many heads, so it is the mean of all maps.
        """
        return tuple(self._totals[n] / sum(heads) for n, heads in self.heads.items())


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
    """Attention processor: softmax in float32 whatever the precision; its maps go to an accumulator, if there is one.

    One head after the other: a (heads, N, N) tensor would be 0.5 GB in Stable Diffusion at 512 px, and most of the time
    of the whole layer would go into writing and reading it.
    """

    def __init__(self, accumulator: Accumulator | None = None) -> None:
        self.accumulator = accumulator

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
        if attn.upcast_attention:
            query, key = query.float(), key.float()
        results = []
        for q, k, v in zip(query.unbind(1), key.unbind(1), value.unbind(1), strict=True):  # (B, N, d)
            probabilities = (q @ k.transpose(-1, -2)).float().softmax(-1)  # (B, N, N)
            if self.accumulator is not None:
                self.accumulator.add(probabilities)
            results.append(probabilities.to(v.dtype) @ v)
        if self.accumulator is not None:
            self.accumulator.end_layer(hidden_states.shape[1], attn.heads)
        hidden_states = project_out(attn, torch.stack(results, 1))
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
        del encoder_hidden_states, attention_mask, temb  # part of diffusers' signature; the prompt is baked in
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
