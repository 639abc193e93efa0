"""The tensors that cross a graph's border, declared once.

ONNX axes, ONNX Runtime's buffers, engine profiles and the manifest are all derived from these declarations;
no name or shape of a tensor is written anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

DType = Literal["uint8", "float16", "float32"]
LATENT_FACTOR = 8
"""Pixels a latent is wide."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor: fixed when `min == max`, else what an engine profile may span."""

    name: str
    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"axis {self.name!r} needs 1 ≤ min ≤ opt ≤ max, found {self.min}, {self.opt}, {self.max}")

    @property
    def dynamic(self) -> bool:
        """Whether the axis may change from call to call."""
        return self.min != self.max

    @classmethod
    def fixed(cls, name: str, size: int) -> Axis:
        """Return an axis that never changes."""
        return cls(name, size, size, size)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the concrete shape at a batch size."""
        return tuple(batch if axis.dynamic or axis.name == "batch" else axis.opt for axis in self.axes)

    def nbytes(self, batch: int) -> int:
        """Return the bytes of the tensor at a batch size."""
        return int(np.prod(self.shape(batch), dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class AttentionOutput:
    """One attention output of the UNet: which grid, and what was averaged into it."""

    name: str
    grid: tuple[int, int]  # rows, columns
    layers: int
    heads: int

    @property
    def queries(self) -> int:
        """Number of places on the grid."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Inputs and outputs of one graph, in the graph's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def attention_name(grid: tuple[int, int]) -> str:
    """Return the output name of a grid: `attention_64`, or `attention_64x96` when it is not square."""
    return f"attention_{grid[0]}" if grid[0] == grid[1] else f"attention_{grid[0]}x{grid[1]}"


def batch_axis(max_batch: int) -> Axis:
    """Return the batch axis: 1 to `max_batch`, tuned for one image, which is what latency is asked of."""
    return Axis("batch", 1, 1, max_batch)


def encoder_tensors(size: tuple[int, int], channels: int, max_batch: int) -> GraphTensors:
    """Declare graph 1: uint8 image (B, H, W, 3) → latent (B, C, H/8, W/8) float32."""
    batch = batch_axis(max_batch)
    image = TensorSpec(
        "image", "uint8", (batch, Axis.fixed("height", size[0]), Axis.fixed("width", size[1]), Axis.fixed("rgb", 3))
    )
    return GraphTensors((image,), (latent_tensor(size, channels, max_batch),))


def unet_tensors(
    size: tuple[int, int], channels: int, attention: tuple[AttentionOutput, ...], max_batch: int
) -> GraphTensors:
    """Declare graph 2: latent → one (B, n², n²) float32 attention a resolution, finest first."""
    batch = batch_axis(max_batch)
    outputs = tuple(
        TensorSpec(a.name, "float32", (batch, Axis.fixed("queries", a.queries), Axis.fixed("keys", a.queries)))
        for a in attention
    )
    return GraphTensors((latent_tensor(size, channels, max_batch),), outputs)


def latent_tensor(size: tuple[int, int], channels: int, max_batch: int) -> TensorSpec:
    """Declare the latent, which leaves graph 1 and enters graph 2 in float32 whatever the precision inside."""
    rows, columns = (Axis.fixed(name, n // LATENT_FACTOR) for name, n in zip(("rows", "columns"), size, strict=True))
    return TensorSpec("latent", "float32", (batch_axis(max_batch), Axis.fixed("channels", channels), rows, columns))
