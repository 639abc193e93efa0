"""ONNX Runtime on NVIDIA GPUs, with its CUDA or TensorRT provider. It never falls back to the CPU silently."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.engines.bundle.manifest import ATTENTION, ENCODER, QUERIES_KEYS, UNET, Form, Graph
from diffseg.engines.errors import MissingPackageError, ProviderError
from diffseg.engines.files import cache_folder
from diffseg.engines.packages import install_command
from diffseg.engines.providers.bound_session import OrtGpuSession
from diffseg.engines.providers.cuda import device_errors, import_cupy
from diffseg.engines.providers.devices import DevicePool
from diffseg.engines.providers.forms import Averaging, choose_forms
from diffseg.engines.providers.network import Network
from diffseg.engines.providers.onnxruntime import check_tensors, import_onnxruntime, session_options
from diffseg.engines.tensorrt.build import engine_version
from diffseg.engines.text import first_line

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle

logger = logging.getLogger(__name__)

NAMES = {"cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
HOST = "CPUExecutionProvider"
OPTIONS = "DIFFSEG_CUDA_OPTIONS"
"""Environment variable with options of the CUDA provider that replace ours: `prefer_nhwc=0,use_tf32=1`."""
NOT_IN_BF16 = ("InstanceNormalization", "Resize")
"""Operators for which the CUDA provider has no bf16 kernels."""
COMPUTE = frozenset(
    (
        *("Conv", "ConvTranspose", "FusedConv", "NhwcConv", "MatMul", "FusedMatMul", "Gemm", "Einsum"),
        *("Attention", "MultiHeadAttention", "Softmax", "Resize", "Erf", "Gelu", "QuickGelu", "Sigmoid"),
        *("GroupNorm", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "SkipLayerNormalization"),
        *("ReduceMean", "ReduceSum"),
    )
)
"""Operators that must not be executed on the CPU. ONNX Runtime computes shapes there, with other operators."""


class OrtGpuNetwork(Network):
    """The two graphs of a bundle in ONNX Runtime on one or several GPUs. Threads may share it.

    With CuPy the attention stays on the GPU and is merged there; without CuPy it is copied to the host.

    Args:
        bundle: the bundle to execute.
        provider: `cuda` or `ort-tensorrt`; the latter builds engines in its first run and caches them.
        capture: replay each batch size as a CUDA graph; only `cuda` does, and only with CuPy.
        devices: indices of the GPUs. Each gets the graphs and a session; threads wait while all sessions are taken.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: ONNX Runtime lacks the provider, fell back to another one, or left computation to the CPU.
        BundleError: a graph's tensors differ from the manifest.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, provider: str, *, capture: bool = True, devices: Sequence[int] = (0,)) -> None:
        self.provider = provider
        self.precision = bundle.manifest.precision
        self.cupy: Any = None
        with contextlib.suppress(MissingPackageError):
            self.cupy = import_cupy()
        self.form: Form = choose_forms(bundle, devices)[0]
        self.graphs = bundle.graphs(self.form)
        self.tensors = {name: graph.tensors for name, graph in self.graphs.items()}
        self.averaging = Averaging.of(bundle) if self.form == QUERIES_KEYS else None
        if provider == "cuda" and self.precision == "bf16":
            check_bf16(bundle, self.form)
        self.capture = capture and provider == "cuda" and self.cupy is not None
        self._placement: dict[str, dict[str, int]] = {}
        self.serial = itertools.count()  # numbers sets of buffers, whose captured graphs need distinct names
        self.sessions = {
            device: {name: self._open(bundle, name, device) for name in (ENCODER, UNET)} for device in devices
        }
        self._pool: DevicePool[OrtGpuSession] = DevicePool(lambda device: OrtGpuSession(self, device), devices)

    @contextmanager
    def session(self) -> Iterator[OrtGpuSession]:
        """Take a session, or wait for one."""
        with self._pool.take() as session:
            if self.cupy is None:
                yield session
                return
            with device_errors(self.cupy, "the masks"):  # translates the errors of CuPy during merging
                self.cupy.cuda.Device(session.device).use()
                yield session

    @property
    def placement(self) -> dict[str, dict[str, int]]:
        """Nodes by graph and ONNX Runtime's provider, as it reports them; empty before ONNX Runtime 1.25."""
        return self._placement

    def sizes_to_warm(self, batch: int) -> list[int]:
        """Batch sizes, up to a largest one, whose first pass takes longer: the sizes to which others are padded.

        The largest is first, so that the buffers need not grow.
        """
        return sorted({*(1 << i for i in range(batch.bit_length())), batch}, reverse=True)

    def _open(self, bundle: Bundle, name: str, device: int) -> Any:  # noqa: ANN401 - untyped upstream
        ort, wanted, path = import_onnxruntime(), NAMES[self.provider], bundle.folder / self.graphs[name].file
        if wanted not in ort.get_available_providers():
            others = ", ".join(ort.get_available_providers())
            raise ProviderError(f"onnxruntime {ort.__version__} has no {wanted}, only {others}: {self._install()}")
        if self.provider == "ort-tensorrt":
            engine_version("tensorrt")  # its import loads libnvinfer from the wheel
        with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints the libraries that it does not find
            ort.preload_dlls()  # load CUDA's libraries from their wheels, without LD_LIBRARY_PATH
        logger.debug("onnxruntime.preload_dlls: %s", said.getvalue().strip())
        options = session_options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = ort.InferenceSession(
                str(path), options, providers=self._providers(bundle, name, device), enable_fallback=False
            )
        except Exception as error:  # onnxruntime has an exception type per status code  # noqa: BLE001
            reason = first_line(error)
            if self.capture and "graph capture" in reason:
                logger.warning("%s: %s; kernels are launched one by one", name, reason)
                self.capture = False
                return self._open(bundle, name, device)
            raise ProviderError(f"onnxruntime {ort.__version__} cannot run {path} on {wanted}: {reason}") from None
        taken = session.get_providers()[0]
        if taken != wanted:
            raise ProviderError(
                f"onnxruntime {ort.__version__} took {taken} for {path} instead of {wanted}: {self._missing()}; "
                f"{self._install()}; `diffseg info` lists what is installed"
            )
        check_tensors(session, self.tensors[name], path)
        self._placement[name] = self._read_placement(session, path)
        return session

    def _providers(self, bundle: Bundle, name: str, device: int) -> list[Any]:
        cuda = (NAMES["cuda"], cuda_options(self.precision, device, capture=self.capture))
        if self.provider == "cuda":
            return [cuda, HOST]  # shape operators run on the CPU
        settings = _tensorrt_options(self.graphs[name], bundle.contents(self.form)[name], device)
        return [(NAMES[self.provider], settings), cuda, HOST]

    def _read_placement(self, session: Any, path: Path) -> dict[str, int]:  # noqa: ANN401 - untyped upstream
        """Count nodes by provider, and refuse computation on the CPU."""
        if not hasattr(session, "get_provider_graph_assignment_info"):
            return {}
        kinds: dict[str, Counter[str]] = {}
        for group in session.get_provider_graph_assignment_info():
            kinds.setdefault(group.ep_name, Counter()).update(node.op_type for node in group.get_nodes())
        wrong = {kind: count for kind, count in sorted(kinds.get(HOST, Counter()).items()) if kind in COMPUTE}
        if wrong:
            found = ", ".join(f"{count} {kind}" for kind, count in wrong.items())
            raise ProviderError(
                f"onnxruntime {import_onnxruntime().__version__} leaves {found} of {path} to the CPU, for which it has "
                f"no kernels on the GPU in {self.precision}; export the bundle with another --precision"
            )
        placement = {provider: counts.total() for provider, counts in sorted(kinds.items())}
        logger.info("%s: %s", path.name, ", ".join(f"{count} nodes on {name}" for name, count in placement.items()))
        return placement

    def _missing(self) -> str:
        if self.provider == "cuda":
            return "a library of CUDA or cuDNN is missing, or the driver is too old"
        found = engine_version("tensorrt")
        which = f"tensorrt {found} is installed" if found else "tensorrt is not installed"
        return f"it needs TensorRT 10 (libnvinfer.so.10), and {which}"

    def _install(self) -> str:
        command = install_command("gpu") if self.provider == "cuda" else install_command("ort-tensorrt")
        return f"{command}, and no plain onnxruntime beside it: the two share one module"


def cuda_options(precision: str, device: int, *, capture: bool) -> dict[str, Any]:
    """Return options of the CUDA provider. Those of `DIFFSEG_CUDA_OPTIONS` replace ours.

    Raises:
        ProviderError: the variable has another form.
    """
    options: dict[str, Any] = {
        "device_id": device,
        # cuDNN's heuristic chooses the algorithm; EXHAUSTIVE only takes longer.
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": int(capture),
    }
    if precision == "fp32":
        options["use_tf32"] = 0  # TF32 would round operands to 10 bits; in half precision, 0 disables all tensor cores
    else:
        options["prefer_nhwc"] = 1  # the layout of the tensor cores' convolutions
    for item in filter(None, os.environ.get(OPTIONS, "").split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ProviderError(f"{OPTIONS} has the form option=value,option=value; found {item!r}")
        options[key.strip()] = value.strip()
    return options


def _tensorrt_options(graph: Graph, content: str, device: int) -> dict[str, Any]:
    folder = cache_folder() / "ort-tensorrt" / content[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        f"trt_profile_{bound}_shapes": ",".join(
            f"{tensor}:{'x'.join(map(str, sizes[bound]))}" for tensor, sizes in graph.tensors.profile().items()
        )
        for bound in ("min", "opt", "max")
    }
    return {"device_id": device, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder), **shapes}


def check_bf16(bundle: Bundle, form: Form = ATTENTION) -> None:
    """Refuse a bf16 bundle whose graphs have operators without bf16 kernels in the CUDA provider.

    Raises:
        ProviderError: a graph has one.
    """
    for graph in bundle.graphs(form).values():
        path = bundle.folder / graph.file
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # A node's type is field 4 of its message: tag, length, text.
            found = [kind for kind in NOT_IN_BF16 if data.find(bytes((0x22, len(kind))) + kind.encode()) >= 0]
        if found:
            raise ProviderError(
                f"ONNX Runtime's CUDA provider has no bf16 {' and '.join(found)}, which {path} has; export the bundle "
                "with --precision fp16, or build a TensorRT plan: `diffseg build`"
            )
