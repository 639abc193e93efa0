"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import BundleError, MissingPackageError, ProviderError
from diffseg.engines.packages import install_command
from diffseg.engines.providers.network import Network, SessionPool
from diffseg.engines.providers.operators import Operator
from diffseg.engines.text import first_line

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from diffseg.engines.bundle.specs import GraphTensors
    from numpy.typing import NDArray


LARGE_WEIGHTS = 256 << 20
"""Bytes of weights above which a graph is executed without optimisation: see `load_session`."""

Call = tuple[str, int, int]
"""A call of a graph: its name, and start and end in nanoseconds of `time.perf_counter_ns`."""


class OrtNetwork(Network):
    """The two graphs of a bundle on the CPU. Threads may share it.

    Args:
        bundle: the bundle to execute.
        threads: CPU threads per operator; None: one per core.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: the bundle is bf16 and has no graphs for CPUs.
        BundleError: a graph can't be read, or its tensors differ from the manifest.
    """

    provider = "cpu"
    device = "cpu"

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
        with ThreadPoolExecutor(len(self._load)) as pool:  # ONNX Runtime optimises a graph on one core
            graphs = dict(zip(self._load, pool.map(lambda load: load(), self._load.values()), strict=True))
        self._pool = self._pool_on(graphs)

    def session(self) -> AbstractContextManager[OrtSession]:
        """Take a session, which has its own memory for results."""
        return self._pool.take()

    @contextmanager
    def record_operators(self) -> Iterator[list[Operator]]:
        """Record the operators of every call within the block.

        Recording needs sessions with a profiler, which replace the present ones. They stay afterwards, with the
        profiler switched off.
        """
        operators: list[Operator] = []
        with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
            self._pool = self._pool_on({})  # free the present graphs before others are loaded
            graphs = {name: load(profile=str(Path(folder) / name)) for name, load in self._load.items()}
            calls: list[Call] = []
            self._pool = self._pool_on(graphs, calls)
            try:
                yield operators
            finally:
                self._pool = self._pool_on(graphs)
                files = {name: Path(graph.end_profiling()) for name, graph in graphs.items()}
            for name, file in files.items():
                spans = [(start, end) for graph, start, end in calls if graph == name]
                operators += read_operators(name, json.loads(file.read_text(encoding="utf-8")), spans)

    def _pool_on(self, graphs: Mapping[str, Any], calls: list[Call] | None = None) -> SessionPool[OrtSession]:
        """Return a pool of sessions that execute loaded graphs."""
        return SessionPool(partial(OrtSession, graphs, self.tensors, calls))


class OrtSession:
    """One pass at a time through loaded graphs, with its own output arrays.

    The arrays are reused: allocating 64 MB anew takes longer than filling them.

    Args:
        graphs: ONNX Runtime's session of each graph. Sessions share them.
        tensors: inputs and outputs of each graph.
        calls: list to which each call of a graph is appended; None: calls are not recorded.
    """

    def __init__(
        self, graphs: Mapping[str, Any], tensors: Mapping[str, GraphTensors], calls: list[Call] | None = None
    ) -> None:
        self._graphs = graphs
        self._tensors = tensors
        self._calls = calls
        self._outputs: dict[tuple[str, int], list[NDArray[np.float32]]] = {}  # by graph and batch size

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent, which the next pass overwrites."""
        return self._run(ENCODER, images)[0]

    def attend(self, latent: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Latent → one (B, n², n²) float32 attention per resolution, finest first, which the next pass overwrites."""
        return self._run(UNET, latent)

    def wait(self) -> None:
        """Return at once, because `encode` and `attend` are synchronous."""

    def _run(self, graph: str, value: NDArray[Any]) -> list[NDArray[np.float32]]:
        tensors, batch = self._tensors[graph], len(value)
        binding = self._graphs[graph].io_binding()
        binding.bind_cpu_input(tensors.inputs[0].name, np.ascontiguousarray(value))
        if (graph, batch) not in self._outputs:
            self._outputs[graph, batch] = [np.empty(output.shape(batch), output.dtype) for output in tensors.outputs]
        results = self._outputs[graph, batch]
        for output, result in zip(tensors.outputs, results, strict=True):
            # Bind the arrays, so that 64 MB per 4096² map need not be copied out of ONNX Runtime.
            binding.bind_output(output.name, "cpu", 0, result.dtype, result.shape, result.ctypes.data)
        start = time.perf_counter_ns()
        self._graphs[graph].run_with_iobinding(binding)
        if self._calls is not None:
            self._calls.append((graph, start, time.perf_counter_ns()))
        return results


def session_options(*, threads: int | None = None) -> Any:  # noqa: ANN401 - untyped upstream
    """Return the ONNX Runtime options that all sessions share."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # With memory patterns, the second run allocates one block for everything while the first run's memory is kept.
    options.enable_mem_pattern = False
    # Execute nodes in the order of the file (apart from fused ones), which adds each attention map to its sum at once.
    # The default order, depth first from the outputs, keeps all maps in memory until the last one is computed.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return options


@cache
def _share_arena() -> bool:
    """Register one arena for all sessions, which grows by the requested sizes; return whether it could be registered.

    The encoder and the UNet never run at the same time. An arena per session, growing by powers of two, would hold
    0.9 GB more.
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
    except Exception:  # the process may have registered an arena already  # noqa: BLE001
        return False
    return True


def read_operators(graph: str, events: list[dict[str, Any]], calls: list[tuple[int, int]]) -> list[Operator]:
    """Convert ONNX Runtime's profile of a session into operators, timed on the clock of our own calls.

    The profile's timestamps are microseconds of a clock that depends on the platform (on Linux the wall clock, which
    may be adjusted). So each `model_run` is centred within the call that made it. The error is at most half of the
    time that the call spent outside the run, well under a millisecond.

    Args:
        graph: name of the session's graph.
        events: the profile's events in Chrome's trace format.
        calls: start and end of each call in `time.perf_counter_ns`, in order.

    Raises:
        ProviderError: the number of `model_run` events differs from the number of calls.
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
    """Import onnxruntime without telemetry.

    Since 1.29, wheels for Linux and macOS report models and the machine to Microsoft, and store a device id on disk.
    diffseg disables that unless the environment sets `ORT_DISABLE_TELEMETRY=0`.

    Raises:
        MissingPackageError: onnxruntime is not installed; the message says how to install it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError(f"onnxruntime is not installed: {install_command('cpu')}") from None
    return onnxruntime


def load_session(path: Path, *, threads: int | None = None, profile: str | None = None) -> Any:  # noqa: ANN401
    """Load a graph onto the CPU.

    Optimisation makes a graph up to 10 % faster: it reorders the weights for blocked convolutions, and casts
    half-precision weights at load time. For a full-size UNet this takes ten times as long as it saves per run, and
    doubles the memory for weights. So a graph with more than `LARGE_WEIGHTS` is not optimised: its weights stay in
    their file, which processes share, and a `Graph.cpu_file` casts each weight when it is used.

    Args:
        path: the ONNX file.
        threads: CPU threads per operator; None: one per core.
        profile: prefix of the file that the profiler writes; None: no profiler.
    """
    options = session_options(threads=threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    # Memory reuse would hold buffers for later results instead of freeing them: 0.8 GB for Stable Diffusion 1.5.
    options.enable_mem_reuse = False
    if _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    ort = import_onnxruntime()
    if _is_large(path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _is_large(path: Path) -> bool:
    """Whether a graph's external data exceed LARGE_WEIGHTS. A `Graph.cpu_file` shares the data of its graph."""
    data = path.parent.glob(f"{path.name.partition('.')[0]}*.data")
    return sum(file.stat().st_size for file in data) > LARGE_WEIGHTS


def _session(path: Path, tensors: GraphTensors, **options: Any) -> Any:  # noqa: ANN401
    version = import_onnxruntime().__version__
    try:
        session = load_session(path, **options)
    except Exception as error:  # onnxruntime has an exception type per status code  # noqa: BLE001
        reason = first_line(error)
        raise BundleError(f"onnxruntime {version} cannot load {path}: {reason}; run `diffseg verify`") from None
    check_tensors(session, tensors, path)
    return session


def check_tensors(session: Any, tensors: GraphTensors, path: Path) -> None:  # noqa: ANN401 - untyped upstream
    """Compare the inputs and outputs of a session with the manifest.

    Raises:
        BundleError: they differ.
    """
    kinds = {"float32": "tensor(float)"}
    actual, declared = (*session.get_inputs(), *session.get_outputs()), (*tensors.inputs, *tensors.outputs)
    found = [(v.name, v.type, [d if isinstance(d, int) else -1 for d in v.shape]) for v in actual]  # -1: dynamic
    expected = [(t.name, kinds.get(t.dtype, f"tensor({t.dtype})"), t.onnx_shape()) for t in declared]
    if found != expected:
        raise BundleError(f"{path} has tensors {found}, the manifest says {expected}; export the bundle again")
