"""Segment any image from the self-attention of Stable Diffusion, without labels, prompts or PyTorch.

    from diffseg import Segmenter

    segmenter = Segmenter.load("tiny")
    result = segmenter("photo.jpg")
    result.overlay().save("masks.png")

The names below are loaded when they are first used, so `import diffseg` itself loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import MergeSettings
    from diffseg.engines.errors import DiffsegError
    from diffseg.labels import Segment
    from diffseg.segmentation import Segmentation
    from diffseg.segmenter import Segmenter

    __version__: str

_MODULES = {
    "DiffsegError": "diffseg.engines.errors",
    "MergeSettings": "diffseg.engines.bundle.settings",
    "Segment": "diffseg.labels",
    "Segmentation": "diffseg.segmentation",
    "Segmenter": "diffseg.segmenter",
}

__all__ = ["DiffsegError", "MergeSettings", "Segment", "Segmentation", "Segmenter", "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # takes about 30 ms

        value: object = version("diffseg")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
