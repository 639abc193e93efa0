"""A CVAT interaction function: the mask of an object, from clicks on it and outside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk.masks import encode_mask
from diffseg.annotation.picking import PickableMasks
from diffseg.annotation.segmenters import load_segmenter
from diffseg.engines.bundle.settings import MergeSettings

if TYPE_CHECKING:
    from diffseg.segmenter import Segmenter
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Interactor:
    """Answers clicks. CVAT's agent keeps what `preprocess_image` returns for ten minutes, without a bound in bytes.

    Attributes:
        segmenter: segments the images.
        settings: thresholds, anchors and refinement.
        spec: at least one positive point, and any number of negative ones.
    """

    segmenter: Segmenter
    settings: MergeSettings
    spec: Any

    def preprocess_image(
        self,
        context: cvataa.InteractionFunctionContext,  # noqa: ARG002 - of the interface
        image: Image.Image,
    ) -> PickableMasks:
        """Segment an image once, and return about 1 MB from which clicks are answered."""
        return PickableMasks.of(self.segmenter, image, self.settings)

    def detect(
        self,
        context: cvataa.InteractionFunctionContext,  # noqa: ARG002 - of the interface
        pp_image: PickableMasks,
        prompts: cvataa.InteractionPrompts,
    ) -> list[Any]:
        """Return the mask at the positive points without what belongs to the negative ones, as one shape or none."""
        mask = pp_image.pick(prompts.pos_points, prompts.neg_points)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return []
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        return [cvataa.InteractionResultShape(type="mask", points=encode_mask(mask, box))]


def create(
    model: str = "tiny", provider: str = "auto", threads: int | None = None, threshold: float | None = None
) -> Interactor:
    """Return the function, for `cvat-cli`.

    Args:
        model: embedded model, bundle folder or hub id.
        provider: see `diffseg.Segmenter.load`.
        threads: CPU threads; None uses all cores.
        threshold: merge maps closer than this KL divergence, in nats; None uses the bundle's. A smaller
            threshold gives smaller masks.

    Raises:
        BundleError: the bundle cannot be used.
        ProviderError: the provider cannot run on this machine.
        ValueError: an argument is out of range.
    """
    segmenter = load_segmenter(model, provider, threads)
    spec = cvataa.InteractionFunctionSpec(min_pos_points=1, min_neg_points=0)
    return Interactor(segmenter, segmenter.settings.updated(threshold), spec)
