"""What this machine can run, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffseg.engines.bundle import embedded_models
from diffseg.engines.providers import Provider

PACKAGES = {
    "numpy": "",
    "pillow": "",
    "onnxruntime": "pip install 'diffseg[cpu]'",
    "onnxruntime-gpu": "pip install 'diffseg[gpu]', in place of onnxruntime",
    "scipy": "pip install 'diffseg[eval]', for evaluate only",
    "scikit-learn": "pip install 'diffseg[eval]', for evaluate only",
    "scikit-image": "pip install 'diffseg[eval]', for evaluate only",
    "huggingface-hub": "pip install 'diffseg[hub]', for models by hub id",
    "torch": "pip install 'diffseg[export]', for export only",
    "diffusers": "pip install 'diffseg[export]', for export only",
    "onnxscript": "pip install 'diffseg[export]', for export only",
}


def gather() -> dict[str, Any]:
    """Facts for `diffseg info`: `(state, note)` for each package and provider."""
    packages = {
        name: (found, "") if (found := _version(name)) else ("missing", note) for name, note in PACKAGES.items()
    }
    return {
        "version": _version("diffseg"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": packages,
        "providers": {
            provider.value: _provider(provider, packages) for provider in Provider if provider is not Provider.AUTO
        },
        "models": embedded_models(),
    }


def _provider(provider: Provider, packages: dict[str, tuple[str, str]]) -> tuple[str, str]:
    if provider is not Provider.CPU:
        return "no", "not in this version"
    if packages["onnxruntime"][0] == "missing" and packages["onnxruntime-gpu"][0] == "missing":
        return "no", "needs onnxruntime: pip install 'diffseg[cpu]'"
    return "yes", ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
