"""Ways to compute the self-attention of the traced UNet. Each form of the graph returns what its recorder keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Computes the self-attention of each layer of a pass, and keeps the tensors that the graph returns."""

    def clear(self) -> None:
        """Forget everything; called when a pass begins."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, upcast: bool) -> Tensor:
        """Attend with scaled queries; all tensors are (B, heads, N, d)."""

    @property
    def heads(self) -> dict[int, list[int]]:
        """Number of heads of each layer, by number of places; the largest number of places first."""

    @property
    def widths(self) -> dict[int, int]:
        """Width of the heads, by number of places."""

    def results(self) -> tuple[Tensor, ...]:
        """Return the outputs of the graph."""


class Accumulator:
    """Adds up the attention of a pass, map by map, so that only one (B, N, N) tensor per resolution is in memory."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: a pass begins."""
        self._totals: dict[int, Tensor] = {}
        self._heads: dict[int, list[int]] = {}
        self._widths: dict[int, int] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, upcast: bool) -> Tensor:
        """Attend with one head after the other, and add up the maps."""
        n = query.shape[2]
        results = []
        for result, probabilities in attend_by_head(query, key, value, upcast=upcast):
            self._totals[n] = self._totals[n] + probabilities if n in self._totals else probabilities
            results.append(result)
        self._heads.setdefault(n, []).append(query.shape[1])
        self._widths[n] = query.shape[3]
        return torch.stack(results, 1)

    @property
    def heads(self) -> dict[int, list[int]]:
        """Number of heads of each layer, by number of places, the most first."""
        return {n: self._heads[n] for n in sorted(self._heads, reverse=True)}

    @property
    def widths(self) -> dict[int, int]:
        """Width of the heads, by number of places."""
        return self._widths

    def results(self) -> tuple[Tensor, ...]:
        """Return the mean over the heads, then over the layers, of each resolution, finest first.

        All layers of a resolution have the same number of heads, so this is the mean of all maps.
        """
        return tuple(self._totals[n] / sum(heads) for n, heads in self.heads.items())


class QueriesKeys:
    """Keeps the scaled queries and the keys of a pass, from which a kernel can compute the averaged attention.

    The probabilities are not outputs, so an engine may fuse the attention. TensorRT and TensorRT-RTX fuse a matrix
    product, a softmax and a matrix product over all heads. ONNX's operator `Attention` expresses the same in one node,
    but needs opset 23, for which ONNX Runtime's CUDA provider has no InstanceNormalization; and TensorRT-RTX rejects
    it in float32, and where a query or key is itself an output.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: a pass begins."""
        self._layers: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, upcast: bool) -> Tensor:
        """Attend with all heads at once, and keep the query and the key.

        `upcast` is ignored: a fused attention sums in float32, and operands in float32 would not be fused.
        """
        del upcast
        self._layers.setdefault(query.shape[2], []).append((query, key))
        return (query @ key.transpose(-1, -2)).float().softmax(-1).to(value.dtype) @ value

    @property
    def heads(self) -> dict[int, list[int]]:
        """Number of heads of each layer, by number of places, the most first."""
        return {n: [query.shape[1] for query, _ in self._layers[n]] for n in sorted(self._layers, reverse=True)}

    @property
    def widths(self) -> dict[int, int]:
        """Width of the heads, by number of places."""
        return {n: layers[0][0].shape[3] for n, layers in self._layers.items()}

    def results(self) -> tuple[Tensor, ...]:
        """Return queries, then keys (B, layers·heads, n², d) of each resolution, finest resolution first."""
        return tuple(torch.cat(part, 1) for n in self.heads for part in zip(*self._layers[n], strict=True))


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, *, upcast: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Attend with one head after another, and yield its result (B, N, d) and float32 probabilities (B, N, N).

    A tensor for all heads, (heads, N, N), would take 0.5 GB in Stable Diffusion at 512 px, and most of the layer's time
    would be spent on writing and reading it.
    """
    if upcast:
        query, key = query.float(), key.float()
    for q, k, v in zip(query.unbind(1), key.unbind(1), value.unbind(1), strict=True):  # (B, N, d)
        probabilities = (q @ k.transpose(-1, -2)).float().softmax(-1)  # (B, N, N)
        yield probabilities.to(v.dtype) @ v, probabilities
