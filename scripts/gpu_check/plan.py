"""The steps of a check, the most valuable first."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpu_check.needs import BUNDLE, CUPY, GPU, GRAPHS, ONNXRUNTIME, PYTEST, RTX, TORCH, Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_check.context import Context

LIMIT = 8
"""Longest time limit of a step, in minutes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, which runs in a separate process.

    Attributes:
        name: name by which it is chosen.
        function: `module:function` of this package; yields parts of the result as it finds them.
        does: description of what it checks or measures, in one line.
        needs: requirements; if one is missing, the step is skipped.
        minutes: time limit, after which it is ended; its results so far are kept.
        rehearses: whether it can also run on a CPU, with `--rehearse`.
    """

    name: str
    function: str
    does: str
    needs: tuple[Need, ...]
    minutes: float
    rehearses: bool = False

    def load(self) -> Callable[[Context], Iterator[dict[str, Any]]]:
        """Import the function, and with it the packages that it needs."""
        module, _, name = self.function.partition(":")
        function: Callable[[Context], Iterator[dict[str, Any]]] = getattr(import_module(f"gpu_check.{module}"), name)
        return function

    def missing(self, context: Context) -> str | None:
        """Return why the step can't run here; None if it can. A rehearsal needs no GPU."""
        asked = (need for need in self.needs if not (context.rehearse and self.rehearses and need.of_gpu))
        return next((reason for need in asked if (reason := need.missing(context))), None)


STEPS = (
    Step("machine", "machine:check", "the GPU, what is installed, and the rate of large matrix products", (GPU,), 3),
    Step(
        "merging",
        "merging:check",
        "golden masks from merging on CuPy, with and without fused kernels, and the time of each stage",
        (GPU, CUPY),
        6,
        rehearses=True,
    ),
    Step("kernel", "kernel:check", "the attention kernel against its NumPy twin", (GPU, CUPY), 5),
    Step("kernel-times", "kernel:time", "time of the attention kernel by shape, beside CuPy's matmul", (GPU, CUPY), 4),
    Step(
        "tiny",
        "tiny:check",
        "the embedded model on `cuda`: node placement, agreement with the CPU, latency",
        (GPU, ONNXRUNTIME, CUPY),
        4,
        rehearses=True,
    ),
    Step("weights", "archive:check", "full-size graphs from the archive, with weights from a seed", (GRAPHS,), 5),
    Step(
        "network",
        "network:check",
        "the full-size network on `cuda`: finite outputs, placement, latency by stage, memory",
        (GPU, ONNXRUNTIME, CUPY, BUNDLE),
        6,
        rehearses=True,
    ),
    Step(
        "forms",
        "network:compare_forms",
        "queries and keys with our kernel, compared with the attention form",
        (GPU, ONNXRUNTIME, CUPY, BUNDLE),
        6,
        rehearses=True,
    ),
    Step(
        "options",
        "network:compare_options",
        "tensor cores, NHWC and CUDA graphs, each switched off",
        (GPU, ONNXRUNTIME, CUPY, BUNDLE),
        8,
        rehearses=True,
    ),
    Step(
        "throughput",
        "throughput:check",
        "images per second and memory by batch, and the share of the GPU's matrix product",
        (GPU, ONNXRUNTIME, CUPY, BUNDLE),
        6,
        rehearses=True,
    ),
    Step(
        "torch", "baseline:check", "PyTorch with SDPA and in eager mode, as baselines", (GPU, TORCH), 5, rehearses=True
    ),
    Step("rtx", "rtx:check", "TensorRT-RTX: plans built, agreement with the CPU, latency", (GPU, CUPY, RTX, BUNDLE), 8),
    Step("tests", "suite:check", "pytest tests/gpu", (GPU, CUPY, PYTEST), 8),
    Step(
        "graphs",
        "graphs:check",
        "every full-size graph opens on the CPU, and both forms of the UNet give the same maps there",
        (BUNDLE,),
        8,
        rehearses=True,
    ),
)


def find_step(name: str) -> Step:
    """Return a step by its name.

    Raises:
        KeyError: there is none.
    """
    return {step.name: step for step in STEPS}[name]
