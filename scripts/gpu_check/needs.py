"""The requirements of steps, each with a name and a check of why it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_check.context import Context

CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True)
class Need:
    """A requirement of a step.

    Attributes:
        words: its name.
        missing: returns why it is missing, or None if it is met.
        of_gpu: whether only execution on a GPU needs it, and not a rehearsal on the CPU.
    """

    words: str
    missing: Callable[[Context], str | None]
    of_gpu: bool = False


def _gpu(_: Context) -> str | None:
    from diffseg.engines.machine import find_gpus

    found = find_gpus()
    return None if found.first else f"no NVIDIA GPU: {found.reason or 'the driver lists none'}"


def _cupy(_: Context) -> str | None:
    try:
        import cupy

        cupy.zeros(1).sum()
    except Exception as error:  # CuPy without its libraries raises many things  # noqa: BLE001
        return f"CuPy does not run: {_first_line(error)}"
    return None


def _onnxruntime(_: Context) -> str | None:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"onnxruntime can't be imported: {_first_line(error)}"
    if CUDA_PROVIDER not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no {CUDA_PROVIDER}: put the wheel onnxruntime-gpu into --wheels"
    return None


def _graphs(context: Context) -> str | None:
    if context.archive.is_file():
        return None
    return f"{context.archive} is missing: make it with `python scripts/gpu_check pack BUNDLE {context.archive}`"


def _bundle(context: Context) -> str | None:
    if (context.bundle / "manifest.json").is_file():
        return None
    return f"{context.bundle} is missing: the step `weights` makes it"


def _torch(context: Context) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if context.rehearse or torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no GPU"


def _rtx(_: Context) -> str | None:
    from diffseg.engines.machine import find_gpus
    from diffseg.engines.tensorrt.build import known_compute_capabilities

    try:
        import tensorrt_rtx
    except ImportError as error:
        return f"tensorrt_rtx can't be imported: {_first_line(error)}"
    gpu, known = find_gpus().first, known_compute_capabilities(tensorrt_rtx)
    if gpu is None or gpu.compute_capability not in known:
        found = "no GPU" if gpu is None else f"{gpu.name} ({gpu.compute_capability})"
        return f"TensorRT-RTX {tensorrt_rtx.__version__} lists {', '.join(known)}, found {found}"
    return None


def _pytest(_: Context) -> str | None:
    wanted = ("pytest", "hypothesis", "ml_dtypes")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


GPU = Need("an NVIDIA GPU", _gpu, of_gpu=True)
CUPY = Need("CuPy", _cupy, of_gpu=True)
ONNXRUNTIME = Need("onnxruntime-gpu", _onnxruntime, of_gpu=True)
GRAPHS = Need("the archive of graphs", _graphs)
BUNDLE = Need("the step `weights`", _bundle)
TORCH = Need("PyTorch", _torch)
RTX = Need("TensorRT-RTX and a GPU of its list", _rtx)
PYTEST = Need("pytest, hypothesis, ml-dtypes", _pytest)
