"""Capabilities of this machine: which providers and builders run here, and which packages are not installed."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from diffseg.engines.bundle.bundle import Bundle, embedded_models, find_bundle, open_bundle
from diffseg.engines.errors import MissingPackageError, PlanError
from diffseg.engines.machine import Gpu, Gpus, find_gpus
from diffseg.engines.packages import install_command, installed_version
from diffseg.engines.providers.cuda import import_cupy
from diffseg.engines.providers.select import Provider, load_network
from diffseg.engines.tensorrt.build import BUILD_EXTRAS, EXTRAS, engine_version
from diffseg.engines.tensorrt.lookup import Machine, from_bundle, list_plans, mismatches
from diffseg.engines.tensorrt.plan import Engine
from msgspec import Struct

PACKAGES = {
    "numpy": "",
    "pillow": "",
    "onnxruntime": "extra 'cpu'",
    "onnxruntime-gpu": "extra 'gpu', in place of onnxruntime",
    "openvino": "extra 'openvino', for CPUs with bfloat16 and Intel's GPUs and NPUs",
    "scipy": "extra 'eval', for evaluate only",
    "scikit-learn": "extra 'eval', for evaluate only",
    "scikit-image": "extra 'eval', for evaluate only",
    "jinja2": "extra 'reports', for HTML reports",
    "huggingface-hub": "extra 'hub', for models by hub id",
    "fastapi": "extra 'serve', for serve only",
    "uvicorn": "extra 'serve', for serve only",
    "cachetools": "extra 'serve', for serve only",
    "structlog": "extra 'serve', for serve only",
    "prometheus-client": "extra 'serve', for serve only",
    "torch": "extra 'export', for export only",
    "diffusers": "extra 'export', for export only",
    "onnxscript": "extra 'export', for export only",
}
NO_CUPY = "without CuPy the attention (90 MB per image at 512 px) is copied to the host and merged there"


class State(NamedTuple):
    """The state of a package, builder or provider."""

    state: str  # a version or `missing`; for a provider, `yes` or `no`
    note: str  # a requirement or a missing part; empty if there is none


class PlanFit(Struct, frozen=True):
    """A plan, and whether this machine can run it."""

    folder: str
    purpose: str  # target of the plan as text
    here: str  # text: it fits this machine, or the reason why it can't run here


class Loaded(Struct, frozen=True):
    """The result of loading a bundle into a provider."""

    model: str
    provider: str  # with `auto`, the one that was taken
    device: str
    placement: dict[str, dict[str, int]]  # nodes by graph and ONNX Runtime's provider; empty if it reports none


class Capabilities(Struct, frozen=True):
    """Facts for `diffseg info`. `msgspec.to_builtins` converts them to values that JSON can represent."""

    version: str | None  # of diffseg; None: not installed
    python: str
    platform: str
    cores: int | None
    gpus: tuple[Gpu, ...]
    no_gpu: str | None  # why there is none
    packages: dict[str, State]
    install_extra: str  # command that installs an extra
    builders: dict[str, State]
    providers: dict[str, State]
    models: list[str]  # names of the embedded bundles
    bundle: str | None
    plans: list[PlanFit]  # of the bundle
    loaded: Loaded | None = None  # None: no provider was asked for


def capabilities(bundle: str | None = None, provider: str | None = None) -> Capabilities:
    """Describe the packages, builders and providers of this machine, and the plans of a bundle.

    Args:
        bundle: an embedded name, a bundle folder or a hub id.
        provider: load the bundle, by default the embedded `tiny`, into this provider, to see where its nodes run.

    Raises:
        BundleNotFoundError: `bundle` is neither an embedded name nor a bundle folder nor a hub id.
        BundleError: `bundle` is damaged.
        ProviderError: the provider is unknown, or cannot run on this machine.
    """
    packages = {
        name: State(found, "") if (found := installed_version(name)) else State("missing", note)
        for name, note in PACKAGES.items()
    }
    versions: dict[Engine, str | None] = {engine: engine_version(engine) for engine in EXTRAS}
    gpus = find_gpus()
    return Capabilities(
        version=installed_version("diffseg"),
        python=platform.python_version(),
        platform=platform.platform(),
        cores=os.cpu_count(),
        gpus=gpus.gpus,
        no_gpu=gpus.reason,
        packages=packages,
        install_extra=install_command("EXTRA"),
        builders={
            engine: State(found, _builder_note(engine, gpus))
            if found
            else State("missing", f"extra '{BUILD_EXTRAS[engine]}'")
            for engine, found in versions.items()
        },
        providers={
            provider.value: _provider(provider, packages, gpus)
            for provider in Provider
            if provider is not Provider.AUTO
        },
        models=embedded_models(),
        bundle=bundle,
        plans=[] if bundle is None else _plans(bundle, versions, gpus),
        loaded=None if provider is None else _load(bundle or "tiny", provider),
    )


def _load(bundle: str, provider: str) -> Loaded:
    network = load_network(open_bundle(bundle), provider)
    return Loaded(bundle, network.provider, network.device, network.placement)


def _plans(bundle: str, versions: dict[Engine, str | None], gpus: Gpus) -> list[PlanFit]:
    whole, found = Bundle.open(find_bundle(bundle)), []
    for folder, plan in list_plans(whole):
        if isinstance(plan, PlanError):
            found.append(PlanFit(str(folder), "unknown", f"cannot run here: {plan}"))
            continue
        spec = plan.record.spec
        opened = next((view for view in whole.views if from_bundle(spec, view)), whole.for_method())
        problems = list(mismatches(spec, opened, Machine(versions[spec.engine] or "no version", gpus.first)))
        here = f"cannot run here: it {'; it '.join(problems)}" if problems else "fits this machine"
        found.append(PlanFit(str(folder), spec.purpose, here))
    return found


def _builder_note(engine: Engine, gpus: Gpus) -> str:
    if engine == "tensorrt" and gpus.first is None:
        return "cannot build here: it needs the GPU"
    return "" if gpus.first else "builds ahead of time, without a GPU"


def _provider(provider: Provider, packages: dict[str, State], gpus: Gpus) -> State:
    """Return whether a provider can run here, or what is missing. Whether a plan fits depends on the bundle."""
    of_any = {
        Provider.CPU: (("onnxruntime", "onnxruntime-gpu"), "needs onnxruntime: extra 'cpu'"),
        Provider.OPENVINO: (("openvino",), "needs openvino: extra 'openvino'"),
    }
    if provider in of_any:
        names, note = of_any[provider]
        return State("yes", "") if any(packages[name].state != "missing" for name in names) else State("no", note)
    if gpus.first is None:
        return State("no", "needs an NVIDIA GPU")
    if provider in (Provider.CUDA, Provider.ORT_TENSORRT):
        if packages["onnxruntime-gpu"].state == "missing":
            return State("no", "needs onnxruntime-gpu: extra 'gpu'")
        version = engine_version("tensorrt") or "none" if provider is Provider.ORT_TENSORRT else "10."
        other = "" if version.startswith("10.") else f"needs TensorRT 10: extra 'ort-tensorrt'; found {version}"
        return State("yes", other or ("" if _has_cupy() else NO_CUPY))
    engine: Engine = "tensorrt" if provider is Provider.TENSORRT else "tensorrt-rtx"
    if engine_version(engine) is None:
        return State("no", f"needs {engine}: extra '{EXTRAS[engine]}'")
    cupy = "needs CuPy: pip install 'cupy-cuda13x[ctk]'"
    return State("yes", "with a plan: diffseg build") if _has_cupy() else State("no", cupy)


def _has_cupy() -> bool:
    try:
        import_cupy()
    except MissingPackageError:
        return False
    return True
