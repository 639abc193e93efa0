"""PyTorch as a baseline: the self-attention of Stable Diffusion 1.5 alone, and with diffusers the whole UNet."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.kernel import SHAPES
from gpu_check.context import WARM_UP, Context
from gpu_check.timing import milliseconds

FAMILY = "sd15"
LAYERS = {name: shape for name, shape in SHAPES.items() if name.startswith("SD 1.5") and shape[0] == 1}
REHEARSED = {"8x8": (1, 1, 8, 64, 160)}


def check(context: Context) -> Iterator[dict[str, Any]]:
    """Time attention layer by layer, then the UNet."""
    import torch

    device, dtype = ("cpu", torch.float32) if context.rehearse else ("cuda", torch.float16)
    runs = min(context.runs, 50)
    with torch.inference_mode():
        found = {}
        for name, shape in (REHEARSED if context.rehearse else LAYERS).items():
            found[name] = attention_times(torch, shape, device, dtype, runs)
            yield {"attention": found}
        if importlib.util.find_spec("diffusers") is None:
            yield {"unet": "diffusers is not installed: only the attention was timed"}
            return
        yield {"unet": unet_times(torch, device, dtype, runs, small=context.rehearse)}


def attention_times(torch: Any, shape: tuple[int, ...], device: str, dtype: Any, runs: int) -> dict[str, Any]:  # noqa: ANN401
    """Milliseconds of all layers of one resolution: SDPA, which returns no maps, and eager with the averaged map."""
    batch, layers, heads, places, width = shape
    generator = torch.Generator(device).manual_seed(0)
    size = (batch, heads, places, width)
    tensors = [
        [torch.randn(size, generator=generator, device=device, dtype=dtype) for _ in range(3)] for _ in range(layers)
    ]

    def fused() -> None:
        for query, key, value in tensors:
            torch.nn.functional.scaled_dot_product_attention(query, key, value)

    def eager() -> Any:  # noqa: ANN401 - a tensor
        total = 0
        for query, key, value in tensors:
            probabilities = (query * width**-0.5 @ key.transpose(-1, -2)).float().softmax(-1)
            _ = probabilities.to(dtype) @ value
            total = total + probabilities.sum(1)
        return total / (layers * heads)

    return {
        name: milliseconds(_seconds(torch, device, work, runs)) for name, work in (("sdpa", fused), ("eager", eager))
    }


def unet_times(torch: Any, device: str, dtype: Any, runs: int, *, small: bool) -> dict[str, Any]:  # noqa: ANN401
    """Milliseconds of a UNet with random weights: whole with SDPA and no maps, and as far as the eager maps need."""
    from diffseg.export.graphs import AttentionUNet
    from diffseg.export.time_embedding import embed_time
    from make_checkpoint import make_unet

    side = 16 if small else 64
    with torch.device(device):
        unet = make_unet(FAMILY, small=small)
        prompt = torch.randn(1, 77, unet.config.cross_attention_dim)
        latent = torch.randn(1, unet.config.in_channels, side, side)
        moment = torch.tensor([300])
        unet = unet.to(dtype).eval()
        context = prompt.to(dtype)
        sdpa = _seconds(torch, device, lambda: unet(latent.to(dtype), moment, encoder_hidden_states=context), runs)
        size, whole = (8 * side, 8 * side), unet.float()
        traced = AttentionUNet(whole, prompt, embed_time(whole, 300, size, None), size).to(dtype)
        eager = _seconds(torch, device, lambda: traced(latent), runs)
    peak = {} if device == "cpu" else {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
    return {"sdpa_no_maps": milliseconds(sdpa), "eager_maps": milliseconds(eager), **peak}


def _seconds(torch: Any, device: str, work: Callable[[], Any], runs: int) -> list[float]:  # noqa: ANN401 - untyped upstream
    found = []
    for run in range(WARM_UP + runs):
        begin = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if run >= WARM_UP:
            found.append(time.perf_counter() - begin)
    return found
