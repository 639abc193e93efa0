"""The inputs and outputs of a bundle's graphs, declared once.

ONNX axes, ONNX Runtime's buffers, engine profiles, Triton's shapes and the manifest are derived from these
declarations. No other module writes the name or the shape of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from diffseg.engines.records import Count, Size
from diffseg.engines.text import quoted

DType = Literal["uint8", "float16", "bfloat16", "float32"]
Profile = dict[str, dict[str, tuple[Size, ...]]]
"""Smallest, optimal and largest shape of each input: {tensor: {"min" | "opt" | "max": shape}}."""
GridSide = Annotated[int, msgspec.Meta(ge=1, le=1024)]
"""Rows or columns of an attention map: one per latent cell at most."""
MAX_ELEMENTS = 1 << 48
"""Limit for the elements of a tensor, so that sizes in bytes fit 64 bits."""
LATENT_FACTOR = 8
"""Image pixels per latent cell, along each axis."""


class Axis(msgspec.Struct, frozen=True):
    """One axis of a tensor. Fixed if `min == max`; otherwise an engine profile spans `min` to `max`."""

    name: str
    min: Size
    opt: Size
    max: Size

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(
                f"axis {quoted(self.name)} needs 1 ≤ min ≤ opt ≤ max, found {self.min}, {self.opt}, {self.max}"
            )

    @property
    def dynamic(self) -> bool:
        """Whether the size may differ between calls."""
        return self.min != self.max

    @classmethod
    def fixed(cls, name: str, size: int) -> Axis:
        """Return an axis of constant size."""
        return cls(name, size, size, size)


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output of a graph."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if math.prod(axis.max for axis in self.axes) > MAX_ELEMENTS:
            raise ValueError(f"tensor {quoted(self.name)} has more than {MAX_ELEMENTS} elements")

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the concrete shape at a batch size."""
        return tuple(batch if axis.dynamic or axis.name == "batch" else axis.opt for axis in self.axes)

    def onnx_shape(self) -> list[int]:
        """Return the shape as an ONNX graph declares it, with -1 for each dynamic axis."""
        return [-1 if axis.dynamic else axis.opt for axis in self.axes]

    def triton_shape(self, *, batched: bool) -> list[int]:
        """Return the shape as a Triton configuration declares it; see `triton_shape`."""
        return triton_shape(self.onnx_shape(), batched=batched)

    def nbytes(self, batch: int) -> int:
        """Return the bytes of the tensor at a batch size."""
        itemsize = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize  # NumPy has no bfloat16
        return int(np.prod(self.shape(batch), dtype=np.int64)) * itemsize


class AttentionOutput(msgspec.Struct, frozen=True):
    """One attention output of the UNet: its grid, and how many layers and heads were averaged."""

    name: str
    grid: tuple[GridSide, GridSide]  # rows, columns
    layers: Size
    heads: Size

    @property
    def queries(self) -> int:
        """Number of cells of the grid."""
        return self.grid[0] * self.grid[1]


class FeatureOutput(msgspec.Struct, frozen=True):
    """The output of DiffCut's UNet: features of one layer, their grid and their number."""

    grid: tuple[GridSide, GridSide]  # rows, columns
    channels: Size
    name: str = "features"
    timestep: Count | None = None  # in a bundle for both kinds of methods; None: that of the manifest

    @property
    def places(self) -> int:
        """Number of places of the grid."""
        return self.grid[0] * self.grid[1]


class GraphTensors(msgspec.Struct, frozen=True):
    """Inputs and outputs of one graph, in the graph's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def profile(self) -> Profile:
        """Return the optimization profile: the smallest, optimal and largest shape of each input."""
        return {
            tensor.name: {bound: tuple(getattr(axis, bound) for axis in tensor.axes) for bound in ("min", "opt", "max")}
            for tensor in self.inputs
        }


def triton_shape(shape: Sequence[int], *, batched: bool) -> list[int]:
    """Return a shape (B, …) as a Triton configuration declares it, with -1 for each dynamic axis.

    Args:
        shape: the shape with its batch axis first.
        batched: whether Triton adds the batch axis itself; otherwise the shape is that of a single image, (1, …).
    """
    return [*([] if batched else [1]), *shape[1:]]


def attention_name(grid: tuple[int, int], kind: str = "attention") -> str:
    """Return the name of an output by its grid: `attention_64`, or `attention_64x96` if the grid is not square.

    The queries and keys of a grid are `queries_64` and `keys_64`.
    """
    return f"{kind}_{grid[0]}" if grid[0] == grid[1] else f"{kind}_{grid[0]}x{grid[1]}"


def batch_axis(max_batch: int) -> Axis:
    """Return the batch axis: 1 to `max_batch`, optimised for batch 1, where latency matters most."""
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
    """Declare graph 2: latent → one (B, n², n²) float32 attention per resolution, finest first."""
    batch = batch_axis(max_batch)
    outputs = tuple(
        TensorSpec(a.name, "float32", (batch, Axis.fixed("queries", a.queries), Axis.fixed("keys", a.queries)))
        for a in attention
    )
    return GraphTensors((latent_tensor(size, channels, max_batch),), outputs)


def queries_keys_tensors(
    size: tuple[int, int],
    channels: int,
    attention: tuple[AttentionOutput, ...],
    widths: tuple[int, ...],
    dtype: DType,
    max_batch: int,
) -> GraphTensors:
    """Declare graph 2 in its form `queries_keys`: latent → queries and keys of each resolution, finest first.

    Both are (B, layers·heads, n², d). The queries are scaled, so that softmax(queries · keysᵀ), averaged over the
    heads, is the attention output of that resolution.

    Args:
        size: height and width of the image in pixels.
        channels: number of channels of the latent.
        attention: the outputs of the form that computes the averaged attention itself.
        widths: width d of the heads of each output.
        dtype: number format of the network.
        max_batch: largest batch.
    """
    outputs = tuple(
        TensorSpec(
            attention_name(a.grid, kind),
            dtype,
            (
                batch_axis(max_batch),
                Axis.fixed("heads", a.layers * a.heads),
                Axis.fixed(kind, a.queries),
                Axis.fixed("width", width),
            ),
        )
        for a, width in zip(attention, widths, strict=True)
        for kind in ("queries", "keys")
    )
    return GraphTensors((latent_tensor(size, channels, max_batch),), outputs)


def latent_tensor(size: tuple[int, int], channels: int, max_batch: int) -> TensorSpec:
    """Declare the latent: the output of graph 1 and input of graph 2. It is float32 at any precision of the graphs."""
    rows, columns = (Axis.fixed(name, n // LATENT_FACTOR) for name, n in zip(("rows", "columns"), size, strict=True))
    return TensorSpec("latent", "float32", (batch_axis(max_batch), Axis.fixed("channels", channels), rows, columns))


def features_tensors(size: tuple[int, int], channels: int, features: FeatureOutput, max_batch: int) -> GraphTensors:
    """Declare graph 2 of DiffCut: latent → features (B, n², C) float32 of one layer of the UNet's encoder."""
    axes = batch_axis(max_batch), Axis.fixed("places", features.places), Axis.fixed("channels", features.channels)
    output = TensorSpec(features.name, "float32", axes)
    return GraphTensors((latent_tensor(size, channels, max_batch),), (output,))
