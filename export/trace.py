"""Trace a PyTorch module to an ONNX file with PyTorch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from diffseg.engines.bundle.manifest import CPU_SUFFIX, Graph
from diffseg.export.share import share_weights
from diffseg.export.widen import widen

if TYPE_CHECKING:
    from diffseg.engines.bundle.specs import GraphTensors

OPSET = 18
FLOAT_BYTES = 4
INLINE_BYTES = 64 << 20
"""Float32 weights up to this size stay inside the .onnx file. Protobuf's limit is 2 GiB."""


def trace(
    module: torch.nn.Module,
    tensors: GraphTensors,
    path: Path,
    *,
    external: bool = False,
    weights_of: Path | None = None,
) -> Graph:
    """Export `module` with the declared names and axes.

    Tracing computes only shapes, so its time does not depend on the precision.

    Args:
        module: takes one tensor and returns a tensor or a tuple of tensors.
        tensors: declaration of its input and outputs.
        path: the .onnx file to write; large weights go to a `.data` file beside it.
        external: write weights to the `.data` file even if they are small, so that another graph can share them.
        weights_of: a graph in the same folder; external weights that are equal to this graph's are shared.

    Returns:
        The graph as the manifest records it, except for `parameters_dropped` and `flops_dropped`, which the caller
        derives from the original module.
    """
    batch_axis = tensors.inputs[0].axes[0]
    # The exporter would treat example sizes of 1 as constants.
    example = tuple(torch.zeros(t.shape(min(2, batch_axis.max)), dtype=getattr(torch, t.dtype)) for t in tensors.inputs)
    dynamic = (
        {0: torch.export.Dim(batch_axis.name, min=batch_axis.min, max=batch_axis.max)} if batch_axis.dynamic else {}
    )
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=[t.name for t in tensors.inputs],
            output_names=[t.name for t in tensors.outputs],
            dynamic_shapes=(dynamic,) * len(example),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model
    _strip(model)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    narrow = any(weight.dtype.itemsize < FLOAT_BYTES for weight in weights if weight.dtype.is_floating_point())
    external_data: tuple[str, ...] = ()
    if weights_of is not None:
        external_data = share_weights(model, weights_of)
        ir.save(model, path)
    else:
        # Half-precision weights are shared by two graphs, so they must be external.
        external = external or narrow or sum(weight.nbytes for weight in weights) > INLINE_BYTES
        program.save(str(path), external_data=external)
        external_data = (f"{path.name}.data",) if external else ()
        if narrow:
            widen(path, path.with_suffix(CPU_SUFFIX))
    return Graph(
        file=path.name,
        external_data=external_data,
        tensors=tensors,
        opset=OPSET,
        parameters=sum(weight.size for weight in weights),
        flops=sum(_node_flops(node) for node in model.graph),
        layers=_layers(model.graph),
        activation_bytes=_activation_bytes(model.graph),
        cpu_file=path.with_suffix(CPU_SUFFIX).name if narrow and weights_of is None else None,
    )


def _strip(model: Any) -> None:  # noqa: ANN401 - onnx_ir has no types
    """Remove the exporter's metadata, which contains stack traces with paths of this machine at every node."""
    model.metadata_props.clear()
    for item in (model.graph, *model.graph, *model.functions.values()):
        item.metadata_props.clear()
        item.doc_string = None
    for value in (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(o for node in model.graph for o in node.outputs),
    ):
        value.metadata_props.clear()
        value.doc_string = None


def _node_flops(node: Any) -> int:  # noqa: ANN401 - onnx_ir has no types
    """Return the FLOPs of a node at batch 1. A multiply-add counts as two; nodes that are not products count as 0."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0
    output, weight = _shape(node.outputs[0]), _shape(node.inputs[1])
    if node.op_type == "Conv":
        return 2 * math.prod(output) * math.prod(weight[1:])
    inner = _shape(node.inputs[0])[-1]
    return 2 * math.prod(output) * inner


def _layers(graph: Any) -> dict[str, dict[str, int]]:  # noqa: ANN401 - onnx_ir has no types
    """Count the nodes by operator and number format. The format of a node is that of its first output."""
    counts: dict[str, Counter[str]] = {}
    for node in graph:
        if node.op_type != "Constant":
            dtype = _likely(node.outputs[0], "dtype")
            counts.setdefault(node.op_type, Counter())[dtype.numpy().name if dtype else "unknown"] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _activation_bytes(graph: Any) -> int:  # noqa: ANN401 - onnx_ir has no types
    """Return the peak size of the intermediate results at batch 1, if no two of them share memory."""
    nodes = list(graph)
    ends = {value: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    ends |= dict.fromkeys(graph.outputs, len(nodes))
    alive: dict[Any, int] = {}
    most = 0
    for i, node in enumerate(nodes):
        if node.op_type != "Constant":
            alive |= {output: _nbytes(output) for output in node.outputs if output in ends}
        most = max(most, sum(alive.values()))
        for value in node.inputs:
            if ends.get(value) == i:
                alive.pop(value, None)
    return most


def _nbytes(value: Any) -> int:  # noqa: ANN401 - onnx_ir has no types
    shape, dtype = _likely(value, "shape"), _likely(value, "dtype")
    if shape is None or dtype is None:
        return 0
    return int(math.prod(size if isinstance(size, int) else 1 for size in shape) * dtype.itemsize)


def _likely(value: Any, what: str) -> Any:  # noqa: ANN401 - onnx_ir has no types
    """Return the type or shape of a value. If the exporter did not infer it, return that of the value it derives from.

    In bfloat16, the exporter infers nothing for normalisations and for the nodes between them and the next layer. None
    of these changes the type or the number of elements.
    """
    while getattr(value, what) is None and value.producer() is not None and value.producer().inputs:
        value = value.producer().inputs[0]
    return getattr(value, what)


def _shape(value: Any) -> list[int]:  # noqa: ANN401 - onnx_ir has no types
    return [size if isinstance(size, int) else 1 for size in value.shape]


@contextlib.contextmanager
def _quiet() -> Any:  # noqa: ANN401 - a context manager
    """Suppress the exporter's progress lines, warnings and logs, except for errors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
