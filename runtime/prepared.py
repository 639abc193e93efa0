"""An image on its way to the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.origin import Origin
from diffseg.placement import Placement
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image that is ready for the network, with its settings."""

    picture: Image.Image
    pixels: NDArray[np.uint8]
    placement: Placement
    timings: dict[str, float]
    settings: MergeSettings
    keep_attention: bool
    origin: Origin | None = None
    guide: NDArray[np.uint8] | None = None  # see `View`
