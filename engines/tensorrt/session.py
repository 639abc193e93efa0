"""One pass at a time through the engines of a plan.

The encoder writes its latent into the UNet's input buffer, and the attention stays in the UNet's output buffers. A
session keeps a context and a captured CUDA graph per batch size. Its contexts share the buffers and one scratch buffer,
since no two of them run at the same time. In the form `queries_keys`, the kernels of the averaged attention are part of
the UNet's launch and of its captured graph.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import PlanError, ProviderError
from diffseg.engines.providers.cuda import device_errors
from diffseg.engines.providers.forms import storage_type
from diffseg.engines.tensorrt.contexts import ReadyContext, create_context

if TYPE_CHECKING:
    from diffseg.engines.bundle.specs import GraphTensors, TensorSpec
    from diffseg.engines.tensorrt.execute import NativeNetwork

logger = logging.getLogger(__name__)


def chained_tensors(graphs: dict[str, GraphTensors]) -> list[TensorSpec]:
    """Return every tensor of both graphs once. The encoder's latent is also the UNet's input.

    Raises:
        PlanError: the latent that leaves the encoder is not the one that the UNet takes.
    """
    encoder, unet = graphs[ENCODER], graphs[UNET]
    if encoder.outputs != unet.inputs:
        raise PlanError(f"the encoder gives {encoder.outputs}, the UNet takes {unet.inputs}; export the bundle again")
    return [*encoder.inputs, *unet.inputs, *unet.outputs]


@dataclass
class _Memory:
    """Device memory of a session."""

    capacity: int = 0  # largest batch that the arrays hold
    arrays: dict[str, Any] = field(default_factory=dict)  # by tensor name
    views: dict[int, dict[str, Any]] = field(default_factory=dict)  # batch: tensor name: first rows of the array
    pinned: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)  # batch: images on their way to the GPU
    scratch: Any = None


class NativeSession:
    """A stream of one device, its buffers and its contexts; one pass at a time.

    Args:
        network: the network whose engines are executed.
        device: index of the GPU; it must be current whenever the session is used.
    """

    def __init__(self, network: NativeNetwork, device: int) -> None:
        self.network = network
        self.device = device
        self.cupy = network.cupy
        self.stream = network.cupy.cuda.Stream(non_blocking=True)
        self._memory = _Memory()
        self._ready: dict[tuple[str, int, bool], ReadyContext] = {}

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8, on the host or on the GPU → latent on the GPU, which the next pass overwrites."""
        tensors, batch = self.network.tensors[ENCODER], len(images)
        with device_errors(self.cupy, f"a batch of {batch}"):
            buffers = self._buffers(batch)
            self._prepare_all(batch)
            self._upload(images, buffers[tensors.inputs[0].name], batch)
            self._launch(ENCODER, batch)
        return buffers[tensors.outputs[0].name]

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → attention on the GPU, finest first, which the next pass overwrites."""
        tensors, batch = self.network.tensors[UNET], len(latent)
        with device_errors(self.cupy, f"a batch of {batch}"):
            buffers = self._buffers(batch)
            own = buffers[tensors.inputs[0].name]
            if latent is not own:  # otherwise it is already in place
                own[...] = self.cupy.asarray(latent)
            self._launch(UNET, batch)
        averaging = self.network.averaging
        outputs = tensors.outputs if averaging is None else averaging.averaged
        return [buffers[output.name] for output in outputs]

    def wait(self) -> None:
        """Wait until the stream has finished its work."""
        with device_errors(self.cupy, "the network"):
            self.stream.synchronize()

    def prepare(self, batch: int) -> None:
        """Create the contexts of a batch size, so that a plan that cannot run on this GPU fails now.

        Raises:
            ProviderError: TensorRT refuses to create a context.
            DeviceMemoryError: the GPU's memory is full.
        """
        with device_errors(self.cupy, f"a batch of {batch}"):
            self._prepare_all(batch)

    def _buffers(self, batch: int) -> dict[str, Any]:
        """Return arrays of every tensor at a batch size. The encoder's output and the UNet's input are one array."""
        if batch > self._memory.capacity:
            self._grow(batch)
        if batch not in self._memory.views:
            self._memory.views[batch] = {name: array[:batch] for name, array in self._memory.arrays.items()}
        return self._memory.views[batch]

    def _grow(self, batch: int) -> None:
        """Allocate arrays for a larger batch, which smaller ones share; captured graphs point into the old ones."""
        memory = self._memory
        self.stream.synchronize()
        memory.capacity, memory.arrays, memory.views = 0, {}, {}  # free the old ones first: both might not fit
        averaging = self.network.averaging
        own = () if averaging is None else averaging.buffers
        memory.arrays = {
            tensor.name: self.cupy.empty(tensor.shape(batch), storage_type(tensor))
            for tensor in (*chained_tensors(self.network.tensors), *own)
        }
        memory.capacity = batch
        for ready in self._ready.values():
            ready.graph = None
            ready.bind(self._addresses())

    def _addresses(self) -> dict[str, int]:
        return {name: array.data.ptr for name, array in self._memory.arrays.items()}

    def _upload(self, images: Any, target: Any, batch: int) -> None:  # noqa: ANN401
        if not isinstance(images, np.ndarray):
            target[...] = self.cupy.asarray(images)
            return
        if batch not in self._memory.pinned:
            memory = self.cupy.cuda.alloc_pinned_memory(target.nbytes)
            self._memory.pinned[batch] = np.frombuffer(memory, target.dtype, target.size).reshape(target.shape)
        else:
            self.stream.synchronize()  # the previous pass may still read the page-locked images
        pinned = self._memory.pinned[batch]
        pinned[...] = images  # only page-locked memory is copied asynchronously
        target.set(pinned, stream=self.stream)

    def _launch(self, graph: str, batch: int) -> None:
        ready = self._prepare(graph, batch)
        if ready.graph is not None:
            ready.graph.launch(self.stream)
            return
        self._execute(graph, ready, batch)
        ready.runs += 1
        if ready.runs == 1:
            ready.keep_compiled(self.network.runtime_cache_path(self.device))
        if self.network.capture:
            self._capture(graph, ready, batch)

    def _prepare_all(self, batch: int) -> None:
        """Create both contexts before either is captured: the second may need more scratch memory than the first."""
        for graph in (ENCODER, UNET):
            self._prepare(graph, batch)

    def _prepare(self, graph: str, batch: int) -> ReadyContext:
        network = self.network
        key = graph, batch, network.whole_graph
        if key not in self._ready:
            rtx = network.provider == "tensorrt-rtx"
            self._buffers(batch)
            ready = create_context(
                network.module,
                network.engines[self.device][graph],
                network.tensors[graph],
                self._addresses(),
                batch,
                cache=network.runtime_cache_path(self.device) if rtx else None,
                whole_graph=network.whole_graph,
            )
            if ready is None:
                raise ProviderError(f"{network.provider} cannot execute {graph}: {network.log.specific_error()}")
            self._ready[key] = ready
            self._share_scratch(ready)
        return self._ready[key]

    def _share_scratch(self, new: ReadyContext) -> None:
        """Give every context the same scratch memory. If it grows, captured graphs of the old one are dropped."""
        memory, needed = self._memory, new.scratch_bytes
        if memory.scratch is None or memory.scratch.nbytes < needed:
            self.stream.synchronize()
            memory.scratch = None  # free the old one first: both might not fit
            memory.scratch = self.cupy.empty(max(needed, 1), np.uint8)
            for ready in self._ready.values():
                ready.graph = None
                ready.context.set_device_memory(memory.scratch.data.ptr, memory.scratch.nbytes)
        new.context.set_device_memory(memory.scratch.data.ptr, memory.scratch.nbytes)

    def _execute(self, graph: str, ready: ReadyContext, batch: int) -> None:
        """Launch a graph, and after the UNet the kernels of the averaged attention if its form needs them."""
        if not ready.context.execute_async_v3(self.stream.ptr):
            network = self.network
            raise ProviderError(f"{network.provider} failed in {graph}: {network.log.specific_error()}")
        averaging = self.network.averaging
        if graph == UNET and averaging is not None:
            with self.stream:
                averaging.run(self._buffers(batch))

    def _capture(self, graph: str, ready: ReadyContext, batch: int) -> None:
        """Record the launches once; if that is not possible, they are launched one by one."""
        network = self.network
        if not ready.captures(self.stream.ptr):
            network.capture, network.whole_graph = False, True
            self.stream.synchronize()  # the contexts that are dropped may still have work there
            self._ready.clear()
            logger.warning(
                "%s: the plan allocates memory at run time, so %s captures CUDA graphs itself; build the plan again",
                graph,
                network.provider,
            )
            return
        self.stream.synchronize()
        try:
            self.stream.begin_capture()
            try:
                self._execute(graph, ready, batch)
            finally:
                captured = self.stream.end_capture()
            ready.graph = captured
        except (ProviderError, self.cupy.cuda.runtime.CUDARuntimeError) as error:
            logger.warning("%s: no CUDA graph could be captured (%s); kernels are launched one by one", graph, error)
            network.capture = False
