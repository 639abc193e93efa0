"""Double of TensorRT and TensorRT-RTX. A "plan" is an ONNX file, which ONNX Runtime executes on the CPU."""

import threading
import weakref
from pathlib import Path

import numpy as np

from tests.engines.doubles.signatures import MisuseError, ModuleDouble, mirrors, real_module

STRIPPED = b"stripped:"
"""Prefix of a plan without weights, whose engine must be refitted."""
HOST_CODE = b"host code:"
"""Prefix of a version-compatible plan, which the runtime must be allowed to load."""
MAX_BATCH = 4


def make_tensorrt(machine, *, rtx=True, capturable=True, validity="VALID", contexts=True):  # noqa: C901
    """Return a double of the module, on the devices of a `Machine`; its signatures are those of `tensorrt_rtx`.

    Args:
        machine: whose memory and streams are used.
        rtx: whether it stands for TensorRT-RTX; TensorRT lacks some of its names.
        capturable: whether its work can be captured.
        validity: what it says of each plan.
        contexts: whether a context can be created.
    """
    real = real_module("tensorrt_rtx")
    config_class = _make_config(real)
    context_class = _make_context(machine, real, capturable)
    engine_class = _make_engine(machine, real, config_class, context_class if contexts else None)

    @mirrors(real.Runtime)
    class Runtime:
        _constructed = True

        def __init__(self, logger):
            self._log, self._allowed = weakref.ref(logger), False

        @property
        def engine_host_code_allowed(self):
            return self._allowed

        @engine_host_code_allowed.setter
        def engine_host_code_allowed(self, value):
            self._allowed = value

        def get_engine_validity(self, buffer):  # noqa: ARG002
            flags = real.EngineInvalidityDiagnostics
            problems = int(flags.UNSUPPORTED_CC) | int(flags.OLD_CUDA_DRIVER) if validity == "INVALID" else 0
            return real.EngineValidity.__members__[validity], problems

        def deserialize_cuda_engine(self, serialized_engine):
            log, data = _alive(self._log, "the logger"), bytes(serialized_engine)
            stripped = data.startswith(STRIPPED)
            data = data.removeprefix(STRIPPED)
            if data.startswith(HOST_CODE):
                if not self._allowed:
                    log.log(real.ILogger.Severity.ERROR, "host code is not allowed")
                    return None
                data = data.removeprefix(HOST_CODE)
            try:
                return engine_class(self, data, stripped)
            except MisuseError:
                raise
            except Exception as error:  # noqa: BLE001
                log.log(real.ILogger.Severity.ERROR, str(error))
                return None

    @mirrors(real.Refitter)
    class Refitter:
        _constructed = True

        def __init__(self, engine, logger):
            self._engine, self._log, self._file = engine, weakref.ref(logger), None

        def refit_cuda_engine(self):
            _alive(self._log, "the logger")
            if self._file is None:
                return False
            self._engine._load(self._file)
            return True

    @mirrors(real.OnnxParserRefitter)
    class OnnxParserRefitter:
        _constructed = True

        def __init__(self, refitter, logger):
            self._refitter, self._log = refitter, weakref.ref(logger)

        def refit_from_file(self, model):
            _alive(self._log, "the logger")
            self._refitter._file = Path(model).read_bytes()
            return True

    double = ModuleDouble(real, Runtime=Runtime, Refitter=Refitter, OnnxParserRefitter=OnnxParserRefitter)
    if not rtx:
        double._missing = {"EngineValidity", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"}
        del Runtime.get_engine_validity, context_class.is_stream_capturable
        del engine_class.create_runtime_config, context_class.get_runtime_config
        for double_class in (Runtime, context_class, engine_class):
            del double_class.__getattr__
    return double


def _alive(reference, what):
    found = reference()
    if found is None:
        raise MisuseError(f"{what} was dropped while it was in use")
    return found


def _make_config(real):  # noqa: C901
    @mirrors(real.IRuntimeCache)
    class Cache:
        def __init__(self):
            self._data = b""

        def deserialize(self, blob):
            self._data = bytes(blob)
            return self._data.startswith(b"kernels")

        def serialize(self):
            return b"kernels"

    @mirrors(real.IRuntimeConfig)
    class Config:
        def __init__(self):
            self._allocation = real.ExecutionContextAllocationStrategy.STATIC
            self._special = real.DynamicShapesKernelSpecializationStrategy.LAZY
            self._graphs = real.CudaGraphStrategy.DISABLED
            self._cache = None

        @property
        def dynamic_shapes_kernel_specialization_strategy(self):
            return self._special

        @dynamic_shapes_kernel_specialization_strategy.setter
        def dynamic_shapes_kernel_specialization_strategy(self, value):
            self._special = value

        @property
        def cuda_graph_strategy(self):
            return self._graphs

        @cuda_graph_strategy.setter
        def cuda_graph_strategy(self, value):
            self._graphs = value

        def set_execution_context_allocation_strategy(self, strategy=None):
            self._allocation = strategy

        def create_runtime_cache(self):
            return Cache()

        def set_runtime_cache(self, cache=None):
            self._cache = weakref.ref(cache)
            return True

        def get_runtime_cache(self):
            return None if self._cache is None else _alive(self._cache, "the runtime cache")

    return Config


def _make_engine(machine, real, config_class, context_class):  # noqa: C901
    @mirrors(real.EngineInspector)
    class Inspector:
        def get_engine_information(self, format):  # noqa: A002, ARG002
            return '{"Layers": [{"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]}]}'

    @mirrors(real.ICudaEngine)
    class Engine:
        def __init__(self, runtime, data, stripped):
            self._runtime, self._device, self._onnx = runtime, machine.device, None
            self._load(data)
            self._inputs, self._outputs = self._onnx.get_inputs(), self._onnx.get_outputs()
            if stripped:
                self._onnx = None

        def _load(self, data):
            import onnxruntime

            self._onnx = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

        @property
        def num_io_tensors(self):
            return len(self._inputs) + len(self._outputs)

        def get_tensor_name(self, index):
            return (*self._inputs, *self._outputs)[index].name

        @property
        def device_memory_size_v2(self):
            return 4321

        def create_engine_inspector(self):
            return Inspector()

        def create_runtime_config(self):
            return config_class()

        def create_execution_context(self, *arguments, **keywords):
            machine.check_device(self._device)
            given = [*arguments, *keywords.values(), real.ExecutionContextAllocationStrategy.STATIC][0]
            if context_class is None:
                log = _alive(self._runtime._log, "the logger")
                for text in ("no kernel image is available for execution on the device", "context creation failed"):
                    log.log(real.ILogger.Severity.ERROR, text)
                return None
            if self._onnx is None:
                raise MisuseError("a context was created of an engine without weights")
            return context_class(self, given)

    return Engine


class _Launch:
    """One execution, with the addresses that it had when it was enqueued."""

    def __init__(self, machine, context):
        self.machine, self.device = machine, context._engine._device
        self.context = weakref.ref(context)
        self.onnx = context._engine._onnx
        self.inputs = [
            (node, context._addresses[node.name], context._shapes[node.name]) for node in context._engine._inputs
        ]
        batch = self.inputs[0][2][0]
        self.outputs = [
            (node, context._addresses[node.name], (batch, *node.shape[1:])) for node in context._engine._outputs
        ]
        self.scratch = context._memory

    def _arrays(self, items):
        kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
        return [
            (node.name, self.machine.array(address, shape, kinds[node.type], self.device))
            for node, address, shape in items
        ]

    def check(self):
        """Raise unless everything that was handed over is still there."""
        context = _alive(self.context, "the context of enqueued or captured work")
        context._check_alive()
        self._arrays(self.inputs), self._arrays(self.outputs)
        self.machine.memory(*self.scratch, self.device)

    def __call__(self):
        self.check()
        found = self.onnx.run(None, {name: array.copy() for name, array in self._arrays(self.inputs)})
        self.machine.memory(*self.scratch, self.device)[:] = 0x5A  # nobody else's results may lie there
        for (_, array), result in zip(self._arrays(self.outputs), found, strict=True):
            np.copyto(array, result)


def _make_context(machine, real, capturable):  # noqa: C901
    @mirrors(real.IExecutionContext)
    class Context:
        def __init__(self, engine, given):
            self._engine, self._shapes, self._addresses = engine, {}, {}
            self._memory, self._needed, self._flushed, self._asked = None, None, False, False
            self._config = self._cache = None
            self._strategy = given
            if hasattr(given, "_allocation"):
                self._strategy, self._config, self._cache = given._allocation, weakref.ref(given), given._cache
            self._busy = threading.Lock()

        def _check_alive(self):
            _alive(self._engine._runtime._log, "the logger")
            if self._config is not None:
                _alive(self._config, "the runtime config")
            if self._cache is not None:
                _alive(self._cache, "the runtime cache")

        def set_input_shape(self, name, shape):
            node = next((node for node in self._engine._inputs if node.name == name), None)
            if node is None:
                raise MisuseError(f"{name} is no input")
            if len(shape) != len(node.shape) or tuple(shape[1:]) != tuple(node.shape[1:]):
                raise MisuseError(f"{name} has the shape {node.shape}, {shape} was set")
            if not 1 <= shape[0] <= MAX_BATCH:
                return False
            self._shapes[name], self._flushed, self._needed = tuple(shape), False, None
            return True

        def set_tensor_address(self, name, memory):
            if name not in {node.name for node in (*self._engine._inputs, *self._engine._outputs)}:
                raise MisuseError(f"{name} is no tensor of this engine")
            machine.memory(memory, 1, self._engine._device)
            self._addresses[name] = int(memory)
            return True

        def update_device_memory_size_for_shapes(self):
            if len(self._shapes) < len(self._engine._inputs):
                raise MisuseError("the scratch memory was asked for before the shapes of the inputs were set")
            (name, shape), *_ = self._shapes.items()
            self._needed = shape[0] * 1000 * len(name)  # graphs need different amounts
            return self._needed

        def set_device_memory(self, memory, size):
            if self._strategy != real.ExecutionContextAllocationStrategy.USER_MANAGED:
                raise MisuseError("scratch memory was given to a context that has its own")
            if self._needed is None:
                raise MisuseError("scratch memory was given before its size was asked for")
            if memory % 256 or size < self._needed:
                raise MisuseError(f"scratch memory of {size} bytes at {memory:#x}; needed are {self._needed}, aligned")
            machine.memory(memory, size, self._engine._device)
            self._memory, self._flushed = (int(memory), int(size)), False

        def is_stream_capturable(self, stream):
            machine.find_stream(stream)
            self._asked = True
            return capturable

        def get_runtime_config(self):
            if self._config is None:
                raise MisuseError("this context was created without a runtime config")
            return _alive(self._config, "the runtime config")

        def execute_async_v3(self, stream_handle):
            if not self._busy.acquire(blocking=False):
                raise MisuseError("two threads executed one context")
            try:
                self._enqueue(machine.find_stream(stream_handle))
            finally:
                self._busy.release()
            return True

        def _enqueue(self, stream):
            machine.check_device(self._engine._device)
            if stream.device != self._engine._device:
                raise MisuseError("the stream belongs to another device than the engine")
            missing = [
                node.name
                for node in (*self._engine._inputs, *self._engine._outputs)
                if node.name not in self._addresses
            ]
            if missing or self._needed is None or self._memory is None:
                raise MisuseError(f"executed without {missing or 'scratch memory'}")
            self._check_alive()
            work = _Launch(machine, self)
            work.check()
            if stream.recorded is not None:
                if hasattr(Context, "is_stream_capturable") and not (self._asked and capturable):
                    raise MisuseError("captured, though it was not asked or denied that the stream can be captured")
                if not self._flushed:
                    raise MisuseError("captured before the first execution with these shapes and this memory")
            for other in list(machine.streams.values()):
                if other is not stream and any(getattr(item, "scratch", None) == self._memory for item in other.work):
                    raise MisuseError("two streams use the same scratch memory at the same time")
            self._flushed = True
            machine.events.append(("execute", stream.pointer))
            stream.submit(work)

    return Context
