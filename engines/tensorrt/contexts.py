"""Execution contexts of TensorRT and TensorRT-RTX, together with everything that must live as long as they do."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.specs import GraphTensors
from diffseg.engines.errors import ProviderError
from diffseg.engines.files import atomic_file, write_synced

logger = logging.getLogger(__name__)


@dataclass
class ReadyContext:
    """A context for one graph at one batch size: a captured CUDA graph holds one shape and one set of addresses."""

    context: Any
    scratch_bytes: int
    names: tuple[str, ...]  # of the graph's tensors
    # TensorRT-RTX does not say that a context keeps these alive.
    settings: Any = None
    compiled: Any = None
    graph: Any = None  # the captured CUDA graph
    runs: int = 0

    def bind(self, addresses: dict[str, int]) -> None:
        """Set the device address of each tensor."""
        for name in self.names:
            self.context.set_tensor_address(name, addresses[name])

    def captures(self, stream: int) -> bool:
        """Whether its work can be captured on a stream. TensorRT has no such query, because its engines always can."""
        if not hasattr(type(self.context), "is_stream_capturable"):
            return True
        return bool(self.context.is_stream_capturable(stream))

    def keep_compiled(self, path: Path) -> None:
        """Write the kernels that TensorRT-RTX compiled for this GPU, so that the next process can load them."""
        if self.compiled is None:
            return
        blob = self.compiled.serialize()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                write_synced(temporary, memoryview(blob))
        except OSError as error:
            logger.info("the kernels compiled for this GPU could not be saved to %s: %s", path, error.strerror)


def create_context(
    module: Any,  # noqa: ANN401 - untyped upstream
    engine: Any,  # noqa: ANN401 - untyped upstream
    tensors: GraphTensors,
    addresses: dict[str, int],
    batch: int,
    *,
    cache: Path | None,
    whole_graph: bool = False,
) -> ReadyContext | None:
    """Create a context for one batch size, without scratch memory; None if TensorRT refuses; its logger has the reason.

    Args:
        module: TensorRT or TensorRT-RTX.
        engine: the engine of the graph.
        tensors: the graph's tensors.
        addresses: device address of each tensor.
        batch: the batch size.
        cache: file of kernels that TensorRT-RTX compiled earlier, which need not exist; None for TensorRT.
        whole_graph: let TensorRT-RTX capture CUDA graphs itself.

    Raises:
        ProviderError: the engine does not take this batch size.
    """
    strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
    settings = compiled = None
    if cache is None:
        context = engine.create_execution_context(strategy)
    else:
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        # Compile specialised kernels at once: a graph captured with the general ones would keep those.
        settings.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        if whole_graph:
            settings.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        compiled = settings.create_runtime_cache()
        with suppress(OSError):  # none yet; one that does not fit is not loaded
            compiled.deserialize(cache.read_bytes())
        settings.set_runtime_cache(compiled)
        context = engine.create_execution_context(settings)
    if context is None:
        return None
    for tensor in tensors.inputs:
        if not context.set_input_shape(tensor.name, tensor.shape(batch)):
            raise ProviderError(f"the plan takes no {tensor.name} of shape {tensor.shape(batch)}; build it again")
    names = tuple(tensor.name for tensor in (*tensors.inputs, *tensors.outputs))
    ready = ReadyContext(context, int(context.update_device_memory_size_for_shapes()), names, settings, compiled)
    ready.bind(addresses)
    return ready
