"""The settings of an export. This module does not need PyTorch, so invalid settings are rejected early."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from diffseg.engines.bundle.manifest import Precision
from diffseg.engines.bundle.settings import FEATURE_METHODS, MergeSettings, Method

PRECISIONS: tuple[str, ...] = get_args(Precision)
SIZE_STEP = 64
SIZES: dict[Method, tuple[int, int]] = {"diffseg": (512, 512), "diffcut": (1024, 1024)}
"""Methods that a bundle can be exported for, and their default image size: height, width in pixels."""
TIMESTEPS_OF: dict[Method, int] = {"diffseg": 300, "diffcut": 50}
"""The default timestep of each method."""
NOISES: tuple[str, ...] = ("seeded", "official")
TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """The settings of an export.

    Raises:
        ValueError: a setting is out of range.
    """

    size: tuple[int, int] | None = None  # height, width in pixels; None: that of the method, or of the checkpoint
    precision: Precision = "fp32"
    timestep: int = 300
    max_batch: int = 4
    defaults: MergeSettings = field(default_factory=MergeSettings)
    noise: Literal["seeded", "official"] = "seeded"  # for DiffCut; see `export.noise`
    both: bool = False  # for diffseg and diffcut, each at its usual timestep; `timestep` is not used

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that the bundle is exported for, the default one first."""
        other: Method = "diffseg" if self.method == "diffcut" else "diffcut"
        return (self.method, other) if self.both else (self.method,)

    @property
    def method(self) -> Method:
        """The method that the bundle is exported for, by its default settings: `diffseg` or `diffcut`."""
        return "diffcut" if self.defaults.method in FEATURE_METHODS else "diffseg"

    def image_size(self, *, sdxl: bool, native_size: int) -> tuple[int, int]:
        """Return the height and width of the images in pixels.

        Args:
            sdxl: whether the checkpoint is SDXL-class; such a UNet is used for DiffSeg at its own size.
            native_size: side of the images that the UNet was trained for, in pixels.
        """
        if self.size is not None:
            return self.size
        own = sdxl and self.method == "diffseg" and native_size % SIZE_STEP == 0
        return (native_size, native_size) if own else SIZES[self.method]

    def __post_init__(self) -> None:
        if self.both and self.size is None:
            raise ValueError("a bundle for two methods needs a size for both, such as 512 or 1024 pixels")
        if self.size is not None and any(n < SIZE_STEP or n % SIZE_STEP for n in self.size):
            raise ValueError(f"size must be in multiples of {SIZE_STEP} pixels, found {self.size[0]}x{self.size[1]}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        if not 0 <= self.timestep < TIMESTEPS:
            raise ValueError(f"timestep must be 0 to {TIMESTEPS - 1}, found {self.timestep}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, found {self.max_batch}")
        if self.noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, found {self.noise!r}")
        if not all(t < math.inf for t in self.defaults.thresholds):
            raise ValueError(f"defaults need finite thresholds, found {list(self.defaults.thresholds)}")


def parse_size(text: str) -> tuple[int, int]:
    """Read `512` or `512x768` (height x width).

    Raises:
        ValueError: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):  # noqa: PLR2004
        raise ValueError(f"size must be N or HEIGHTxWIDTH in pixels, found {text!r}")
    return int(parts[0]), int(parts[-1])
