"""What this machine can run, and what is missing."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

from diffseg.engines.bundle.bundle import embedded_models, open_bundle
from diffseg.engines.errors import MissingPackageError, PlanError
from diffseg.engines.machine import Gpus, find_gpus
from diffseg.engines.packages import install_command, installed_version
from diffseg.engines.providers.cuda import import_cupy
from diffseg.engines.providers.select import Provider
from diffseg.engines.tensorrt.build import BUILD_EXTRAS, EXTRAS, engine_version
from diffseg.engines.tensorrt.lookup import Machine, list_plans, mismatches

PACKAGES = {
    "numpy": "",
    "pillow": "",
    "onnxruntime": "extra 'cpu'",
    "onnxruntime-gpu": "extra 'gpu', in place of onnxruntime",
    "openvino": "extra 'openvino', for CPUs with bfloat16 and Intel's GPUs and NPUs",
    "scipy": "extra 'eval', for evaluate only",
    "scikit-learn": "extra 'eval', for evaluate only",
    "scikit-image": "extra 'eval', for evaluate only",
    "huggingface-hub": "extra 'hub', for models by hub id",
    "fastapi": "extra 'serve', for serve only",
    "uvicorn": "extra 'serve', for serve only",
    "prometheus-client": "extra 'serve', for serve only",
    "torch": "extra 'export', for export only",
    "diffusers": "extra 'export', for export only",
    "onnxscript": "extra 'export', for export only",
}
NO_CUPY = "without CuPy the attention (90 MB per image at 512 px) is copied to the host and merged there"


def capabilities(bundle: str | None = None) -> dict[str, Any]:
    """Facts for `diffseg info`: `(state, note)` for each package, builder and provider; the plans of a bundle.

    Raises:
        BundleError: `bundle` is none, or damaged.
    """
    packages = {
        name: (found, "") if (found := installed_version(name)) else ("missing", note)
        for name, note in PACKAGES.items()
    }
    versions = {engine: engine_version(engine) for engine in EXTRAS}
    gpus = find_gpus()
    return {
        "version": installed_version("diffseg"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus.gpus],
        "no_gpu": gpus.reason,
        "packages": packages,
        "install_extra": install_command("EXTRA"),
        "builders": {
            engine: (found, _builder_note(engine, gpus)) if found else ("missing", f"extra '{BUILD_EXTRAS[engine]}'")
            for engine, found in versions.items()
        },
        "providers": {
            provider.value: _provider(provider, packages, gpus)
            for provider in Provider
            if provider is not Provider.AUTO
        },
        "models": embedded_models(),
        "bundle": bundle,
        "plans": [] if bundle is None else _plans(bundle, versions, gpus),
    }


def _plans(bundle: str, versions: dict[Any, str | None], gpus: Gpus) -> list[dict[str, str]]:
    opened, found = open_bundle(bundle), []
    for folder, plan in list_plans(opened):
        if isinstance(plan, PlanError):
            found.append({"folder": str(folder), "purpose": "unknown", "here": f"cannot run here: {plan}"})
            continue
        spec = plan.record.spec
        problems = list(mismatches(spec, opened, Machine(versions[spec.engine] or "no version", gpus.first)))
        here = f"cannot run here: it {'; it '.join(problems)}" if problems else "fits this machine"
        found.append({"folder": str(folder), "purpose": spec.purpose, "here": here})
    return found


def _builder_note(engine: str, gpus: Gpus) -> str:
    if engine == "tensorrt" and gpus.first is None:
        return "cannot build here: it needs the GPU"
    return "" if gpus.first else "builds ahead of time, without a GPU"


def _provider(provider: Provider, packages: dict[str, tuple[str, str]], gpus: Gpus) -> tuple[str, str]:
    """Whether a provider can run here, or what it misses; a plan that fits is the bundle's affair."""
    of_any = {
        Provider.CPU: (("onnxruntime", "onnxruntime-gpu"), "needs onnxruntime: extra 'cpu'"),
        Provider.OPENVINO: (("openvino",), "needs openvino: extra 'openvino'"),
    }
    if provider in of_any:
        names, note = of_any[provider]
        return ("yes", "") if any(packages[name][0] != "missing" for name in names) else ("no", note)
    if gpus.first is None:
        return "no", "needs an NVIDIA GPU"
    if provider in (Provider.CUDA, Provider.ORT_TENSORRT):
        if packages["onnxruntime-gpu"][0] == "missing":
            return "no", "needs onnxruntime-gpu: extra 'gpu'"
        version = engine_version("tensorrt") or "none" if provider is Provider.ORT_TENSORRT else "10."
        other = "" if version.startswith("10.") else f"needs TensorRT 10: extra 'ort-tensorrt'; found {version}"
        return "yes", other or ("" if _has_cupy() else NO_CUPY)
    engine = "tensorrt" if provider is Provider.TENSORRT else "tensorrt-rtx"
    if engine_version(engine) is None:  # type: ignore[arg-type]
        return "no", f"needs {engine}: extra '{EXTRAS[engine]}'"  # type: ignore[index]
    return (
        ("yes", "with a plan: diffseg build") if _has_cupy() else ("no", "needs CuPy: pip install 'cupy-cuda13x[ctk]'")
    )


def _has_cupy() -> bool:
    try:
        import_cupy()
    except MissingPackageError:
        return False
    return True
