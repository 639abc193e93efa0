"""Search for a plan of a bundle that fits this machine, and the reasons why other plans don't fit."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.bundle.bundle import PLANS, Bundle
from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET, Form
from diffseg.engines.errors import PlanError
from diffseg.engines.files import cache_folder
from diffseg.engines.machine import Gpu
from diffseg.engines.tensorrt.plan import PORTABLE, Engine, Plan, PlanSpec

AMPERE = (8, 0)
"""Lowest compute capability of a TensorRT plan for Ampere and newer."""
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """The engine version, GPU and platform that a plan has to fit."""

    version: str  # of the installed TensorRT or TensorRT-RTX, in full
    gpu: Gpu | None
    system: str = platform.system().lower()
    machine: str = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")


def plans_folder(bundle: Bundle) -> Path:
    """Return the folder to build plans in: in the bundle, or in the cache if the bundle cannot be written."""
    own = bundle.folder / PLANS
    try:
        own.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=own):
            return own
    except OSError:
        return cache_folder() / PLANS


def list_plans(bundle: Bundle) -> Iterator[tuple[Path, Plan | PlanError]]:
    """List the plans in the bundle's folder, and the plans in the cache that were built from this bundle.

    Yields:
        `(folder, plan)`, or `(folder, error)` if the record of a plan in the bundle cannot be read.
    """
    own, cached = bundle.folder / PLANS, cache_folder() / PLANS
    for root in (own, cached):
        for folder in sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith(".")):
            try:
                plan = Plan.open(folder)
            except PlanError as error:
                if root == own:
                    yield folder, error
                continue
            if root == own or from_bundle(plan.record.spec, bundle):
                yield folder, plan


def find_plan(
    bundle: Bundle, engine: Engine, machine: Machine, forms: Sequence[Form] = (QUERIES_KEYS, ATTENTION)
) -> Plan:
    """Find the most specific plan that fits a machine. Only the plans' records are read.

    Args:
        bundle: the bundle whose plans are searched.
        engine: the engine that executes the plan.
        machine: the machine that executes it.
        forms: forms of the UNet that can be executed there; a plan of an earlier one is preferred.

    Raises:
        PlanError: no plan fits; the message says what each was built for and how to build one.
    """
    reasons: list[str] = []
    fitting: list[Plan] = []
    for folder, plan in list_plans(bundle):
        if isinstance(plan, PlanError):
            reasons.append(str(plan))
        elif plan.record.spec.engine == engine:
            problems = list(mismatches(plan.record.spec, bundle, machine))
            if not problems and plan.record.spec.form not in forms:
                problems = [f"has the form {plan.record.spec.form}, and {' or '.join(forms)} is wanted here"]
            if problems:
                reasons.append(f"{folder.name} {problems[0]}")
            else:
                fitting.append(plan)
    if fitting:
        return min(fitting, key=lambda plan: (forms.index(plan.record.spec.form), _generality(plan.record.spec)))
    rebuild = build_command(bundle, engine, forms[0] if bundle.has_form(UNET, QUERIES_KEYS) else None)
    if not reasons:
        raise PlanError(f"bundle {bundle.manifest.name!r} has no {engine} plan; build one: {rebuild}")
    more = f" (and {len(reasons) - SHOWN} more)" if len(reasons) > SHOWN else ""
    raise PlanError(
        f"no {engine} plan of bundle {bundle.manifest.name!r} fits: {'; '.join(reasons[:SHOWN])}{more}; "
        f"build one: {rebuild}"
    )


def verify_plans(bundle: Bundle) -> Iterator[tuple[str, str | None]]:
    """Compare the plans of a bundle with their records. Yields `(name, problem)`; problem is None if there is none."""
    for folder, plan in list_plans(bundle):
        where = folder.relative_to(bundle.folder) if bundle.folder in folder.parents else folder
        if isinstance(plan, PlanError):
            yield str(where), str(plan)
            continue
        for graph, problem in plan.verify():
            yield str(where / plan.path(graph).name), problem
        if not from_bundle(plan.record.spec, bundle):
            yield str(where), "was built from other graphs than the bundle has now"


def build_command(bundle: Bundle, engine: Engine, form: Form | None = None) -> str:
    """Return the command that builds a plan for this machine, in the form that `build` chooses or in a given one."""
    where = bundle.folder.name if bundle.embedded else str(bundle.folder)
    return shlex.join(["diffseg", "build", where, "--engine", engine, *(["--form", form] if form == ATTENTION else [])])


def from_bundle(spec: PlanSpec, bundle: Bundle) -> bool:
    """Whether the plan was built from the graphs of this bundle as they are now, for one of its kinds of methods."""
    return any(view.has_form(UNET, spec.form) and spec.content == view.contents(spec.form) for view in bundle.views)


def mismatches(spec: PlanSpec, bundle: Bundle, machine: Machine) -> Iterator[str]:
    """Yield the reasons, as text, why a plan does not fit; none if it fits."""
    if not from_bundle(spec, bundle):
        yield "was built from other graphs than the bundle has now"
    form = spec.form if bundle.has_form(UNET, spec.form) else ATTENTION  # of which the first reason is
    declared = {name: graph.tensors.profile() for name, graph in bundle.graphs(form).items()}
    if spec.profiles != declared:
        yield "was built for other batch sizes than the manifest declares"
    if not _runs_version(spec, machine.version):
        yield f"was built by {spec.engine} {spec.version}, found {machine.version}"
    if spec.target.machine != machine.machine or (spec.engine == "tensorrt" and spec.target.system != machine.system):
        yield f"was built for {spec.target.system} {spec.target.machine}, found {machine.system} {machine.machine}"
    if machine.gpu is None:
        yield "needs an NVIDIA GPU, found none"
    elif problem := _gpu_mismatch(spec, machine.gpu):
        yield problem


def _generality(spec: PlanSpec) -> tuple[int, int]:
    """Sort key: number of GPU kinds that a plan was built for, then negated optimisation level; lowest is best."""
    return len(spec.target.compute_capabilities) or sys.maxsize, -spec.options.optimization_level


def _runs_version(spec: PlanSpec, installed: str) -> bool:
    if spec.version == installed:
        return True
    built, found = _numbers(spec.version), _numbers(installed)
    return spec.options.version_compatible and built[:1] == found[:1] and found >= built


def _gpu_mismatch(spec: PlanSpec, gpu: Gpu) -> str | None:
    target, compatibility = spec.target, spec.options.hardware_compatibility
    found = f"found {gpu.name} ({gpu.compute_capability})"
    capability = _numbers(gpu.compute_capability)
    if compatibility == "ampere-plus":
        fits, wanted = capability >= AMPERE, "compute capability 8.0 and newer"
    else:
        listed = target.compute_capabilities or PORTABLE
        fits, wanted = gpu.compute_capability in listed, f"compute capability {', '.join(listed)}"
    if not fits:
        return f"was built for {wanted}, {found}"
    if target.gpu not in (None, gpu.name) and compatibility == "none":
        return f"was built for {target.gpu}, {found}"
    if target.driver is not None and _numbers(gpu.driver) < _numbers(target.driver):
        return f"was built with a driver for CUDA {target.driver}, found one for CUDA {gpu.driver}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
