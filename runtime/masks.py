"""From proposals to the masks of an image: the steps that all methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from diffseg.image import Placement, Segment, is_plain, place_labels
from diffseg.methods.colour import colour_refine
from diffseg.methods.pamr import pamr_refine_reduced
from diffseg.stages import stage

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import Refine
    from numpy.typing import NDArray

Masks: TypeAlias = "tuple[NDArray[np.uint16], tuple[Segment, ...]]"
"""(H, W) labels from 0 to k-1 without gaps, at the size of the image, and one segment per label, largest first."""

PIXEL_REFINEMENTS: dict[Refine, Callable[[NDArray[np.uint16], NDArray[np.uint8]], NDArray[np.uint16]]] = {
    "colour": colour_refine,
    "pamr": pamr_refine_reduced,
}
"""Refinements of masks by the image: labels (H, W) and pixels (H, W, 3) → labels (H, W)."""


def plain_masks(pixels: NDArray[np.uint8], placement: Placement, timings: dict[str, float], name: str) -> Masks | None:
    """Return the one mask of an image of a single colour, or None for any other image.

    The padding of the network's convolutions sets the borders of such an image apart, so its outputs are not used.

    Args:
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
        timings: the seconds that this takes are added to it.
        name: stage that they count for.
    """
    if not is_plain(pixels, placement):
        return None
    with stage(timings, name):
        return place_labels(np.zeros(placement.size, dtype=np.uint16), placement)


def finished_masks(
    suppress: Callable[[], NDArray[np.uint16]],
    pixels: NDArray[np.uint8],
    placement: Placement,
    refine: Refine,
    timings: dict[str, float],
) -> Masks:
    """Label the pixels, refine the labels by the image if that is wanted, and bring them to the size of the image.

    Args:
        suppress: returns the labels at the network's input size, on the host.
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
        refine: the refinement; those of proposals are over by now.
        timings: the seconds of both stages are added to it.
    """
    with stage(timings, "suppress"):
        labels = suppress()
        if refine not in PIXEL_REFINEMENTS:
            return place_labels(labels, placement)
    with stage(timings, "refine"):
        return place_labels(PIXEL_REFINEMENTS[refine](labels, pixels), placement)
