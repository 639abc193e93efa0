"""ONNX Runtime on an NVIDIA GPU, with its CUDA or TensorRT provider. It never falls back to the CPU silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET, Graph
from diffseg.engines.errors import DeviceMemoryError, MissingPackageError, ProviderError
from diffseg.engines.files import cache_folder
from diffseg.engines.packages import install_command
from diffseg.engines.providers.cuda import device_errors, import_cupy, onnxruntime_memory_full
from diffseg.engines.providers.onnxruntime import check_tensors, import_onnxruntime, session_options

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle

NAMES = {"cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}


class OrtGpuNetwork:
    """The two graphs of a bundle in ONNX Runtime on the GPU. Thread-safe: sessions have no state.

    With CuPy the attention stays on the GPU and is merged there; without CuPy it is copied to the host.

    Args:
        bundle: the bundle to execute.
        provider: `cuda` or `ort-tensorrt`; the latter builds engines in its first run and caches them.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: ONNX Runtime lacks the provider, or fell back to another one.
        BundleError: a graph's tensors differ from the manifest.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, provider: str) -> None:
        self.provider = provider
        self.tensors = {name: graph.tensors for name, graph in bundle.manifest.graphs.items()}
        try:
            self._cupy = import_cupy()
        except MissingPackageError:
            self._cupy = None
        self._sessions = {name: self._open(bundle, name) for name in (ENCODER, UNET)}

    @contextmanager
    def session(self) -> Iterator[OrtGpuNetwork]:
        """Take a session. All threads get the same one, because it keeps no state between passes."""
        if self._cupy is None:
            yield self
            return
        with device_errors(self._cupy, "the masks"):  # what CuPy raises while it merges is translated here
            self._cupy.cuda.Device(0).use()
            yield self

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent."""
        return self._run(ENCODER, images)[0]

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → one (B, n², n²) float32 attention per resolution, finest first, in new arrays."""
        return self._run(UNET, latent)

    def wait(self) -> None:
        """Return when CuPy's work is done; ONNX Runtime's calls are synchronous."""
        if self._cupy is not None:
            with device_errors(self._cupy, "the masks"):
                self._cupy.cuda.get_current_stream().synchronize()

    def _open(self, bundle: Bundle, name: str) -> Any:  # noqa: ANN401 - untyped upstream
        ort = import_onnxruntime()
        wanted = NAMES[self.provider]
        if wanted not in ort.get_available_providers():
            others = ", ".join(ort.get_available_providers())
            raise ProviderError(f"onnxruntime {ort.__version__} has no {wanted}, only {others}: {_install()}")
        ort.preload_dlls()  # load CUDA's libraries from their wheels, without LD_LIBRARY_PATH
        path = bundle.graph_path(name)
        settings = self._settings(bundle.manifest.graphs[name], bundle.content_hash(name))
        providers = [(wanted, settings), "CPUExecutionProvider"]  # shape operators run on the CPU
        try:
            session = ort.InferenceSession(str(path), session_options(), providers=providers, enable_fallback=False)
        except Exception as error:  # onnxruntime has an exception type per status code  # noqa: BLE001
            reason = str(error).strip().splitlines()[0]
            raise ProviderError(f"onnxruntime {ort.__version__} cannot run {path} on {wanted}: {reason}") from None
        taken = session.get_providers()[0]
        if taken != wanted:
            raise ProviderError(
                f"onnxruntime {ort.__version__} took {taken} for {path} instead of {wanted}: a library of CUDA or "
                f"cuDNN is missing, or the driver is too old; {_install()}; `diffseg info` lists what is installed"
            )
        check_tensors(session, self.tensors[name], path)
        return session

    def _settings(self, graph: Graph, content: str) -> dict[str, Any]:
        if self.provider == "cuda":
            return {"device_id": 0, "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": 0}
        folder = cache_folder() / "ort-tensorrt" / content[:16]
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {
            f"trt_profile_{bound}_shapes": ",".join(
                f"{tensor}:{'x'.join(map(str, sizes[bound]))}" for tensor, sizes in graph.tensors.profile().items()
            )
            for bound in ("min", "opt", "max")
        }
        return {"device_id": 0, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder), **shapes}

    def _run(self, graph: str, value: Any) -> list[Any]:  # noqa: ANN401
        tensors, session = self.tensors[graph], self._sessions[graph]
        binding, batch = session.io_binding(), len(value)
        place, xp = ("cpu", np) if self._cupy is None else ("cuda", self._cupy)
        try:
            value = xp.ascontiguousarray(xp.asarray(value))
            results = [xp.empty(output.shape(batch), output.dtype) for output in tensors.outputs]
            names = [tensors.inputs[0].name, *(output.name for output in tensors.outputs)]
            for bind, name, array in zip(
                [binding.bind_input, *[binding.bind_output] * len(results)], names, [value, *results], strict=True
            ):
                address = array.ctypes.data if place == "cpu" else array.data.ptr
                bind(name, place, 0, np.dtype(array.dtype), array.shape, address)
            self.wait()  # ONNX Runtime's stream is not synchronised with CuPy's
            session.run_with_iobinding(binding)
        except Exception as error:  # of onnxruntime and of CuPy  # noqa: BLE001
            reason = str(error).strip().splitlines()[0]
            full = isinstance(error, MemoryError) or onnxruntime_memory_full(error)  # CuPy's is a MemoryError, too
            kind = DeviceMemoryError if full else ProviderError
            raise kind(f"{self.provider} failed in {graph} with a batch of {batch}: {reason}") from None
        return results


def _install() -> str:
    return f"{install_command('gpu')}, and no plain onnxruntime beside it: the two share one module"
