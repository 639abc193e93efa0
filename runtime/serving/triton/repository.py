"""A bundle → a Triton model repository: whole and checked, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from diffseg.engines.bundle.bundle import PLANS, Bundle
from diffseg.engines.bundle.manifest import ENCODER, MANIFEST, UNET
from diffseg.engines.errors import BundleError, PlanError, ProviderError
from diffseg.engines.files import atomic_folder
from diffseg.engines.tensorrt.lookup import build_command, from_bundle, list_plans
from diffseg.engines.tensorrt.plan import RECORD, Engine, Plan
from diffseg.image import Placement
from diffseg.serving.protocol.tensors import MODEL
from diffseg.serving.triton.config import (
    KIND,
    MERGE,
    NETWORK,
    RESIZE,
    VERSION,
    WARMUP,
    Options,
    model_configs,
)
from diffseg.serving.triton.models import BUNDLE, pack
from diffseg.serving.triton.pbtxt import to_text
from diffseg.serving.triton.platforms import Platform

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import Manifest
    from diffseg.serving.triton.pbtxt import Message

MARKER = "diffseg.json"
"""File at the top of a repository that says what it was written from. Triton reads folders only."""
CONFIG = "config.pbtxt"
MODEL_FILES = {Platform.TENSORRT: "model.plan", Platform.ONNXRUNTIME: "model.onnx", Platform.PYTHON: "model.py"}
"""Names that Triton's backends look for."""


def write_repository(
    bundle: Bundle, target: Path, options: Options | None = None, *, plan: str | None = None, overwrite: bool = False
) -> dict[str, Message]:
    """Write a model repository that serves a bundle.

    Weights are linked where the file system allows it, else copied; each file is compared with its hash.

    Args:
        bundle: the bundle to serve.
        target: folder to write; it appears when everything is in it.
        options: platform, largest batch and device.
        plan: key of the TensorRT plan, where the bundle has several.
        overwrite: replace an existing repository of ours.

    Returns:
        The configurations of its models by name.

    Raises:
        BundleError: `target` is in the way or can't be written, or a file of the bundle is damaged.
        PlanError: there is no plan for the platform, or it is damaged.
        ProviderError: the platform can't execute the bundle.
        ValueError: a batch that is larger than the bundle's.
    """
    options = options or Options()
    manifest = bundle.manifest
    manifest.need_attention("triton")
    if options.batch is not None and options.batch > manifest.max_batch:
        raise ValueError(f"batch must be 1 to {manifest.max_batch} for bundle {manifest.name!r}, found {options.batch}")
    on_cpu = options.platform is Platform.ONNXRUNTIME and not options.on_gpu
    if on_cpu and manifest.precision == "bf16" and manifest.graphs[UNET].cpu_file is None:
        raise ProviderError(
            f"bundle {manifest.name!r} is bf16, for which ONNX Runtime has no CPU kernels, and has no graphs for CPUs; "
            "choose --device gpu, or export it again"
        )
    chosen = find_tensorrt_plan(bundle, plan) if options.platform is Platform.TENSORRT else None
    models = model_configs(manifest, options)
    _check_neighbours(target)
    with atomic_folder(target, overwrite=overwrite, kind="model repository of ours", marker=MARKER) as folder:
        for name, model in models.items():
            _write_model(folder / name, model, manifest)
        if options.platform is Platform.PYTHON:
            _place_bundle(bundle, folder / MODEL / str(VERSION) / BUNDLE, options.provider)
        else:
            for graph in (ENCODER, UNET):
                _place_graph(bundle, graph, folder / NETWORK[graph] / str(VERSION), chosen, on_cpu=on_cpu)
        _write(folder / MARKER, json.dumps(_record(bundle, options, chosen), indent=1) + "\n")
    return models


def _check_neighbours(target: Path) -> None:
    """Check that replacing a repository of ours would delete nothing else."""
    ours = {MARKER, MODEL, RESIZE, MERGE, *NETWORK.values()}
    others = sorted({path.name for path in target.glob("*")} - ours) if (target / MARKER).is_file() else []
    if others:
        raise BundleError(
            f"{target} holds {others[0]!r}, too, which this command did not write; choose another folder with -o: "
            "Triton takes several"
        )


def find_tensorrt_plan(bundle: Bundle, key: str | None = None) -> Plan:
    """Find the TensorRT plan to serve. The server's machine is unknown here, so the plan is not checked against a GPU.

    Raises:
        PlanError: there is none, or several and no `key`, or one that Triton can't load.
    """
    plans = [plan for _, plan in list_plans(bundle) if isinstance(plan, Plan) and from_bundle(plan.record.spec, bundle)]
    fitting = {plan.record.spec.key: plan for plan in plans if plan.record.spec.engine == "tensorrt"}
    known = "; ".join(f"{name} ({plan.record.spec.purpose})" for name, plan in fitting.items())
    if not fitting:
        others = " (Triton does not read its tensorrt-rtx plans)" if plans else ""
        raise PlanError(
            f"bundle {bundle.manifest.name!r} has no tensorrt plan{others}; build one on the GPU that will serve it: "
            f"{build_command(bundle, 'tensorrt')}"
        )
    if key is not None and key not in fitting:
        raise PlanError(f"bundle {bundle.manifest.name!r} has no tensorrt plan {key!r}; it has {known}")
    if key is None and len(fitting) > 1:
        raise PlanError(
            f"bundle {bundle.manifest.name!r} has {len(fitting)} tensorrt plans; name one with --plan: {known}"
        )
    plan = fitting[key] if key is not None else next(iter(fitting.values()))
    if plan.record.spec.options.strip_weights:
        raise PlanError(
            f"plan {plan.folder.name} was built with --strip-weights, and Triton cannot put them back; build one "
            f"without: {build_command(bundle, 'tensorrt')}"
        )
    return plan


def _write_model(folder: Path, model: Message, manifest: Manifest) -> None:
    version_folder = folder / str(VERSION)
    version_folder.mkdir(parents=True)
    head = f"# Written by diffseg {version('diffseg')} from bundle {manifest.name} ({manifest.precision}).\n"
    _write(folder / CONFIG, head + to_text(model))
    if model.get("backend") == "python":
        shutil.copyfile(Path(__file__).with_name("model.py"), version_folder / MODEL_FILES[Platform.PYTHON])
        if model["parameters"][KIND]["string_value"] != "segment":
            _write(version_folder / MANIFEST, manifest.to_json())
    if "ensemble_scheduling" in model:
        (version_folder / ".keep").touch()  # object stores know no empty folders, and Triton wants this one
    inputs = [data for sample in model.get("model_warmup", []) for data in sample["inputs"].values()]
    for name in {data["input_data_file"] for data in inputs if "input_data_file" in data}:
        whole = Placement(manifest.image_size, manifest.image_size, 0, 0, *manifest.image_size)
        (folder / WARMUP).mkdir()
        (folder / WARMUP / name).write_bytes(pack(whole).tobytes())


def _place_graph(bundle: Bundle, graph: str, folder: Path, plan: Plan | None, *, on_cpu: bool) -> None:
    """Put what Triton's own backend executes into a version's folder, under the name that it looks for."""
    if plan is not None:
        _place_plan_file(plan, graph, folder / MODEL_FILES[Platform.TENSORRT])
        return
    declared = bundle.manifest.graphs[graph]
    file = (declared.cpu_file if on_cpu else None) or declared.file
    _place_file(bundle, file, folder / MODEL_FILES[Platform.ONNXRUNTIME])
    for name in declared.external_data:
        _place_file(bundle, name, folder / Path(name).relative_to(Path(file).parent))  # named from there


def _place_bundle(bundle: Bundle, folder: Path, provider: str | None) -> None:
    """Put the bundle into a version's folder, with the plans that were built from it."""
    for name in bundle.manifest.files:
        _place_file(bundle, name, folder / name)
    _write(folder / MANIFEST, bundle.manifest.to_json())
    plans = [plan for _, plan in list_plans(bundle) if isinstance(plan, Plan) and from_bundle(plan.record.spec, bundle)]
    for plan in plans:
        target = folder / PLANS / plan.folder.name
        for graph in plan.record.files:
            _place_plan_file(plan, graph, target / plan.path(graph).name)
        shutil.copyfile(plan.folder / RECORD, target / RECORD)
    for engine in get_args(Engine):
        if provider == engine and not any(plan.record.spec.engine == engine for plan in plans):
            raise PlanError(
                f"bundle {bundle.manifest.name!r} has no {engine} plan; build one: {build_command(bundle, engine)}"
            )


def _place_file(bundle: Bundle, name: str, target: Path) -> None:
    source = bundle.folder / name
    if problem := bundle.manifest.files[name].problem(source):
        raise BundleError(f"{source} is not as it was exported: {problem}; copy or export the bundle again")
    _link(source, target)


def _place_plan_file(plan: Plan, graph: str, target: Path) -> None:
    source = plan.path(graph)
    if problem := plan.record.files[graph].problem(source):
        raise PlanError(f"{source} is not as it was built: {problem}; delete {plan.folder} and build the plan again")
    _link(source, target)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, which takes no room; another file system gets a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)  # a hub's cache has links, which are not to be linked to
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _record(bundle: Bundle, options: Options, plan: Plan | None) -> dict[str, object]:
    return {
        "diffseg": version("diffseg"),
        "bundle": bundle.manifest.name,
        "precision": bundle.manifest.precision,
        "content": {name: bundle.content_hash(name) for name in bundle.manifest.graphs},
        "platform": options.platform.value,
        "plan": plan and plan.record.spec.key,
    }
