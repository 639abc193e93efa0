"""Description of a bundle's graphs and plans, read from its records. Nothing is loaded or executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.specs import TensorSpec
from diffseg.engines.errors import PlanError
from diffseg.engines.tensorrt.lookup import list_plans
from diffseg.engines.tensorrt.plan import Plan


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """Describe graphs and plans as a dictionary that JSON can represent.

    Returns:
        `graphs`: by name, with `inputs` and `outputs` (name, dtype, axes with min, opt and max), `layers` (kind: number
        format: count), `parameters`, `weight_bytes`, `flops` and `activation_bytes` at batch 1. `plans`: a list, each
        with `folder`, `purpose`, and per graph its `bytes`, `seconds` to build, `layers` as the engine reports them,
        and `activation_bytes` at the largest batch. A plan whose record can't be read has `folder` and `problem` only.
    """
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "folder": str(bundle.folder),
        "precision": manifest.precision,
        "image_size": list(manifest.image_size),
        "max_batch": manifest.max_batch,
        "graphs": {name: _graph(bundle, name) for name in manifest.graphs},
        "plans": [_plan(folder, plan) for folder, plan in list_plans(bundle)],
    }


def _graph(bundle: Bundle, name: str) -> dict[str, Any]:
    graph = bundle.manifest.graphs[name]
    return {
        "file": graph.file,
        "opset": graph.opset,
        "content": bundle.content_hash(name),
        "inputs": [_tensor(tensor) for tensor in graph.tensors.inputs],
        "outputs": [_tensor(tensor) for tensor in graph.tensors.outputs],
        "parameters": graph.parameters,
        "weight_bytes": sum(bundle.manifest.files[file].bytes for file in graph.files),
        "flops": graph.flops,
        "activation_bytes": graph.activation_bytes,
        "layers": graph.layers,
    }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    axes = [{"name": a.name, "min": a.min, "opt": a.opt, "max": a.max} for a in tensor.axes]
    return {"name": tensor.name, "dtype": tensor.dtype, "axes": axes}


def _plan(folder: Path, plan: Plan | PlanError) -> dict[str, Any]:
    if isinstance(plan, PlanError):
        return {"folder": str(folder), "problem": str(plan)}
    record = plan.record
    return {
        "folder": str(folder),
        "problem": None,
        "purpose": record.spec.purpose,
        "engine": record.spec.engine,
        "version": record.spec.version,
        "compute_capabilities": list(record.spec.target.compute_capabilities),
        "gpu": record.spec.target.gpu,
        "graphs": {
            name: {
                "bytes": file.bytes,
                "seconds": record.seconds.get(name),
                "layers": record.layers[name].counts if name in record.layers else {},
                "activation_bytes": record.layers[name].activation_bytes if name in record.layers else 0,
            }
            for name, file in record.files.items()
        },
    }
