"""An image that is prepared for the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.attention import AggregatedAttention
from diffseg.cancellation import Check, StoppedError, stoppable
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.features import EncoderFeatures
from diffseg.origin import Origin
from diffseg.placement import Placement
from diffseg.segmentation import Segmentation
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image that is ready for the network, with its settings. `check` can stop the work on its masks."""

    image: Image.Image
    pixels: NDArray[np.uint8]
    placement: Placement
    timings: dict[str, float]
    settings: MergeSettings
    keep_attention: bool
    origin: Origin | None = None
    guide: NDArray[np.uint8] | None = None  # see `View`
    check: Check | None = None

    def masks(
        self, attention: AggregatedAttention | EncoderFeatures, timings: dict[str, float]
    ) -> Segmentation | StoppedError:
        """Make the masks of the image, or return the error with which `check` has stopped the work."""
        try:
            with stoppable(self.check):
                return Segmentation.of(
                    attention,
                    self.image,
                    self.settings,
                    timings,
                    keep_attention=self.keep_attention,
                    origin=self.origin,
                )
        except StoppedError as error:
            return error.with_traceback(None)  # whose frames would keep the attention of the whole batch
