"""ONNX Runtime: executes a bundle's graphs as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.errors import BundleError, MissingPackageError, ProviderError
from diffseg.engines.manifest import ENCODER, UNET

if TYPE_CHECKING:
    from diffseg.engines.bundle import Bundle
    from diffseg.engines.tensors import GraphTensors
    from numpy.typing import NDArray


class OrtNetwork:
    """The two graphs of a bundle on the CPU. Thread-safe: sessions have no state, buffers belong to a call.

    Args:
        bundle: what to execute.
        threads: CPU threads of one operator; None lets ONNX Runtime take every core.
        lean: give memory back after each call instead of keeping it for the next: lower peak, slower.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: the bundle's precision has no CPU kernels.
        BundleError: a graph can't be read, or its tensors are not those of the manifest.
    """

    provider = "cpu"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, lean: bool = False) -> None:
        manifest = bundle.manifest
        if manifest.precision == "bf16":
            raise ProviderError(
                f"bundle {manifest.name!r} is bf16, for which ONNX Runtime has no CPU kernels; "
                "export it with --precision fp32 to run it on a CPU"
            )
        self.tensors = {name: graph.tensors for name, graph in manifest.graphs.items()}
        self._sessions = {
            name: _session(bundle.graph_path(name), self.tensors[name], threads, lean=lean) for name in (ENCODER, UNET)
        }

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent: the posterior mean times the scaling factor."""
        return self._run(ENCODER, images)[0]

    def attend(self, latent: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Latent → one (B, n², n²) float32 attention a resolution, finest first; the arrays are the caller's."""
        return self._run(UNET, latent)

    def _run(self, graph: str, value: NDArray[Any]) -> list[NDArray[np.float32]]:
        tensors, session = self.tensors[graph], self._sessions[graph]
        batch = len(value)
        binding = session.io_binding()
        binding.bind_cpu_input(tensors.inputs[0].name, np.ascontiguousarray(value))
        results = [np.empty(output.shape(batch), output.dtype) for output in tensors.outputs]
        for output, result in zip(tensors.outputs, results, strict=True):
            # Written in place: a 4096² map is 64 MB that need not be copied out of the session.
            binding.bind_output(output.name, "cpu", 0, result.dtype, result.shape, result.ctypes.data)
        session.run_with_iobinding(binding)
        return results


def session_options(*, threads: int | None = None, lean: bool = False) -> Any:  # noqa: ANN401 - untyped upstream
    """ONNX Runtime options shared by every session of ours."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    if lean:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def import_onnxruntime() -> Any:  # noqa: ANN401 - untyped upstream
    """Import onnxruntime, or say how to install it."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime is not installed: pip install 'diffseg[cpu]'") from None
    return onnxruntime


def _session(path: Path, tensors: GraphTensors, threads: int | None, *, lean: bool) -> Any:  # noqa: ANN401
    ort = import_onnxruntime()
    try:
        session = ort.InferenceSession(
            str(path), session_options(threads=threads, lean=lean), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises a type of its own for each status code  # noqa: BLE001
        reason = str(error).strip().splitlines()[0]
        raise BundleError(f"onnxruntime {ort.__version__} cannot load {path}: {reason}; run `diffseg verify`") from None
    kinds = {"uint8": "tensor(uint8)", "float16": "tensor(float16)", "float32": "tensor(float)"}
    actual, declared = (*session.get_inputs(), *session.get_outputs()), (*tensors.inputs, *tensors.outputs)
    found = [(v.name, v.type, [d if isinstance(d, int) else -1 for d in v.shape]) for v in actual]  # -1: dynamic
    expected = [(t.name, kinds[t.dtype], [-1 if axis.dynamic else axis.opt for axis in t.axes]) for t in declared]
    if found != expected:
        raise BundleError(f"{path} has tensors {found}, the manifest says {expected}; export the bundle again")
    return session
