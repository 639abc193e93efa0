"""Share weights between two graphs of the same network, so that they are stored only once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir as ir

SMALL = 1 << 10
"""Weights of up to this many bytes stay inside each graph."""


def share_weights(model: Any, source: Path) -> tuple[str, ...]:  # noqa: ANN401 - onnx_ir has no types
    """Point a graph's weights at equal weights in the external data of another graph.

    Weights are matched by type, shape and contents, because the exporter's names differ between graphs.

    Args:
        model: the graph whose weights are replaced, in place.
        source: the other graph's .onnx file; `model` must be saved into the same folder.

    Returns:
        Names of the files of external data that the graph now uses.
    """
    stored: dict[tuple[Any, ...], Any] = {}
    for value in ir.load(source).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            stored.setdefault(_identity(value.const_value), value.const_value)
    files: set[str] = set()
    for value in model.graph.initializers.values():
        if value.const_value is None or value.const_value.nbytes <= SMALL:
            continue
        found = stored.get(_identity(value.const_value))
        if found is None:
            continue
        value.const_value = ir.ExternalTensor(
            found.location,
            found.offset,
            found.length,
            found.dtype,
            shape=found.shape,
            name=value.name,
            base_dir=source.parent,
        )
        files.add(str(found.location))
    return tuple(sorted(files))


def _identity(tensor: Any) -> tuple[Any, ...]:  # noqa: ANN401 - onnx_ir has no types
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
