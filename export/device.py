"""The GPU of the machine that exports: where there is one, half precision is also checked on it, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def find_gpu() -> torch.device | None:
    """Return the GPU that PyTorch uses; None if it sees none."""
    return torch.device("cuda") if torch.cuda.is_available() else None


@contextmanager
def moved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block, a module's tensors are on a device, and so are those that it makes."""
    try:
        move(module, device)
        with device:
            yield
    finally:
        move(module, torch.device("cpu"))


def move(module: nn.Module, device: torch.device) -> None:
    """Move all tensors of a module, also those that are neither parameters nor buffers."""
    module.to(device)
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, value.to(device))
