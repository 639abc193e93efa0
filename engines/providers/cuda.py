"""Import of CuPy, and translation of its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffseg.engines.errors import DeviceMemoryError, MissingPackageError, ProviderError


def import_cupy() -> Any:  # noqa: ANN401 - untyped upstream
    """Import CuPy, or say how to install it."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingPackageError(f"cupy cannot be imported ({reason}): pip install 'cupy-cuda13x[ctk]'") from None
    return cupy


@contextmanager
def device_errors(cupy: Any, what: str) -> Iterator[None]:  # noqa: ANN401 - untyped upstream
    """Raise CuPy's errors within the block as diffseg's; `what` names the work in messages.

    Raises:
        DeviceMemoryError: the GPU's memory is full; a smaller batch may fit.
        ProviderError: CUDA reported any other error.
    """
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceMemoryError(f"no room on the GPU for {what}: {error}") from None
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "OutOfMemory" in str(error) or "MemoryAllocation" in str(error):
            raise DeviceMemoryError(f"no room on the GPU for {what}: {error}") from None
        raise ProviderError(f"CUDA failed at {what}: {error}") from None
