"""Many images on many machines: a worker for Ray Data, `diffseg batch`, and an application for Ray Serve.

The worker and the sinks need no Ray; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffseg.scale.dataset import segment_dataset
    from diffseg.scale.worker import SegmentWorker

_MODULES = {"SegmentWorker": "diffseg.scale.worker", "segment_dataset": "diffseg.scale.dataset"}

__all__ = ["SegmentWorker", "segment_dataset"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
