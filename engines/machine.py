"""The NVIDIA GPUs of this machine, queried through the driver's library without creating a CUDA context."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute of cuda.h
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76
NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as the driver reports it."""

    name: str
    compute_capability: str  # "8.9"
    memory: int  # bytes
    multiprocessors: int
    driver: str  # the newest CUDA version that the driver supports: "13.0"


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs visible to CUDA (see CUDA_VISIBLE_DEVICES), in CUDA's order, or the reason why there are none."""

    gpus: tuple[Gpu, ...]
    reason: str | None = None

    @property
    def first(self) -> Gpu | None:
        """The GPU that diffseg uses; None if there is none."""
        return self.gpus[0] if self.gpus else None


class _CudaError(Exception):
    """A call to the driver failed."""


@functools.cache
def find_gpus() -> Gpus:
    """Query libcuda for the GPUs of this machine. The result is cached per process. Never raises."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return Gpus((), f"no NVIDIA driver: {name} cannot be loaded")
    try:
        return Gpus(_ask(library))
    except _CudaError as error:
        return Gpus((), str(error))


def _ask(library: Any) -> tuple[Gpu, ...]:  # noqa: ANN401 - ctypes has no types
    def call(name: str, *arguments: object) -> None:
        status = getattr(library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            library.cuGetErrorName(status, ctypes.byref(text))
            raise _CudaError(f"the NVIDIA driver fails in {name}: {(text.value or b'?').decode()} ({status})")

    def attribute(device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    call("cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetCount", ctypes.byref(count))
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    found = []
    for index in range(count.value):
        device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(NAME_BYTES)
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDeviceGetName", name, NAME_BYTES, device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        capability = f"{attribute(device, MAJOR)}.{attribute(device, MINOR)}"
        found.append(Gpu(name.value.decode(), capability, memory.value, attribute(device, MULTIPROCESSORS), driver))
    return tuple(found)
