"""Import of CuPy, and translation of its errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffseg.engines.errors import DeviceMemoryError, MissingPackageError, ProviderError
from diffseg.engines.text import first_line

_MEMORY_STATUS = {"CUDARuntimeError": 2, "CUDADriverError": 2, "CUBLASError": 3}
"""Status that means a full device: cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY, CUBLAS_STATUS_ALLOC_FAILED."""

_LIBRARY_FAILURE = re.compile(r"\b(CUDA|CUBLAS) failure (\d+):")
_CUDNN_FULL = re.compile(r"\bCUDNN failure \d+: CUDNN_STATUS_(?:\w*_)?ALLOC(?:ATION)?_FAILED\b")
_ARENA_FULL = re.compile(r"\bFailed to allocate memory for requested buffer of size \d+")


def import_cupy() -> Any:  # noqa: ANN401 - untyped upstream
    """Import CuPy, or say how to install it."""
    try:
        import cupy
    except ImportError as error:
        reason = first_line(error)
        raise MissingPackageError(f"cupy cannot be imported ({reason}): pip install 'cupy-cuda13x[ctk]'") from None
    return cupy


@contextmanager
def device_errors(cupy: Any, what: str) -> Iterator[None]:  # noqa: ANN401 - untyped upstream
    """Raise CuPy's errors within the block as diffseg's; `what` names the work in messages.

    A full device is recognised by the class or the status code of the error, never by its text: "an illegal memory
    access" also speaks of memory, and a smaller batch does not cure it.

    Raises:
        DeviceMemoryError: the GPU's memory is full; a smaller batch may fit.
        ProviderError: CUDA reported any other error.
    """
    try:
        yield
    except (cupy.cuda.memory.OutOfMemoryError, *_status_errors(cupy)) as error:
        if isinstance(error, cupy.cuda.memory.OutOfMemoryError) or error.status == _memory_status(error):
            raise DeviceMemoryError(f"no room on the GPU for {what}: {error}") from None
        raise ProviderError(f"CUDA failed at {what}: {error}") from None


def onnxruntime_memory_full(error: Exception) -> bool:
    """Return whether an error of ONNX Runtime's GPU providers means that the device's memory is full.

    Its exceptions have no code. Their text has the code of the CUDA library that failed ("CUDA failure 2: …"), the name
    of cuDNN's status, whose codes differ between its versions, or the whole sentence of ONNX Runtime's own allocator.
    """
    text = str(error)
    if found := _LIBRARY_FAILURE.search(text):
        return int(found[2]) == {"CUDA": 2, "CUBLAS": 3}[found[1]]
    return any(pattern.search(text) for pattern in (_CUDNN_FULL, _ARENA_FULL))


def _status_errors(cupy: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401 - untyped upstream
    """CuPy's exception classes that have a CUDA library's status code, of the modules that are loaded."""
    classes = [cupy.cuda.runtime.CUDARuntimeError]
    for module, name in (("api.driver", "CUDADriverError"), ("libs.cublas", "CUBLASError")):
        loaded = sys.modules.get(f"cupy_backends.cuda.{module}")  # an import would need the library
        if loaded is not None:
            classes.append(getattr(loaded, name))
    return tuple(classes)


def _memory_status(error: Exception) -> int:
    return next(_MEMORY_STATUS[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in _MEMORY_STATUS)
