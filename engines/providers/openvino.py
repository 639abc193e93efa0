"""OpenVINO on CPUs and on Intel's GPUs and NPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import BundleError, DeviceMemoryError, MissingPackageError, ProviderError
from diffseg.engines.files import cache_folder
from diffseg.engines.packages import install_command
from diffseg.engines.providers.network import Network, SessionPool

if TYPE_CHECKING:
    from diffseg.engines.bundle.bundle import Bundle
    from numpy.typing import NDArray

DEVICE = "DIFFSEG_OPENVINO_DEVICE"
"""Environment variable with OpenVINO's name of the device: CPU (the default), GPU, GPU.1, NPU."""

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""Precision of a bundle: OpenVINO's name of it."""


class OpenVinoNetwork(Network):
    """The two graphs of a bundle in OpenVINO. Threads may share it.

    Each graph is computed in its own precision if the device supports it, else in float32.

    Args:
        bundle: the bundle to execute.
        threads: CPU threads; None lets OpenVINO decide.

    Raises:
        MissingPackageError: openvino is not installed.
        ProviderError: the device is missing or can't run a graph.
        BundleError: a graph's outputs differ from the manifest.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        device = os.environ.get(DEVICE) or "CPU"
        if device not in core.available_devices and f"{device}.0" not in core.available_devices:
            found = ", ".join(core.available_devices) or "none"
            raise ProviderError(f"OpenVINO has no device {device!r} here, only {found}: set {DEVICE} to one of them")
        self.provider = "openvino" if device == "CPU" else f"openvino:{device}"
        self.device = device.lower()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            settings |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        else:  # compiling for other devices is slow, so cache the result
            settings["CACHE_DIR"] = str(cache_folder() / "openvino")
        models = {name: self._compile(core, bundle, name, device, settings) for name in (ENCODER, UNET)}
        self._pool = SessionPool(partial(OpenVinoSession, models))

    def session(self) -> AbstractContextManager[OpenVinoSession]:
        """Take a session, which has its own memory for results."""
        return self._pool.take()

    def _compile(self, core: Any, bundle: Bundle, name: str, device: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401
        path = bundle.cpu_path(name) if device == "CPU" else bundle.graph_path(name)
        precision = bundle.manifest.graphs[name].precision(bundle.manifest.precision)
        able = precision.upper() in core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        settings = settings | {"INFERENCE_PRECISION_HINT": PRECISIONS[precision if able else "fp32"]}
        try:
            model = core.compile_model(str(path), device, settings)
        except Exception as error:  # plugins raise exceptions of any type  # noqa: BLE001
            raise ProviderError(f"OpenVINO cannot run {path} on {device}: {_reason(error)}") from None
        tensors = bundle.manifest.graphs[name].tensors
        declared = [(t.name, t.onnx_shape()) for t in tensors.outputs]
        found = [
            (output.get_any_name(), [d.get_length() if d.is_static else -1 for d in output.get_partial_shape()])
            for output in model.outputs
        ]
        if found != declared:
            raise BundleError(f"{path} has outputs {found}, the manifest says {declared}; export the bundle again")
        return model


class OpenVinoSession:
    """One inference request per compiled graph. Outputs are views of its memory, which the next pass overwrites."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        try:
            self._requests = {name: model.create_infer_request() for name, model in models.items()}
        except RuntimeError as error:
            raise ProviderError(f"OpenVINO cannot create an inference request: {_reason(error)}") from None

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 → (B, C, H/8, W/8) float32 latent, which the next pass overwrites."""
        return self._run(ENCODER, images)[0]

    def attend(self, latent: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Latent → one (B, n², n²) float32 attention per resolution, finest first; the next pass overwrites it."""
        return self._run(UNET, latent)

    def wait(self) -> None:
        """Return at once, because `encode` and `attend` are synchronous."""

    def _run(self, graph: str, value: NDArray[Any]) -> list[NDArray[np.float32]]:
        request = self._requests[graph]
        try:
            request.infer([np.ascontiguousarray(value)], share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            reason = _reason(error)
            kind = DeviceMemoryError if "alloc" in reason.lower() or "memory" in reason.lower() else ProviderError
            raise kind(f"OpenVINO failed in {graph} with a batch of {len(value)}: {reason}") from None
        return [tensor.data for tensor in request.output_tensors]


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message; the lines above it are locations in its source."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def import_openvino() -> Any:  # noqa: ANN401 - untyped upstream
    """Import openvino, or say how to install it."""
    try:
        import openvino
    except ImportError:
        raise MissingPackageError(f"openvino is not installed: {install_command('openvino')}") from None
    return openvino
