"""Double of ONNX Runtime's GPU sessions: bound addresses are a `Machine`'s, the arithmetic is the CPU provider's."""

import ctypes
import threading

import numpy as np

from tests.engines.doubles.signatures import MisuseError, check_call

# The options that cuda_execution_provider_info.cc and tensorrt_execution_provider_info.cc read; others are refused.
CUDA_OPTIONS = {
    "device_id", "has_user_compute_stream", "user_compute_stream", "gpu_mem_limit", "arena_extend_strategy",
    "cudnn_conv_algo_search", "do_copy_in_default_stream", "cudnn_conv_use_max_workspace", "enable_cuda_graph",
    "cudnn_conv1d_pad_to_nc1d", "tunable_op_enable", "tunable_op_tuning_enable", "tunable_op_max_tuning_duration_ms",
    "enable_skip_layer_norm_strict_mode", "prefer_nhwc", "use_ep_level_unified_stream", "use_tf32", "fuse_conv_bias",
    "sdpa_kernel",
}  # fmt: skip
TENSORRT_OPTIONS = {
    "device_id", "trt_engine_cache_enable", "trt_engine_cache_path", "trt_profile_min_shapes",
    "trt_profile_opt_shapes", "trt_profile_max_shapes", "trt_fp16_enable", "trt_bf16_enable",
}  # fmt: skip
OPTIONS = {"CUDAExecutionProvider": CUDA_OPTIONS, "TensorrtExecutionProvider": TENSORRT_OPTIONS}
KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class GpuOnnxRuntime:
    """Replaces what `onnxruntime` lacks without a GPU; install it with `monkeypatch`.

    Args:
        machine: devices whose memory is bound.
        host: kinds of nodes that the provider leaves to the CPU.
        graphs: whether sessions can capture CUDA graphs.
        fails: what a run says that captures one; None if it succeeds.
    """

    def __init__(self, machine, host=(), graphs=True, fails=None):
        self.machine, self.host, self.graphs, self.fails = machine, set(host), graphs, fails
        self.opened = []

    def install(self, monkeypatch):
        """Put the double in place of ONNX Runtime's session class."""
        import onnxruntime

        self.real, self.session = onnxruntime, onnxruntime.InferenceSession
        names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: print("Failed to load libcudnn.so.9"))  # noqa: T201
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.open)

    def open(self, *arguments, **keywords):
        """Stand for the constructor of a session."""
        check_call(self.session, "InferenceSession", arguments, keywords)
        session = _Session(self, *arguments, **keywords)
        self.opened.append(session)
        return session


class _Session:
    def __init__(self, runtime, path, options=None, providers=None, _=None, enable_fallback=True):
        if enable_fallback:
            raise MisuseError("ONNX Runtime may fall back to the CPU")
        self.runtime, self.providers = runtime, [p if isinstance(p, str) else p[0] for p in providers]
        self.settings = {p[0]: p[1] for p in providers if not isinstance(p, str)}
        for name, settings in self.settings.items():
            if unknown := set(settings) - OPTIONS[name]:
                raise MisuseError(f"{name} has no options {unknown}")
        self.captures = int(self.settings.get("CUDAExecutionProvider", {}).get("enable_cuda_graph", 0))
        if self.captures and not runtime.graphs:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as all compute graph nodes "
                "have not been partitioned to the CUDAExecutionProvider"
            )
        self.options = options
        self.real = runtime.session(path, options, providers=["CPUExecutionProvider"])
        self.graphs = {}  # id: addresses
        self.threads = set()  # that executed; each captures graphs of its own
        self.shapes = []  # of the inputs that were executed
        self.busy = threading.Lock()

    def get_providers(self):
        return self.providers

    def get_inputs(self):
        return self.real.get_inputs()

    def get_outputs(self):
        return self.real.get_outputs()

    def get_provider_graph_assignment_info(self):
        return [
            _Assigned("CPUExecutionProvider" if node.op_type in self.runtime.host else self.providers[0], node)
            for group in self.real.get_provider_graph_assignment_info()
            for node in group.get_nodes()
        ]

    def io_binding(self):
        return _Binding(self)

    def run_with_iobinding(self, *arguments, **keywords):
        check_call(self.runtime.session.run_with_iobinding, "run_with_iobinding", (self, *arguments), keywords)
        if not self.busy.acquire(blocking=False):
            raise MisuseError("two threads executed one session, whose bound memory is the same")
        try:
            self._run(*arguments, **keywords)
        finally:
            self.busy.release()

    def _run(self, iobinding, run_options=None):
        if self.captures:
            iobinding.check_fixed(self._graph_id(run_options), self.graphs)
            if self.runtime.fails and self._graph_id(run_options) != -1:
                raise RuntimeError(self.runtime.fails)
        self.threads.add(threading.get_ident())
        self.shapes += [shape for _, _, _, shape, _ in iobinding.inputs.values()]
        inputs = {name: array.copy() for name, array in iobinding.arrays(iobinding.inputs)}
        for output in self.real.get_outputs():
            if output.name not in iobinding.outputs:
                raise MisuseError(f"the output {output.name} was not bound")
        results = dict(zip((o.name for o in self.real.get_outputs()), self.real.run(None, inputs), strict=True))
        for name, array in iobinding.arrays(iobinding.outputs):
            np.copyto(array, results[name])

    def _graph_id(self, run_options):
        try:
            return int(run_options.get_run_config_entry("gpu_graph_id"))
        except (AttributeError, RuntimeError):
            return 0


class _Assigned:
    def __init__(self, provider, node):
        self.ep_name, self._node = provider, node

    def get_nodes(self):
        return [self._node]


class _Binding:
    def __init__(self, session):
        self.session, self.inputs, self.outputs = session, {}, {}

    def bind_input(self, *arguments, **keywords):
        check_call(self.session.runtime.real.IOBinding.bind_input, "bind_input", (self, *arguments), keywords)
        self._bind(self.inputs, self.session.get_inputs(), *arguments, **keywords)

    def bind_output(self, *arguments, **keywords):
        check_call(self.session.runtime.real.IOBinding.bind_output, "bind_output", (self, *arguments), keywords)
        self._bind(self.outputs, self.session.get_outputs(), *arguments, **keywords)

    def _bind(self, bound, nodes, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        node = next((node for node in nodes if node.name == name), None)
        if node is None:
            raise MisuseError(f"the graph has no tensor {name} there")
        if np.dtype(element_type) != KINDS[node.type]:
            raise MisuseError(f"{name} is {node.type}, {element_type} was bound")
        if device_type not in ("cpu", "cuda") or buffer_ptr is None or tuple(shape[1:]) != tuple(node.shape[1:]):
            raise MisuseError(f"{name} was bound as {device_type} {shape} at {buffer_ptr}")
        if device_type == "cuda" and device_id != int(next(iter(self.session.settings.values()))["device_id"]):
            raise MisuseError(f"{name} was bound on device {device_id}, which is not the session's")
        bound[name] = (device_type, device_id, np.dtype(element_type), tuple(shape), buffer_ptr)

    def arrays(self, bound):
        """The bound arrays."""
        for name, (kind, device, dtype, shape, address) in bound.items():
            if kind == "cuda":
                yield name, self.session.runtime.machine.array(address, shape, dtype, device)
                continue
            size = int(np.prod(shape)) * dtype.itemsize
            buffer = (ctypes.c_uint8 * size).from_address(address)
            yield name, np.frombuffer(buffer, dtype).reshape(shape)

    def check_fixed(self, graph, graphs):
        """A captured graph replays the addresses that it was captured with, whatever is bound now."""
        addresses = {**self.inputs, **self.outputs}
        if any(where[0] != "cuda" for where in addresses.values()):
            raise MisuseError("a CUDA graph was captured with memory of the host")
        if graph == -1:
            return
        captured = graphs.setdefault(graph, addresses)
        if captured != addresses:
            raise MisuseError("a CUDA graph was replayed with other memory or shapes than it was captured with")
