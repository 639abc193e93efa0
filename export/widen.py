"""Derive a graph for CPUs, which computes in float32, from a half-precision graph. The weights are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

WIDE = ir.DataType.FLOAT
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
SMALL = 4096
"""Weights of at most this many elements are stored in float32. Larger ones are shared with the half-precision graph."""


def widen(source: Path, target: Path) -> None:
    """Write an ONNX graph that computes in float32 what `source` computes in float16 or bfloat16.

    The new graph shares the external data of `source`, so it must be in the same folder. Each large weight is cast to
    float32 directly before its first use. Only one weight at a time is then held in float32, provided that the runtime
    does not fold the casts when it loads the graph.

    Args:
        source: an .onnx file with its large weights in external data.
        target: the .onnx file to write, in the same folder.
    """
    model = ir.load(source)
    graph = model.graph
    places = {node: place for place, node in enumerate(graph)}
    for value in graph.initializers.values():
        users = list(value.uses())
        if value.dtype not in NARROW or value.const_value is None or not users:
            continue
        if value.const_value.size <= SMALL:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = WIDE
            continue
        output = ir.Value(name=f"{value.name}_wide", shape=value.shape, type=ir.TensorType(WIDE))
        cast = ir.node("Cast", [value], {"to": WIDE}, outputs=[output])
        for user, index in users:
            user.replace_input_with(index, output)
        # Nodes are executed in the order of the file, so place the cast directly before the first use.
        graph.insert_before(min((user for user, _ in users), key=places.__getitem__), cast)
    for node in graph:
        _widen_node(node)
    outputs = set(graph.outputs)
    for node in list(graph):
        if _copies(node) and not outputs & {*node.outputs}:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node, safe=True)
    ir.save(model, target)


def _copies(node: Any) -> bool:  # noqa: ANN401 - onnx_ir has no types
    """Return whether a node of the float32 graph casts its input to the type that the input already has."""
    if node.op_type == "Cast":
        return bool(node.inputs[0].dtype == node.attributes["to"].as_int() == WIDE)
    # The exporter puts CastLike only into normalisations, between floats; types of intermediate results may be unknown.
    return node.op_type == "CastLike" and bool(node.inputs[0].dtype == WIDE) and node.inputs[1].dtype in (WIDE, None)


def _widen_node(node: Any) -> None:  # noqa: ANN401 - onnx_ir has no types
    for output in node.outputs:
        if output.dtype in NARROW:
            output.dtype = WIDE
    for name, attribute in list(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() in NARROW:
            node.attributes[name] = ir.AttrInt64(name, WIDE)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in NARROW:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype(np.float32)))
