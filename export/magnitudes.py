"""The largest value that a network computes, because float16 holds no number above 65504.

ONNX Runtime's CPU computes float16 graphs in float32, so comparing outputs there does not show an overflow that a GPU
would have.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.utils._python_dispatch import TorchDispatchMode


class LargestMagnitude(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, records the largest magnitude of all tensors that PyTorch computes.

    Args:
        upcast: operators whose results the graph holds in float32 at any precision. They are ignored.

    Attributes:
        value: the largest magnitude; NaN if a tensor contains one.
        operator: name of the operator that computed it.
    """

    def __init__(self, upcast: Collection[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._upcast = upcast
        self.value = 0.0
        self.operator = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operator and examine its results."""
        results = func(*args, **(kwargs or {}))
        is_view = any(value.alias_info is not None for value in func._schema.returns)  # noqa: SLF001 - not public
        if is_view or func in self._upcast:
            return results
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel():
                largest = float(torch.linalg.vector_norm(result, float("inf")))
                if not (largest <= self.value or math.isnan(self.value)):  # also if it is NaN
                    self.value, self.operator = largest, str(func)
        return results


def upcast_operators(unet: torch.nn.Module) -> tuple[Any, ...]:
    """Return the operators that a UNet computes in float32 at any precision: the logits of Stable Diffusion 2.1."""
    upcast = any(isinstance(module, Attention) and module.upcast_attention for module in unet.modules())
    return (torch.ops.aten.bmm.default,) if upcast else ()
