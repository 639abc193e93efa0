"""Build a plan folder from a bundle's graphs. The folder is created only if the build is complete and checked."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import File, Form
from diffseg.engines.errors import MissingPackageError, PlanError
from diffseg.engines.files import atomic_folder, write_synced
from diffseg.engines.machine import Gpus, find_gpus
from diffseg.engines.providers.forms import form_to_build
from diffseg.engines.tensorrt.build import (
    BUILD_EXTRAS,
    Report,
    build_graph,
    import_engine,
    known_compute_capabilities,
    read_layers,
)
from diffseg.engines.tensorrt.lookup import Machine, plans_folder
from diffseg.engines.tensorrt.plan import PORTABLE, RECORD, BuildOptions, Engine, Plan, PlanRecord, PlanSpec, Target
from diffseg.engines.tensorrt.precision import EngineLayers

logger = logging.getLogger(__name__)


def build_plan(
    bundle: Bundle,
    engine: Engine,
    *,
    compute_capabilities: Iterable[str] = (),
    options: BuildOptions | None = None,
    report: Report | None = None,
    form: Form | None = None,
    force: bool = False,
    gpus: Gpus | None = None,
) -> Plan:
    """Build the plan of a bundle for one target, or return the existing intact plan.

    The folder gets its name when it is complete. If two processes build the same plan, one waits for the other.

    Args:
        bundle: the bundle whose graphs are built.
        engine: `tensorrt` or `tensorrt-rtx`.
        compute_capabilities: compute capabilities that a TensorRT-RTX plan is for, such as "8.9". If empty, the plan
            is for the GPU of this machine, or without one for all from 8.0 on.
        options: options of the builder.
        report: called with the builder's progress.
        form: form of the UNet; None: `queries_keys` if the bundle and the GPU's kernels support it, else `attention`.
        force: build again even if the plan exists.
        gpus: the GPUs of this machine; None queries the driver.

    Raises:
        MissingPackageError: the engine is not installed.
        PlanError: the plan cannot be built on this machine, or the engine does not have the bundle's precision.
        BundleError: the bundle lacks the form.
    """
    options, gpus, module = options or BuildOptions(), gpus or find_gpus(), import_engine(engine, BUILD_EXTRAS[engine])
    target = _target(module, engine, tuple(compute_capabilities), gpus)
    _check_options(engine, options, gpus)
    if form is None:
        form = form_to_build(bundle, target.compute_capabilities or PORTABLE)
    spec = PlanSpec(
        engine=engine,
        version=module.__version__,
        target=target,
        options=options,
        precision=bundle.manifest.precision,
        content=bundle.contents(form),
        profiles={name: graph.tensors.profile() for name, graph in bundle.graphs(form).items()},
        form=form,
    )
    root = plans_folder(bundle)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return _locked_build(module, bundle, spec, root, report or _silent, force=force)
    except OSError as error:
        raise PlanError(
            f"cannot write a plan to {root}: {error.strerror}; make room there, or set DIFFSEG_CACHE"
        ) from None


def _locked_build(
    module: Any,  # noqa: ANN401 - untyped upstream
    bundle: Bundle,
    spec: PlanSpec,
    root: Path,
    report: Report,
    *,
    force: bool,
) -> Plan:
    folder = root / spec.key
    with _lock(root / f".{spec.key}.lock"):
        if folder.is_dir() and not force:
            plan = _sound(folder)
            if plan is not None:
                return plan
        for left in root.glob(f".{spec.key}.*.part"):  # left by a process that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        hint = "make room there, or set DIFFSEG_CACHE"
        with atomic_folder(folder, kind="plan", marker=None, overwrite=True, error=PlanError, hint=hint) as temporary:
            record = _build(module, bundle, spec, temporary, report)
            write_synced(temporary / RECORD, record.to_json().encode())
    return Plan(folder, record)


def _silent(graph: str, phase: str, step: int, steps: int) -> None:
    """Report nothing."""


def _lock(path: Path) -> Any:  # noqa: ANN401 - imported here
    try:
        from filelock import FileLock
    except ImportError:
        raise MissingPackageError("filelock is not installed: pip install filelock") from None
    return FileLock(path)


def _sound(folder: Path) -> Plan | None:
    """Return the existing plan if it is intact, else None."""
    try:
        plan = Plan.open(folder)
    except PlanError:
        return None
    return None if any(problem for _, problem in plan.verify()) else replace(plan, reused=True)


def _target(module: Any, engine: Engine, wanted: tuple[str, ...], gpus: Gpus) -> Target:  # noqa: ANN401
    machine, gpu = Machine(module.__version__, gpus.first), gpus.first
    if engine == "tensorrt":
        if gpu is None:
            raise PlanError(
                f"tensorrt builds on the GPU that will run the plan, and this machine has none ({gpus.reason}); "
                "--engine tensorrt-rtx builds ahead of time without one"
            )
        if wanted and set(wanted) != {gpu.compute_capability}:
            raise PlanError(
                f"tensorrt builds for this machine's GPU ({gpu.name}, {gpu.compute_capability}), not for "
                f"{', '.join(wanted)}; build there, or see --hardware-compatibility"
            )
        return Target((gpu.compute_capability,), gpu.name, gpu.driver, machine.system, machine.machine)
    known = known_compute_capabilities(module)
    for capability in wanted:
        if capability not in known:
            raise PlanError(
                f"tensorrt-rtx {module.__version__} builds for compute capability {', '.join(known)}; "
                f"found {capability!r}"
            )
    if not wanted and gpu is not None and gpu.compute_capability in known:
        wanted = (gpu.compute_capability,)
    ordered = tuple(capability for capability in known if capability in wanted)
    return Target(ordered, None, None, machine.system, machine.machine)


def _check_options(engine: Engine, options: BuildOptions, gpus: Gpus) -> None:
    if engine != "tensorrt-rtx":
        return
    if options.version_compatible:
        raise PlanError("a tensorrt-rtx plan runs only on the version that built it; leave out --version-compatible")
    if options.hardware_compatibility != "none":
        raise PlanError(
            "for tensorrt-rtx, --compute-capability names the GPUs of a plan; leave out --hardware-compatibility"
        )
    if options.strip_weights and gpus.first is None:
        raise PlanError(
            f"tensorrt-rtx strips weights on a machine with a GPU only, and this machine has none ({gpus.reason}); "
            "leave out --strip-weights"
        )


def _build(module: Any, bundle: Bundle, spec: PlanSpec, folder: Path, report: Report) -> PlanRecord:  # noqa: ANN401
    files: dict[str, File] = {}
    layers: dict[str, EngineLayers] = {}
    seconds: dict[str, float] = {}
    plan = Plan(folder, PlanRecord(spec, files, layers, seconds))
    for name, graph in bundle.graphs(spec.form).items():
        for file in graph.files:  # the plan's key includes the hash of these contents
            if bundle.manifest.files[file].problem(bundle.folder / file):
                raise PlanError(f"{bundle.folder / file} is not as it was exported; copy or export the bundle again")
        start, path = time.perf_counter(), plan.path(name)
        write_synced(path, build_graph(module, bundle.folder / graph.file, graph, spec, name, report))
        seconds[name] = round(time.perf_counter() - start, 2)
        files[name] = File.of(path)
        found = read_layers(module, spec, path)
        if found is None:
            logger.warning("%s: the layers of this engine cannot be read, so its precision is not checked", name)
            continue
        layers[name] = found
        precision = graph.precision(bundle.manifest.precision)
        if wrong_precision := found.wrong_precision(precision, graph.layers):
            wrong = ", ".join(f"{count} in {kind}" for kind, count in wrong_precision.items())
            said = (
                f"{spec.engine} {spec.version} built {name} with {wrong} of {found.count} convolutions and matrix "
                f"products, though the graph is {precision}"
            )
            if found.wrong_throughout(precision):
                raise PlanError(
                    f"{said}; the plan was not kept: export the bundle again with --precision {spec.precision}"
                )
            # The other layers have the right precision, and the build took minutes.
            logger.warning("%s; the plan was kept: measure it, and compare it by `diffseg verify`", said)
    return plan.record
