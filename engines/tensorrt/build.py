"""Building of engines from ONNX graphs with TensorRT or TensorRT-RTX, which share one Python interface.

Networks are strongly typed, so the graph determines the precision. TensorRT times its kernels on this machine's GPU.
TensorRT-RTX needs no GPU: it compiles ahead of time, and finishes compiling on the GPU that loads the plan.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.manifest import Graph
from diffseg.engines.errors import MissingPackageError, PlanError
from diffseg.engines.files import atomic_file, cache_folder, write_synced
from diffseg.engines.packages import install_command
from diffseg.engines.tensorrt.plan import Engine, PlanSpec
from diffseg.engines.tensorrt.precision import EngineLayers, read_inspector, read_program

logger = logging.getLogger(__name__)

MODULES: dict[Engine, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: dict[Engine, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""Extra that executes an engine's plans."""
BUILD_EXTRAS: dict[Engine, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx-build"}
"""Extra that builds an engine's plans."""

Report = Callable[[str, str, int, int], None]
"""Called with graph, phase, step and number of steps, from the builder's thread."""


def import_engine(engine: Engine, extra: str | None = None) -> Any:  # noqa: ANN401 - untyped upstream
    """Import TensorRT or TensorRT-RTX, or say how to install it.

    Args:
        engine: the engine to import.
        extra: extra that the error says to install; None: the extra that executes plans.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    try:
        return importlib.import_module(MODULES[engine])
    except ImportError as error:
        raise MissingPackageError(
            f"{MODULES[engine]} cannot be imported ({error}): {install_command(extra or EXTRAS[engine])}"
        ) from None


def engine_version(engine: Engine) -> str | None:
    """Return the full version of an installed TensorRT or TensorRT-RTX; None if it is not installed."""
    try:
        return str(importlib.import_module(MODULES[engine]).__version__)
    except ImportError:
        return None


def known_compute_capabilities(module: Any) -> list[str]:  # noqa: ANN401 - untyped upstream
    """Return the compute capabilities that TensorRT-RTX can build for, oldest first: `SM89` is 8.9, `SM120` is 12.0."""
    digits = (name[2:] for name in module.ComputeCapability.__members__ if name.startswith("SM"))
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(digits, key=int)]


def build_graph(
    module: Any,  # noqa: ANN401 - untyped upstream
    path: Path,
    graph: Graph,
    spec: PlanSpec,
    name: str,
    report: Report,
) -> memoryview:
    """Build the engine of one graph, and return its serialised plan.

    Args:
        module: TensorRT or TensorRT-RTX.
        path: the ONNX file.
        graph: its declaration.
        spec: machine, options and shapes to build for.
        name: name of the graph.
        report: called with the builder's progress.

    Raises:
        PlanError: the graph can't be read, has other tensors than declared, or can't be built.
        KeyboardInterrupt: once the builder has ended its step; at once when interrupted again.
    """
    log = make_logger(module)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise PlanError(f"{spec.engine} {spec.version} cannot read {path}: {log.specific_error()}")
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    declared = [t.name for t in (*graph.tensors.inputs, *graph.tensors.outputs)]
    if inputs + outputs != declared:
        raise PlanError(f"{path} has tensors {inputs + outputs}, the manifest says {declared}; export the bundle again")
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for tensor, bounds in spec.profiles[name].items():
        shapes.set_shape(tensor, bounds["min"], bounds["opt"], bounds["max"])
    config.add_optimization_profile(shapes)
    _configure(module, config, spec)
    monitor = config.progress_monitor = _monitor(module, name, report)
    cache = _TimingCache(config, spec) if spec.engine == "tensorrt" else None
    plan = _interruptible(lambda: builder.build_serialized_network(network, config), monitor.cancel)
    if plan is None:
        raise PlanError(f"{spec.engine} {spec.version} cannot build {name}: {log.specific_error()}")
    if cache is not None:
        cache.keep()
    return memoryview(plan)


def _configure(module: Any, config: Any, spec: PlanSpec) -> None:  # noqa: ANN401 - untyped upstream
    options = spec.options
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # the inspector then reports number formats
    if spec.precision == "fp32":
        config.clear_flag(module.BuilderFlag.TF32)  # it is set by default, and rounds operands to 10 bits
    if spec.engine == "tensorrt-rtx":
        # Otherwise the engine may allocate memory at run time, which is not possible in a captured stream.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(module.BuilderFlag.STRIP_PLAN)
        config.set_flag(module.BuilderFlag.REFIT_IDENTICAL)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper().replace("-", "_")
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
    if spec.engine == "tensorrt-rtx" and spec.target.compute_capabilities:
        config.num_compute_capabilities = len(spec.target.compute_capabilities)
        for i, capability in enumerate(spec.target.compute_capabilities):
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{capability.replace('.', '')}"), i)


class _TimingCache:
    """TensorRT's kernel timings, cached per version and GPU, so that the next build need not measure again."""

    def __init__(self, config: Any, spec: PlanSpec) -> None:  # noqa: ANN401 - untyped upstream
        gpu = "".join(c if c.isalnum() else "-" for c in str(spec.target.gpu))
        self.path = cache_folder() / "timing" / f"{spec.engine}-{spec.version}-{gpu}.cache"
        self.config = config
        known = self.path.read_bytes() if self.path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)

    def keep(self) -> None:
        """Write the cache back. If two builds finish at the same time, the later one is kept; the file is complete."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as temporary:
            write_synced(temporary, memoryview(self.config.get_timing_cache().serialize()))


def _interruptible(work: Callable[[], Any], cancel: Callable[[], None]) -> Any:  # noqa: ANN401
    """Run the builder in its own thread, so that Ctrl-C interrupts it. A second Ctrl-C does not wait for it."""
    results: list[Any] = []
    # Not Thread.join: in Python 3.11, an interrupted join marks the thread as ended, and the next one returns at once.
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        finally:
            ended.set()

    try:
        threading.Thread(target=run, daemon=True).start()
        while not ended.wait(0.1):
            pass
    except KeyboardInterrupt:
        cancel()
        ended.wait()
        raise
    return results[0] if results else None


_GENERIC = re.compile(
    r"engine build failed|building engine failed|engine deserialization failed|could not find any implementation|"
    r"see (the )?(log|previous|above)|failed to (parse|create|build|deserialize)|creation failed|skipping tactic",
    re.IGNORECASE,
)
_SPECIFIC = re.compile(
    r"out ?of ?memory|insufficient memory|not supported|unsupported|no kernel image|compute capability|"
    r"version|insufficient driver|host code|assertion|no importer|cannot open|must be",
    re.IGNORECASE,
)


def specific_error(errors: list[str]) -> str:
    """Return the error that names a cause. TensorRT reports skipped tactics before it, and consequences after it."""
    if not errors:
        return "it gave no reason"
    ranked = [(bool(_SPECIFIC.search(text)) - bool(_GENERIC.search(text)), text) for text in errors]
    best = max(rank for rank, _ in ranked)
    # Among equals, take the last one: earlier errors may belong to abandoned attempts.
    text = next(text for rank, text in reversed(ranked) if rank == best)[:400]
    more = len(errors) - 1
    return f"{text} (and {more} more error{'s' if more > 1 else ''})" if more else text


_loggers: list[Any] = []
"""All loggers. TensorRT logs to the first one for as long as the process lives, and while objects are destroyed."""


def make_logger(module: Any) -> Any:  # noqa: ANN401 - a class of the module's own
    """Return a logger for builders, parsers and runtimes that remembers what went wrong."""

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps the errors, and passes other messages to Python's logging."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))
            logger.debug("%s", message)

        def specific_error(self) -> str:
            return specific_error(self.errors)

    log = Log()
    _loggers.append(log)
    return log


def make_runtime(module: Any, log: Any, spec: PlanSpec) -> Any:  # noqa: ANN401 - untyped upstream
    """Return a runtime that may load a plan. It does not keep the logger alive."""
    runtime = module.Runtime(log)
    if spec.options.version_compatible:
        # Such a plan contains code, the runtime of its version, which TensorRT executes only if that is allowed. The
        # plan comes from our own build, and its hash is in the record.
        runtime.engine_host_code_allowed = True
    return runtime


def _monitor(module: Any, graph: str, report: Report) -> Any:  # noqa: ANN401 - a class of the module's own
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Reports the builder's steps, and stops the builder on request."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.stopped = False

        def cancel(self) -> None:
            self.stopped = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self.steps[phase] = steps
            report(graph, phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            report(graph, phase, step + 1, self.steps.get(phase, 0))
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def read_layers(module: Any, spec: PlanSpec, path: Path) -> EngineLayers | None:  # noqa: ANN401
    """Read an engine's own account of its layers; None if it can't be read."""
    if spec.engine == "tensorrt-rtx":
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_program(data)
    log = make_logger(module)
    runtime = make_runtime(module, log, spec)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise PlanError(f"tensorrt {spec.version} cannot load what it built: {log.specific_error()}")
    text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return read_inspector(text, engine.device_memory_size_v2)
