"""Write a Triton model repository from a bundle. It is created only if it is complete and checked."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from diffseg.engines.bundle.bundle import PLANS, Bundle
from diffseg.engines.bundle.manifest import ATTENTION, ENCODER, MANIFEST, UNET
from diffseg.engines.errors import BundleError, PlanError, ProviderError
from diffseg.engines.files import atomic_folder, expand_user
from diffseg.engines.tensorrt.lookup import build_command, from_bundle, list_plans
from diffseg.engines.tensorrt.plan import RECORD, Engine, Plan
from diffseg.engines.text import printable
from diffseg.placement import Placement
from diffseg.serving.protocol.tensors import MODEL
from diffseg.serving.triton.backend_models import BUNDLE, pack
from diffseg.serving.triton.config import (
    KIND,
    MERGE,
    NETWORK,
    RESIZE,
    VERSION,
    WARMUP,
    RepositoryOptions,
    model_configs,
)
from diffseg.serving.triton.pbtxt import to_text
from diffseg.serving.triton.platforms import Platform

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import Manifest
    from diffseg.serving.triton.pbtxt import Message

MARKER = "diffseg.json"
"""File in a repository that states the bundle it was written from. Triton reads only folders there."""
CONFIG = "config.pbtxt"
MODEL_FILES = {Platform.TENSORRT: "model.plan", Platform.ONNXRUNTIME: "model.onnx", Platform.PYTHON: "model.py"}
"""Names that Triton's backends look for."""


def write_repository(
    bundle: Bundle,
    target: Path,
    options: RepositoryOptions | None = None,
    *,
    plan: str | None = None,
    overwrite: bool = False,
) -> dict[str, Message]:
    """Write a model repository that serves a bundle.

    Weights are hard-linked if the file system allows it, otherwise copied. Those of an embedded model are always
    copied, because a change of the repository must not change the installation. Each file is compared with its hash,
    and none is written twice.

    Args:
        bundle: the bundle to serve.
        target: folder to write; it appears when everything is in it.
        options: platform, maximum batch size, device and other options.
        plan: key of the TensorRT plan; required if the bundle has several of them.
        overwrite: replace an existing repository of diffseg.

    Returns:
        The configurations of its models by name.

    Raises:
        BundleError: `target` is in the way or can't be written, or a file of the bundle is damaged, is a link that
            leaves it, or would take the place of another file.
        PlanError: there is no plan for the platform, or it is damaged.
        ProviderError: the platform can't execute the bundle.
        ValueError: a batch that is larger than the bundle's.
    """
    options = options or RepositoryOptions()
    manifest = bundle.manifest
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
    target = expand_user(target)
    _check_neighbours(target)
    with atomic_folder(target, overwrite=overwrite, kind="model repository of diffseg", marker=MARKER) as folder:
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
    """Check that replacing a repository of diffseg would not delete anything else."""
    ours = {MARKER, MODEL, RESIZE, MERGE, *NETWORK.values()}
    others = sorted({path.name for path in target.glob("*")} - ours) if (target / MARKER).is_file() else []
    if others:
        raise BundleError(
            f"{target} holds {others[0]!r}, too, which this command did not write; choose another folder with -o: "
            "Triton takes several"
        )


def find_tensorrt_plan(bundle: Bundle, key: str | None = None) -> Plan:
    """Find the TensorRT plan to serve. The server's machine is unknown here, so the plan is not checked against a GPU.

    Only plans of the form `attention` are served: Triton's backend has no kernel that averages queries and keys.

    Raises:
        PlanError: there is none, or several and no `key`, or one that Triton can't load.
    """
    plans = [plan for _, plan in list_plans(bundle) if isinstance(plan, Plan) and from_bundle(plan.record.spec, bundle)]
    native = [plan for plan in plans if plan.record.spec.engine == "tensorrt"]
    fitting = {plan.record.spec.key: plan for plan in native if plan.record.spec.form == ATTENTION}
    command = build_command(bundle, "tensorrt", ATTENTION if bundle.manifest.graphs[UNET].forms else None)
    known = "; ".join(f"{name} ({plan.record.spec.purpose})" for name, plan in fitting.items())
    if not fitting:
        others = " (Triton does not read its tensorrt-rtx plans)" if plans else ""
        if native:
            others = f" of the form {ATTENTION} (Triton has no kernel for {native[0].record.spec.form})"
        raise PlanError(
            f"bundle {bundle.manifest.name!r} has no tensorrt plan{others}; build one on the GPU that will serve it: "
            f"{command}"
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
            f"plan {plan.folder.name} was built with --strip-weights, and Triton cannot restore the weights; build one "
            f"without: {command}"
        )
    return plan


def _write_model(folder: Path, model: Message, manifest: Manifest) -> None:
    version_folder = folder / str(VERSION)
    version_folder.mkdir(parents=True)
    head = f"# Written by diffseg {version('diffseg')} from bundle {printable(manifest.name)} ({manifest.precision}).\n"
    _write(folder / CONFIG, head + to_text(model))
    if model.get("backend") == "python":
        shutil.copyfile(Path(__file__).with_name("model.py"), version_folder / MODEL_FILES[Platform.PYTHON])
        if model["parameters"][KIND]["string_value"] != "segment":
            _write(version_folder / MANIFEST, manifest.to_json())
    if "ensemble_scheduling" in model:
        (version_folder / ".keep").touch()  # object stores have no empty folders, and Triton needs this one
    inputs = [data for sample in model.get("model_warmup", []) for data in sample["inputs"].values()]
    for name in {data["input_data_file"] for data in inputs if "input_data_file" in data}:
        whole = Placement(manifest.image_size, manifest.image_size, 0, 0, *manifest.image_size)
        (folder / WARMUP).mkdir()
        (folder / WARMUP / name).write_bytes(pack(whole).tobytes())


def _place_graph(bundle: Bundle, graph: str, folder: Path, plan: Plan | None, *, on_cpu: bool) -> None:
    """Put the file that Triton's own backend executes into a version's folder, under the expected name."""
    if plan is not None:
        _place_plan_file(bundle, plan, graph, folder / MODEL_FILES[Platform.TENSORRT])
        return
    declared = bundle.manifest.graphs[graph]
    file = (declared.cpu_file if on_cpu else None) or declared.file
    _place_file(bundle, file, folder / MODEL_FILES[Platform.ONNXRUNTIME])
    beside = Path(file).parent  # the graph names its external data from there
    for name in declared.external_data:
        if not Path(name).is_relative_to(beside):
            raise BundleError(f"{name} is outside the folder of {file}, whose data it is; export the bundle again")
        _place_file(bundle, name, folder / Path(name).relative_to(beside))


def _place_bundle(bundle: Bundle, folder: Path, provider: str | None) -> None:
    """Put the bundle into a version's folder, with the plans that were built from it."""
    _write(folder / MANIFEST, bundle.manifest.to_json())
    for name in bundle.manifest.files:
        _place_file(bundle, name, folder / name)
    plans = [plan for _, plan in list_plans(bundle) if isinstance(plan, Plan) and from_bundle(plan.record.spec, bundle)]
    for plan in plans:
        target = folder / PLANS / plan.folder.name
        for graph in plan.record.files:
            _place_plan_file(bundle, plan, graph, target / plan.path(graph).name)
        _place(_real_path(bundle, plan, plan.folder / RECORD), target / RECORD, link=False)
    for engine in get_args(Engine):
        if provider == engine and not any(plan.record.spec.engine == engine for plan in plans):
            raise PlanError(
                f"bundle {bundle.manifest.name!r} has no {engine} plan; build one: {build_command(bundle, engine)}"
            )


def _place_file(bundle: Bundle, name: str, target: Path) -> None:
    source = bundle.folder / name
    real = bundle.contained(source)
    if problem := bundle.manifest.files[name].problem(real):
        raise BundleError(f"{source} is not as it was exported: {problem}; copy or export the bundle again")
    _place(real, target, link=not bundle.embedded)


def _place_plan_file(bundle: Bundle, plan: Plan, graph: str, target: Path) -> None:
    source = plan.path(graph)
    real = _real_path(bundle, plan, source)
    if problem := plan.record.files[graph].problem(real):
        raise PlanError(f"{source} is not as it was built: {problem}; delete {plan.folder} and build the plan again")
    _place(real, target, link=not bundle.embedded)


def _real_path(bundle: Bundle, plan: Plan, path: Path) -> Path:
    """Return the real path of a plan's file; those of the cache folder are our own."""
    return bundle.contained(path) if bundle.folder in plan.folder.parents else path.resolve()


def _place(source: Path, target: Path, *, link: bool) -> None:
    """Hard-link a file, which takes no space, or copy it if `link` is false or the file system cannot link it.

    `target` must be new: writing to an existing file would change the file that it is linked to.
    """
    _make_folder(target.parent)
    try:
        if link:
            try:
                os.link(source, target)
            except FileExistsError:
                raise
            except OSError:
                link = False  # another file system
        if not link:
            with source.open("rb") as original, target.open("xb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
    except FileExistsError:
        raise _taken_twice(target) from None


def _write(path: Path, text: str) -> None:
    _make_folder(path.parent)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise _taken_twice(path) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _taken_twice(folder) from None


def _taken_twice(path: Path) -> BundleError:
    return BundleError(f"two files of the bundle would become {path.name} of the repository; do not use this bundle")


def _record(bundle: Bundle, options: RepositoryOptions, plan: Plan | None) -> dict[str, object]:
    return {
        "diffseg": version("diffseg"),
        "bundle": bundle.manifest.name,
        "precision": bundle.manifest.precision,
        "content": {name: bundle.content_hash(name) for name in bundle.manifest.graphs},
        "platform": options.platform.value,
        "plan": plan and plan.record.spec.key,
    }
