"""The machine: its GPU, the packages with their libraries, and the rate of large matrix products."""

from __future__ import annotations

import contextlib
import importlib
import io
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from diffseg.engines.machine import find_gpus
from gpu_check.context import Context
from gpu_check.timing import device_seconds

GEMM = 8192
PACKAGES = (
    *("diffseg", "numpy", "onnxruntime-gpu", "onnxruntime", "torch", "diffusers", "triton", "tensorrt-cu13"),
    *("tensorrt-rtx-cu13", "cupy-cuda13x", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-nvrtc"),
)
MODULES = ("cupy", "onnxruntime", "torch", "diffusers", "tensorrt_rtx", "tensorrt", "triton", "pytest")


def check(_: Context) -> Iterator[dict[str, Any]]:
    """Describe the machine, then measure matrix products in fp16 and fp32 on random data."""
    yield {"gpus": [asdict(gpu) for gpu in find_gpus().gpus], "driver": driver(), "modules": modules()}
    yield {"onnxruntime": onnxruntime()}
    import cupy

    rates = {}
    for kind in ("float16", "float32"):
        a, b = (cupy.random.standard_normal((GEMM, GEMM), dtype=np.float32).astype(kind) for _ in range(2))
        seconds = statistics.median(device_seconds(cupy, lambda a=a, b=b: a @ b, 20))
        rates[f"{kind}_tflops"] = round(2 * GEMM**3 / seconds / 1e12, 1)
        yield {"gemm": rates}


def driver() -> str:
    """Return the GPUs as nvidia-smi reports them, or why it reports none."""
    query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "nvidia-smi is not installed"
    return (done.stdout or done.stderr).strip()


def modules() -> dict[str, str]:
    """Return the version of each module, or why it can't be imported."""
    found = {}
    for name in MODULES:
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "imported"))
        except Exception as error:  # of any library that is missing  # noqa: BLE001
            found[name] = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    return found


def onnxruntime() -> dict[str, Any]:
    """Return ONNX Runtime's providers, and CUDA's libraries that it can't find."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return {"missing": str(error).strip().splitlines()[0]}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    return {
        "providers": ort.get_available_providers(),
        "file": ort.__file__,
        "not_loaded": [line for line in said.getvalue().splitlines() if line.startswith("Failed")],
    }
