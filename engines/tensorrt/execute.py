"""Execute TensorRT and TensorRT-RTX plans directly; CuPy provides memory and streams."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.engines.bundle.manifest import ENCODER, QUERIES_KEYS, UNET
from diffseg.engines.errors import PlanError
from diffseg.engines.files import cache_folder
from diffseg.engines.providers.cuda import device_errors, import_cupy
from diffseg.engines.providers.devices import DevicePool
from diffseg.engines.providers.forms import Averaging
from diffseg.engines.providers.network import Network
from diffseg.engines.tensorrt.build import import_engine, make_logger, make_runtime
from diffseg.engines.tensorrt.plan import Plan
from diffseg.engines.tensorrt.session import NativeSession

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle

logger = logging.getLogger(__name__)


class NativeNetwork(Network):
    """The two engines of a plan on one or several GPUs. Threads may share it: each pass has its own session.

    Args:
        bundle: the bundle that the plan belongs to.
        plan: a plan from `find_plan`, whose record fits this machine.
        capture: replay each batch size as a CUDA graph, which replaces hundreds of kernel launches.
        devices: indices of the GPUs. Each gets the engines and a session; threads wait while all sessions are taken.

    Raises:
        MissingPackageError: TensorRT or CuPy is not installed.
        PlanError: the plan is damaged, TensorRT refuses it, or its tensors are not those of the manifest.
        ProviderError: the engines, or the kernels that the form of the UNet needs, cannot be executed on this GPU.
        DeviceMemoryError: they do not fit into the GPU's memory.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, plan: Plan, *, capture: bool = True, devices: Sequence[int] = (0,)) -> None:
        spec = plan.record.spec
        self.provider: str = spec.engine
        self.plan = plan
        self.capture = capture
        self.whole_graph = False  # TensorRT-RTX captures CUDA graphs itself, because we cannot
        self.module, self.cupy = import_engine(spec.engine), import_cupy()
        self.form = spec.form
        self.graphs = bundle.graphs(spec.form)
        self.tensors = {name: graph.tensors for name, graph in self.graphs.items()}
        self.averaging = Averaging.of(bundle) if spec.form == QUERIES_KEYS else None
        self.log = make_logger(self.module)
        self._runtime = make_runtime(self.module, self.log, spec)
        self.engines: dict[int, dict[str, Any]] = {}  # device: graph: engine
        self._pool: DevicePool[NativeSession] = DevicePool(self._session, devices)
        for device in devices:
            with device_errors(self.cupy, "loading the plan"):
                self.cupy.cuda.Device(device).use()
                if self.averaging is not None:
                    self.averaging.load()
                self.engines[device] = {name: self._load(bundle, name) for name in (ENCODER, UNET)}
            session = self._session(device)
            with session.stream:
                session.prepare(1)
                session.wait()
            self._pool.add(device, session)
        self.cupy.cuda.Device(devices[0]).use()

    @contextmanager
    def session(self) -> Iterator[NativeSession]:
        """Take a session, or wait for one. Within the block, this thread's CuPy work uses its device and stream."""
        with device_errors(self.cupy, "the masks"), self._pool.take() as session:  # also merging
            self.cupy.cuda.Device(session.device).use()  # a thread that is new to CUDA has no device yet
            with session.stream:
                yield session

    def sizes_to_warm(self, batch: int) -> list[int]:
        """Batch sizes, up to a largest one, whose first pass takes longer: each has its own contexts and graph.

        The largest is first, so that the buffers need not grow.
        """
        return list(range(batch, 0, -1))

    def _session(self, device: int) -> NativeSession:
        with device_errors(self.cupy, "a session"):
            self.cupy.cuda.Device(device).use()
            return NativeSession(self, device)

    def _load(self, bundle: Bundle, graph: str) -> Any:  # noqa: ANN401 - untyped upstream
        data, path = self.plan.read(graph), self.plan.path(graph)
        self._check_validity(data, path)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise PlanError(f"{self.provider} refuses {path}: {self.log.specific_error()}; build it again")
        if self.plan.record.spec.options.strip_weights:
            refitter = self.module.Refitter(engine, self.log)
            parser = self.module.OnnxParserRefitter(refitter, self.log)
            if (
                not parser.refit_from_file(str(bundle.folder / self.graphs[graph].file))
                or not refitter.refit_cuda_engine()
            ):
                raise PlanError(f"{self.provider} cannot put the weights into {graph}: {self.log.specific_error()}")
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        declared = self.tensors[graph]
        expected = {tensor.name for tensor in (*declared.inputs, *declared.outputs)}
        if found != expected:
            raise PlanError(f"{path} has tensors {sorted(found)}, the manifest says {sorted(expected)}; build it again")
        return engine

    def _check_validity(self, data: bytes, path: Path) -> None:
        """Ask TensorRT-RTX whether the plan runs on this GPU and driver. TensorRT has no such query."""
        if not hasattr(self.module, "EngineValidity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(data)
        if validity == self.module.EngineValidity.INVALID:
            known = self.module.EngineInvalidityDiagnostics.__members__.items()
            reasons = [name.lower().replace("_", " ") for name, flag in known if int(diagnostics) & int(flag)]
            raise PlanError(
                f"{self.provider} {self.module.__version__} says that {path} cannot run here "
                f"({', '.join(reasons) or 'no reason given'}); build it again"
            )
        if validity == self.module.EngineValidity.SUBOPTIMAL:
            logger.warning("%s runs slower on this GPU than one built for it; build it again", path)

    def runtime_cache_path(self, device: int = 0) -> Path:
        """Return the file of kernels that TensorRT-RTX compiled on a GPU: beside the plan, or in the cache folder."""
        gpu = self.cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        name = f"runtime-{''.join(c if c.isalnum() else '-' for c in gpu)}.cache"
        if os.access(self.plan.folder, os.W_OK):
            return self.plan.folder / name
        return cache_folder() / "plans" / self.plan.folder.name / name
