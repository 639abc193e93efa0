"""Execute TensorRT and TensorRT-RTX plans directly.

CuPy provides memory and streams. The encoder writes its latent into the UNet's input buffer, and the attention stays in
the UNet's output buffers. Each session keeps buffers, a context and a captured CUDA graph per batch size. All contexts
of a session share one scratch buffer, since no two of them run at the same time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import PlanError, ProviderError
from diffseg.engines.files import atomic_file, cache_folder, write_synced
from diffseg.engines.providers.cuda import device_errors, import_cupy
from diffseg.engines.providers.network import SessionPool
from diffseg.engines.tensorrt.build import import_engine, make_logger
from diffseg.engines.tensorrt.plan import Plan

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.bundle.specs import GraphTensors, TensorSpec

logger = logging.getLogger(__name__)


class NativeNetwork:
    """The two engines of a plan on the GPU. Threads may share it: each pass has a session of its own.

    Args:
        bundle: whose plan it is.
        plan: what `find_plan` found: its record fits this machine.
        capture: replay each batch size as a CUDA graph, which spares the launches of some hundred kernels.

    Raises:
        MissingPackageError: TensorRT or CuPy is not installed.
        PlanError: the plan is damaged, TensorRT refuses it, or its tensors are not those of the manifest.
        DeviceMemoryError: it does not fit into the GPU's memory.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, plan: Plan, *, capture: bool = True) -> None:
        spec = plan.record.spec
        self.provider: str = spec.engine
        self.plan = plan
        self.capture = capture
        self.module, self.cupy = import_engine(spec.engine), import_cupy()
        self.tensors = {name: graph.tensors for name, graph in bundle.manifest.graphs.items()}
        self._log = make_logger(self.module)
        self._runtime = self.module.Runtime(self._log)
        with device_errors(self.cupy, "loading the plan"):
            self.cupy.cuda.Device(0).use()
            self.engines = {name: self._load(bundle, name) for name in (ENCODER, UNET)}
        self._pool = SessionPool(lambda: NativeSession(self))

    @contextmanager
    def session(self) -> Iterator[NativeSession]:
        """Take a session; CuPy's work of this thread goes through its stream meanwhile."""
        with device_errors(self.cupy, "the masks"):  # what CuPy raises while it merges is translated here
            self.cupy.cuda.Device(0).use()  # a thread that is new to CUDA has no device yet
            with self._pool.take() as session, session.stream:
                yield session

    def _load(self, bundle: Bundle, graph: str) -> Any:  # noqa: ANN401 - untyped upstream
        engine = self._runtime.deserialize_cuda_engine(self.plan.read(graph))
        if engine is None:
            raise PlanError(
                f"{self.provider} refuses {self.plan.path(graph)}: {self._log.first_error()}; build it again"
            )
        if self.plan.record.spec.options.strip_weights:
            refitter = self.module.Refitter(engine, self._log)
            parser = self.module.OnnxParserRefitter(refitter, self._log)
            if not parser.refit_from_file(str(bundle.graph_path(graph))) or not refitter.refit_cuda_engine():
                raise PlanError(f"{self.provider} cannot put the weights into {graph}: {self._log.first_error()}")
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        declared = self.tensors[graph]
        expected = {tensor.name for tensor in (*declared.inputs, *declared.outputs)}
        if found != expected:
            raise PlanError(
                f"{self.plan.path(graph)} has tensors {sorted(found)}, the manifest says {sorted(expected)}; "
                "build it again"
            )
        return engine

    def runtime_cache_path(self) -> Path:
        """File of the kernels that TensorRT-RTX compiled on this GPU: beside the plan, else in the cache folder."""
        gpu = self.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        name = f"runtime-{''.join(c if c.isalnum() else '-' for c in gpu)}.cache"
        if os.access(self.plan.folder, os.W_OK):
            return self.plan.folder / name
        return cache_folder() / "plans" / self.plan.folder.name / name


def chained_tensors(graphs: dict[str, GraphTensors]) -> list[TensorSpec]:
    """Every tensor of both graphs, once: the encoder's latent is the UNet's.

    Raises:
        PlanError: the latent that leaves the encoder is not the one that the UNet takes.
    """
    encoder, unet = graphs[ENCODER], graphs[UNET]
    if encoder.outputs != unet.inputs:
        raise PlanError(f"the encoder gives {encoder.outputs}, the UNet takes {unet.inputs}; export the bundle again")
    return [*encoder.inputs, *unet.inputs, *unet.outputs]


@dataclass
class _Ready:
    """What one graph needs at one batch size."""

    context: Any
    scratch_bytes: int
    graph: Any = None  # the captured CUDA graph
    runs: int = 0


@dataclass
class _Memory:
    """Device memory of a session."""

    buffers: dict[int, dict[str, Any]] = field(default_factory=dict)  # batch: tensor name: array
    pinned: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)  # batch: images on their way to the GPU
    scratch: Any = None


class NativeSession:
    """A stream, its buffers and its contexts; one pass at a time."""

    def __init__(self, network: NativeNetwork) -> None:
        self.network = network
        self.cupy = network.cupy
        self.stream = network.cupy.cuda.Stream(non_blocking=True)
        self._memory = _Memory()
        self._ready: dict[tuple[str, int], _Ready] = {}

    def encode(self, images: Any) -> Any:  # noqa: ANN401
        """(B, H, W, 3) uint8, on the host or on the GPU → latent on the GPU; the session's own memory."""
        tensors, batch = self.network.tensors[ENCODER], len(images)
        with device_errors(self.cupy, f"a batch of {batch}"):
            buffers = self._buffers(batch)
            self._upload(images, buffers[tensors.inputs[0].name], batch)
            self._launch(ENCODER, batch)
        return buffers[tensors.outputs[0].name]

    def attend(self, latent: Any) -> list[Any]:  # noqa: ANN401
        """Latent → attention on the GPU, finest first; the session's own memory."""
        tensors, batch = self.network.tensors[UNET], len(latent)
        with device_errors(self.cupy, f"a batch of {batch}"):
            buffers = self._buffers(batch)
            own = buffers[tensors.inputs[0].name]
            if latent is not own:  # else the encoder wrote it there
                own[...] = self.cupy.asarray(latent)
            self._launch(UNET, batch)
        return [buffers[output.name] for output in tensors.outputs]

    def wait(self) -> None:
        """Return when the stream is empty."""
        with device_errors(self.cupy, "the network"):
            self.stream.synchronize()

    def _buffers(self, batch: int) -> dict[str, Any]:
        """Arrays of every tensor at a batch size. The latent is one array: an output here, an input there."""
        if batch not in self._memory.buffers:
            self._memory.buffers[batch] = {
                tensor.name: self.cupy.empty(tensor.shape(batch), tensor.dtype)
                for tensor in chained_tensors(self.network.tensors)
            }
        return self._memory.buffers[batch]

    def _upload(self, images: Any, target: Any, batch: int) -> None:  # noqa: ANN401
        if not isinstance(images, np.ndarray):
            target[...] = self.cupy.asarray(images)
            return
        if batch not in self._memory.pinned:
            memory = self.cupy.cuda.alloc_pinned_memory(target.nbytes)
            self._memory.pinned[batch] = np.frombuffer(memory, target.dtype, target.size).reshape(target.shape)
        pinned = self._memory.pinned[batch]
        pinned[...] = images  # only page-locked memory is copied without the host waiting for it
        target.set(pinned, stream=self.stream)

    def _launch(self, graph: str, batch: int) -> None:
        ready = self._prepare(graph, batch)
        if ready.graph is not None:
            ready.graph.launch(self.stream)
            return
        self._execute(graph, ready)
        ready.runs += 1
        if ready.runs == 1:
            self._keep_compiled(ready)
        if self.network.capture:
            self._capture(graph, ready)

    def _prepare(self, graph: str, batch: int) -> _Ready:
        """Context for a graph at a batch size: a captured CUDA graph is true to one context with one shape."""
        key = graph, batch
        if key not in self._ready:
            context, scratch_bytes = self._context(graph, batch)
            self._ready[key] = _Ready(context, scratch_bytes)
            self._lend_scratch(scratch_bytes, self._ready[key])
        return self._ready[key]

    def _context(self, graph: str, batch: int) -> tuple[Any, int]:
        network, module = self.network, self.network.module
        engine, strategy = network.engines[graph], module.ExecutionContextAllocationStrategy.USER_MANAGED
        if network.provider == "tensorrt-rtx":
            settings = engine.create_runtime_config()
            settings.set_execution_context_allocation_strategy(strategy)
            # Specialised kernels are compiled now: a graph captured of the general ones would keep those.
            eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
            settings.dynamic_shapes_kernel_specialization_strategy = eager
            compiled = settings.create_runtime_cache()
            with suppress(OSError):  # none yet; one that doesn't fit is not loaded
                compiled.deserialize(network.runtime_cache_path().read_bytes())
            settings.set_runtime_cache(compiled)
            context = engine.create_execution_context(settings)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise ProviderError(f"{network.provider} cannot execute {graph}: {network._log.first_error()}")  # noqa: SLF001
        buffers, declared = self._buffers(batch), network.tensors[graph]
        for tensor in declared.inputs:
            context.set_input_shape(tensor.name, tensor.shape(batch))
        for tensor in (*declared.inputs, *declared.outputs):
            context.set_tensor_address(tensor.name, buffers[tensor.name].data.ptr)
        return context, int(context.update_device_memory_size_for_shapes())

    def _lend_scratch(self, needed: int, new: _Ready) -> None:
        """Give every context the same scratch memory; where it has to grow, captured graphs point into the old one."""
        memory = self._memory
        if memory.scratch is None or memory.scratch.nbytes < needed:
            self.stream.synchronize()
            memory.scratch = None  # the old goes first: both might not fit
            memory.scratch = self.cupy.empty(max(needed, 1), np.uint8)
            for ready in self._ready.values():
                ready.graph = None
                ready.context.set_device_memory(memory.scratch.data.ptr, memory.scratch.nbytes)
        new.context.set_device_memory(memory.scratch.data.ptr, memory.scratch.nbytes)

    def _execute(self, graph: str, ready: _Ready) -> None:
        if not ready.context.execute_async_v3(self.stream.ptr):
            network = self.network
            raise ProviderError(f"{network.provider} failed in {graph}: {network._log.first_error()}")  # noqa: SLF001

    def _capture(self, graph: str, ready: _Ready) -> None:
        """Record the launches once; where that can't be done, they are made one by one."""
        self.stream.synchronize()
        try:
            self.stream.begin_capture()
            try:
                self._execute(graph, ready)
            finally:
                captured = self.stream.end_capture()
            ready.graph = captured
        except (ProviderError, self.cupy.cuda.runtime.CUDARuntimeError) as error:
            logger.warning("%s: no CUDA graph could be captured (%s); kernels are launched one by one", graph, error)
            self.network.capture = False

    def _keep_compiled(self, ready: _Ready) -> None:
        """Write what TensorRT-RTX compiled for this GPU, so that the next process need not compile it again."""
        if self.network.provider != "tensorrt-rtx":
            return
        path = self.network.runtime_cache_path()
        blob = ready.context.get_runtime_config().get_runtime_cache().serialize()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                write_synced(temporary, memoryview(blob))
        except OSError as error:
            logger.info("what was compiled for this GPU could not be kept in %s: %s", path, error.strerror)
