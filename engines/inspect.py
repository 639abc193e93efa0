"""Description of a bundle's graphs and plans, read from its records. Nothing is loaded or executed.

`msgspec.to_builtins` converts a description to values that JSON can represent.
"""

from __future__ import annotations

from pathlib import Path

from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import Form, Precision
from diffseg.engines.bundle.specs import TensorSpec
from diffseg.engines.errors import PlanError
from diffseg.engines.tensorrt.lookup import list_plans
from diffseg.engines.tensorrt.plan import Engine, Plan
from diffseg.engines.tensorrt.precision import Counts
from msgspec import Struct, field


class GraphFacts(Struct, frozen=True):
    """A graph of a bundle."""

    file: str
    opset: int
    content: str  # SHA-256 of the ONNX file and its external data
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    weight_bytes: int
    flops: int  # at batch 1
    activation_bytes: int  # at batch 1; 0: not recorded
    layers: Counts  # by operator and number format
    forms: dict[str, GraphFacts] = field(default_factory=dict)  # the same network with other outputs, by name


class EngineFacts(Struct, frozen=True):
    """The engine that was built from one graph."""

    bytes: int
    seconds: float | None  # building time; None: not recorded
    layers: Counts  # as the engine reports them
    activation_bytes: int  # at the largest batch; 0: not reported


class PlanFacts(Struct, frozen=True):
    """A plan of a bundle."""

    folder: str
    problem: None
    purpose: str  # target of the plan as text, for example its GPU and batch sizes
    engine: Engine
    version: str  # of the builder
    form: Form  # of the UNet
    compute_capabilities: tuple[str, ...]  # empty: those of `plan.PORTABLE`
    gpu: str | None  # None: any GPU of these compute capabilities
    graphs: dict[str, EngineFacts]


class UnreadablePlan(Struct, frozen=True):
    """A plan folder whose record can't be read."""

    folder: str
    problem: str


class BundleFacts(Struct, frozen=True):
    """A bundle with its graphs and plans."""

    name: str
    folder: str
    precision: Precision
    image_size: tuple[int, int]  # height, width in pixels
    max_batch: int
    graphs: dict[str, GraphFacts]
    plans: list[PlanFacts | UnreadablePlan]


def inspect_bundle(bundle: Bundle) -> BundleFacts:
    """Describe a bundle, its graphs, and the plans in its folder and in the cache."""
    manifest = bundle.manifest
    return BundleFacts(
        name=manifest.name,
        folder=str(bundle.folder),
        precision=manifest.precision,
        image_size=manifest.image_size,
        max_batch=manifest.max_batch,
        graphs={name: _graph(bundle, name) for name in manifest.graphs},
        plans=[_plan(folder, plan) for folder, plan in list_plans(bundle)],
    )


def _graph(bundle: Bundle, name: str, form: str | None = None) -> GraphFacts:
    graph = bundle.graph(name, form)
    return GraphFacts(
        file=graph.file,
        opset=graph.opset,
        content=bundle.content_hash(name, form),
        inputs=graph.tensors.inputs,
        outputs=graph.tensors.outputs,
        parameters=graph.parameters,
        weight_bytes=sum(bundle.manifest.files[file].bytes for file in graph.files),
        flops=graph.flops,
        activation_bytes=graph.activation_bytes,
        layers=graph.layers,
        forms={each: _graph(bundle, name, each) for each in graph.forms},
    )


def _plan(folder: Path, plan: Plan | PlanError) -> PlanFacts | UnreadablePlan:
    if isinstance(plan, PlanError):
        return UnreadablePlan(str(folder), str(plan))
    record = plan.record
    return PlanFacts(
        folder=str(folder),
        problem=None,
        purpose=record.spec.purpose,
        engine=record.spec.engine,
        version=record.spec.version,
        form=record.spec.form,
        compute_capabilities=record.spec.target.compute_capabilities,
        gpu=record.spec.target.gpu,
        graphs={
            name: EngineFacts(
                bytes=file.bytes,
                seconds=record.seconds.get(name),
                layers=record.layers[name].counts if name in record.layers else {},
                activation_bytes=record.layers[name].activation_bytes if name in record.layers else 0,
            )
            for name, file in record.files.items()
        },
    )
