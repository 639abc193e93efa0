"""ONNX Runtime: executes a bundle's graphs as they are."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import BundleError, MissingPackageError, ProviderError
from diffseg.engines.packages import install_command
from diffseg.engines.providers.network import SessionPool
from diffseg.engines.providers.operators import Operator

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.bundle.specs import GraphTensors
    from numpy.typing import NDArray


LARGE_WEIGHTS = 256 << 20
"""A graph with more bytes of weights is executed as it is: see `load_session`."""

Memory = dict[tuple[str, int], list["NDArray[np.float32]"]]
"""Outputs, by graph and batch size."""


class OrtNetwork:
    """The two graphs of a bundle on the CPU. Threads may share it.

    Args:
        bundle: what to execute.
        threads: CPU threads of one operator; None lets ONNX Runtime take every core.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: an older bundle in bf16, which has no graphs for CPUs.
        BundleError: a graph can't be read, or its tensors are not those of the manifest.
    """

    provider = "cpu"
    overlaps = False
    lends = True

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        manifest = bundle.manifest
        if manifest.precision == "bf16" and manifest.graphs[UNET].cpu_file is None:
            raise ProviderError(
                f"bundle {manifest.name!r} is bf16, for which ONNX Runtime has no CPU kernels, and has no graphs "
                "for CPUs; export it again"
            )
        self.tensors = {name: graph.tensors for name, graph in manifest.graphs.items()}
        self._load = {
            name: partial(_session, bundle.cpu_path(name), self.tensors[name], threads=threads)
            for name in (ENCODER, UNET)
        }
        self._sessions = {name: load() for name, load in self._load.items()}
        # Graph, start and end in ns of each call, while operators are recorded.
        self._calls: list[tuple[str, int, int]] | None = None
        self._pool = SessionPool(lambda: OrtSession(self))

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent: the posterior mean times the scaling factor."""
        return self.run(ENCODER, images, {})[0]

    def attend(self, latent: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Latent → one (B, n², n²) float32 attention a resolution, finest first; the arrays are the caller's."""
        return self.run(UNET, latent, {})

    def session(self) -> AbstractContextManager[OrtSession]:
        """Take a session with memory of its own for the results."""
        return self._pool.take()

    @contextmanager
    def record_operators(self) -> Iterator[list[Operator]]:
        """Record the operators of every call within the block, with sessions that are loaded for it.

        The plain sessions make room for them, and they stay afterwards: their profiler is off then.
        """
        operators: list[Operator] = []
        with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
            self._sessions.clear()
            self._sessions.update({name: load(profile=str(Path(folder) / name)) for name, load in self._load.items()})
            calls: list[tuple[str, int, int]] = []
            self._calls = calls
            try:
                yield operators
            finally:
                self._calls = None
                files = {name: Path(session.end_profiling()) for name, session in self._sessions.items()}
            for name, file in files.items():
                spans = [(start, end) for graph, start, end in calls if graph == name]
                operators += read_operators(name, json.loads(file.read_text(encoding="utf-8")), spans)

    def run(self, graph: str, value: NDArray[Any], memory: Memory) -> list[NDArray[np.float32]]:
        """Run a graph; its outputs lie in `memory`, where there are such already."""
        tensors, session = self.tensors[graph], self._sessions[graph]
        batch = len(value)
        binding = session.io_binding()
        binding.bind_cpu_input(tensors.inputs[0].name, np.ascontiguousarray(value))
        if (graph, batch) not in memory:
            memory[graph, batch] = [np.empty(output.shape(batch), output.dtype) for output in tensors.outputs]
        results = memory[graph, batch]
        for output, result in zip(tensors.outputs, results, strict=True):
            # Written in place: a 4096² map is 64 MB that need not be copied out of the session.
            binding.bind_output(output.name, "cpu", 0, result.dtype, result.shape, result.ctypes.data)
        start = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        if self._calls is not None:
            self._calls.append((graph, start, time.perf_counter_ns()))
        return results


class OrtSession:
    """Memory for the results of one pass at a time: new pages for 64 MB would cost more than filling them."""

    def __init__(self, network: OrtNetwork) -> None:
        self._network = network
        self._memory: Memory = {}

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode images; the latent is the session's own."""
        return self._network.run(ENCODER, images, self._memory)[0]

    def attend(self, latent: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Attend; the maps are the session's own, to write into until its next pass."""
        return self._network.run(UNET, latent, self._memory)

    def wait(self) -> None:
        """Return at once: `encode` and `attend` don't return before they are done."""


def session_options(*, threads: int | None = None) -> Any:  # noqa: ANN401 - untyped upstream
    """ONNX Runtime options shared by every session of ours."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # A pattern makes the second run allocate everything once more, in one block, beside what the first one left.
    options.enable_mem_pattern = False
    # In the order of the file, but for nodes that were fused: there a map is added to its sum as soon as it is there.
    # Depth first from the outputs, which is the default, all maps wait for the last one.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return options


@cache
def _share_arena() -> bool:
    """Let all sessions take their memory from one arena, which grows by what is asked for.

    The encoder and the UNet take turns: with an arena each, of powers of two, they would hold 0.9 GB more.
    """
    ort = import_onnxruntime()
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    settings = {
        "max_mem": 0,
        "arena_extend_strategy": 1,
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(settings))
    except Exception:  # the process has one already, which is not ours to judge  # noqa: BLE001
        return False
    return True


def read_operators(graph: str, events: list[dict[str, Any]], calls: list[tuple[int, int]]) -> list[Operator]:
    """ONNX Runtime's profile of a session → its operators, on the clock of our own calls.

    The profile counts microseconds from a start on a clock that depends on the platform (the wall clock on Linux,
    which may be set meanwhile). So each `model_run` is laid in the middle of the call that made it: the error is
    half of what the call spent outside of it, well under a millisecond.

    Args:
        graph: whose session it was.
        events: the profile, in Chrome's trace format.
        calls: start and end of each call in `time.perf_counter_ns`, in order.

    Raises:
        ProviderError: the profile has not one `model_run` a call.
    """
    runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")
    if len(runs) != len(calls):
        raise ProviderError(
            f"onnxruntime {import_onnxruntime().__version__} profiled {len(runs)} runs of {graph}, expected "
            f"{len(calls)}: its profile has changed; no operators can be shown"
        )
    nodes = [e for e in events if e.get("cat") == "Node" and "op_name" in e.get("args", {})]
    operators = []
    for (ts, dur), (start, end) in zip(runs, calls, strict=True):
        first = start + max(end - start - dur * 1000, 0) // 2
        for node in nodes:
            if ts <= node["ts"] <= ts + dur:
                begin = min(first + (node["ts"] - ts) * 1000, end)
                name = node["name"].removesuffix("_kernel_time")
                duration = min(node["dur"] * 1000, end - begin)
                operators.append(Operator(graph, name, node["args"]["op_name"], begin, duration))
    return operators


def import_onnxruntime() -> Any:  # noqa: ANN401 - untyped upstream
    """Import onnxruntime, or say how to install it.

    Since 1.29 its wheels for Linux and macOS report models and machine to Microsoft, and keep an id of the device on
    the disk. That is off here, unless `ORT_DISABLE_TELEMETRY=0` asks for it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError(f"onnxruntime is not installed: {install_command('cpu')}") from None
    return onnxruntime


def load_session(path: Path, *, threads: int | None = None, profile: str | None = None) -> Any:  # noqa: ANN401
    """Load a graph onto the CPU.

    An optimised graph is up to a tenth faster, by convolutions in blocks of channels, for which the weights are
    brought into another order, and by half-precision weights that are cast when they are loaded. For a full-size UNet
    both take ten times what they save in a run, and as much memory again as the weights. So such a graph is executed
    as it is: its weights stay in their file, which processes share, and a `Graph.cpu_file` casts each as it needs it.

    Args:
        path: an .onnx file.
        threads: of one operator; None lets ONNX Runtime take every core.
        profile: prefix of the file that operators are recorded in.
    """
    options = session_options(threads=threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    # A buffer that is planned for a later result is not given back in between: 0.8 GB in Stable Diffusion 1.5.
    options.enable_mem_reuse = False
    if _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    ort = import_onnxruntime()
    if _is_large(path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _is_large(path: Path) -> bool:
    """Whether a graph is executed as it is; its external data are named after it, and `Graph.cpu_file` shares them."""
    data = path.parent.glob(f"{path.name.partition('.')[0]}*.data")
    return sum(file.stat().st_size for file in data) > LARGE_WEIGHTS


def _session(path: Path, tensors: GraphTensors, **options: Any) -> Any:  # noqa: ANN401
    version = import_onnxruntime().__version__
    try:
        session = load_session(path, **options)
    except Exception as error:  # onnxruntime raises a type of its own for each status code  # noqa: BLE001
        reason = str(error).strip().splitlines()[0]
        raise BundleError(f"onnxruntime {version} cannot load {path}: {reason}; run `diffseg verify`") from None
    check_tensors(session, tensors, path)
    return session


def check_tensors(session: Any, tensors: GraphTensors, path: Path) -> None:  # noqa: ANN401 - untyped upstream
    """Hold the inputs and outputs of a session against the manifest's.

    Raises:
        BundleError: they differ.
    """
    kinds = {"uint8": "tensor(uint8)", "float16": "tensor(float16)", "float32": "tensor(float)"}
    actual, declared = (*session.get_inputs(), *session.get_outputs()), (*tensors.inputs, *tensors.outputs)
    found = [(v.name, v.type, [d if isinstance(d, int) else -1 for d in v.shape]) for v in actual]  # -1: dynamic
    expected = [(t.name, kinds[t.dtype], t.onnx_shape()) for t in declared]
    if found != expected:
        raise BundleError(f"{path} has tensors {found}, the manifest says {expected}; export the bundle again")
