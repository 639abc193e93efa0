"""One pass at a time through ONNX Runtime's sessions on a GPU, with buffers at constant addresses."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import DeviceMemoryError, ProviderError
from diffseg.engines.providers.cuda import device_errors, onnxruntime_memory_full
from diffseg.engines.providers.forms import storage_type
from diffseg.engines.providers.onnxruntime import import_onnxruntime
from diffseg.engines.text import first_line

if TYPE_CHECKING:
    from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork

logger = logging.getLogger(__name__)

BFLOAT16 = 16
"""ONNX's number of the type bfloat16, which NumPy lacks."""


class OrtGpuSession:
    """Buffers for one pass at a time, on the GPU with CuPy, otherwise on the host. The next pass overwrites them.

    ONNX Runtime keeps captured CUDA graphs per thread, so all passes of a session run on one thread.

    Args:
        network: the network whose ONNX Runtime sessions are executed.
        device: index of the GPU.
    """

    def __init__(self, network: OrtGpuNetwork, device: int) -> None:
        self.network, self.device, self.cupy = network, device, network.cupy
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="diffseg-cuda") if network.capture else None
        self._first_graph = 0
        self._capacity = 0  # largest padded batch that the arrays hold
        self._memory: dict[str, Any] = {}  # by tensor name
        self._bindings: dict[tuple[str, int], Any] = {}
        self._done: set[tuple[str, int]] = set()
        self._latent: Any = None  # what `encode` returned last

    @property
    def _largest(self) -> int:
        return self.network.tensors[ENCODER].inputs[0].axes[0].max

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent, which the next pass overwrites."""
        self._latent = self._run(ENCODER, images)[0]
        return self._latent

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → one (B, n², n²) float32 attention per resolution, finest first, which the next pass overwrites."""
        outputs, averaging = self._run(UNET, latent), self.network.averaging
        if averaging is None:
            return outputs
        batch = len(latent)
        with device_errors(self.cupy, "the averaged attention"):
            # On CuPy's current stream: ONNX Runtime has finished, and waits for that stream before its next run.
            return averaging.run(self._buffers(batch))

    def wait(self) -> None:
        """Wait until CuPy's work is done. ONNX Runtime's calls are synchronous."""
        if self.cupy is not None:
            with device_errors(self.cupy, "the masks"):
                self.cupy.cuda.get_current_stream().synchronize()

    def _padded(self, batch: int) -> int:
        """Batch size that is executed. Each convolution of the CUDA provider keeps the plan of its last shape only."""
        if self.network.provider != "cuda":
            return batch
        return min(1 << (batch - 1).bit_length(), max(batch, self._largest))

    def _buffers(self, padded: int) -> dict[str, Any]:
        """Return arrays of every tensor at a batch size. The encoder's output and the UNet's input are one array."""
        if padded > self._capacity:
            self._grow(padded)
        return {name: array[:padded] for name, array in self._memory.items()}

    def _grow(self, padded: int) -> None:
        """Allocate arrays for a larger batch, which smaller ones share."""
        self._capacity, self._memory, self._latent = 0, {}, None  # free the old ones first: both might not fit
        self._bindings.clear()
        self._done.clear()
        # Graphs are named by number. Earlier graphs, of any session, hold addresses of freed arrays.
        self._first_graph = next(self.network.serial) * (1 + self._largest)
        make = np.zeros if self.cupy is None else self.cupy.zeros  # rows beyond the batch are executed, too
        tensors = [t for graph in self.network.tensors.values() for t in (*graph.inputs, *graph.outputs)]
        if self.network.averaging is not None:
            tensors += self.network.averaging.buffers
        shapes = {tensor.name: (tensor.shape(padded), storage_type(tensor)) for tensor in tensors}
        self._memory = {name: make(shape, dtype) for name, (shape, dtype) in shapes.items()}
        self._capacity = padded

    def _run(self, graph: str, value: Any) -> list[Any]:  # noqa: ANN401
        tensors, batch = self.network.tensors[graph], len(value)
        padded = self._padded(batch)
        try:
            buffers = self._buffers(padded)
            if value is not self._latent:  # otherwise it is already in place
                self._fill(buffers[tensors.inputs[0].name][:batch], value)
            self.wait()  # ONNX Runtime's stream is not synchronised with CuPy's
            self._execute(graph, padded)
        except Exception as error:  # raised by onnxruntime or CuPy  # noqa: BLE001
            reason = first_line(error)
            full = isinstance(error, MemoryError) or onnxruntime_memory_full(error)  # CuPy's is a MemoryError, too
            kind = DeviceMemoryError if full else ProviderError
            raise kind(f"{self.network.provider} failed in {graph} with a batch of {batch}: {reason}") from None
        return [buffers[output.name][:batch] for output in tensors.outputs]

    def _fill(self, target: Any, value: Any) -> None:  # noqa: ANN401
        if self.cupy is None:
            target[...] = value
        elif isinstance(value, np.ndarray):
            target.set(np.ascontiguousarray(value, target.dtype))
        else:
            target[...] = self.cupy.asarray(value)

    def _execute(self, graph: str, padded: int) -> None:
        session, key = self.network.sessions[self.device][graph], (graph, padded)
        if key not in self._bindings:
            self._bindings[key] = self._bind(graph, padded)
        binding = self._bindings[key]
        if self._worker is None or not self.network.capture:
            # The session was opened for capture, so disable it for this run.
            session.run_with_iobinding(binding, *([_run_options(-1)] if self._worker else []))
            return
        try:
            self._worker.submit(session.run_with_iobinding, binding, _run_options(self._first_graph + padded)).result()
        except Exception as error:  # onnxruntime has an exception type per status code
            if key in self._done or onnxruntime_memory_full(error):
                raise
            reason = first_line(error)
            logger.warning("%s: no CUDA graph could be captured (%s); kernels are launched one by one", graph, reason)
            self.network.capture = False
            session.run_with_iobinding(binding, _run_options(-1))
        self._done.add(key)

    def _bind(self, graph: str, padded: int) -> Any:  # noqa: ANN401 - untyped upstream
        tensors, buffers = self.network.tensors[graph], self._buffers(padded)
        binding = self.network.sessions[self.device][graph].io_binding()
        for bind, group in ((binding.bind_input, tensors.inputs), (binding.bind_output, tensors.outputs)):
            for tensor in group:
                array = buffers[tensor.name]
                if self.cupy is None:
                    place, device, address = "cpu", 0, array.ctypes.data
                else:
                    place, device, address = "cuda", self.device, array.data.ptr
                kind = BFLOAT16 if tensor.dtype == "bfloat16" else np.dtype(array.dtype)
                bind(tensor.name, place, device, kind, array.shape, address)
        return binding


def _run_options(graph: int) -> Any:  # noqa: ANN401 - untyped upstream
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))  # -1: none is captured or replayed
    return options
