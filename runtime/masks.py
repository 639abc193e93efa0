"""The steps from proposals to the masks of an image, which all methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import Array
from diffseg.image import Fit, fit_image
from diffseg.labels import Masks, finish_labels
from diffseg.methods.colour import colour_refine_reduced
from diffseg.methods.colour_fine import FULL_SIDE, colour_refine_fine
from diffseg.methods.pamr import pamr_refine
from diffseg.methods.reduction import enlarged, reduced_image, reduction_factor
from diffseg.methods.suppress import Proposals
from diffseg.methods.tiles import SPREAD, Points, label_by_labels
from diffseg.placement import Placement, is_plain
from diffseg.stages import stage
from PIL import Image

if TYPE_CHECKING:
    from diffseg.engines.bundle.settings import Refine
    from numpy.typing import NDArray

PIXEL_REFINEMENTS: dict[Refine, Callable[[NDArray[np.uint16], NDArray[np.float32]], NDArray[np.uint16]]] = {
    "colour": colour_refine_reduced,
    "pamr": pamr_refine,
}
"""Refinements of masks by the image: labels (h, w) and colours (h, w, 3), 0 to 1 → labels (h, w)."""

COARSE = 1.5
"""Least number of image pixels per cell at which refined masks are refined further, or smoothed.

Below it, this would cost time or details without removing visible steps from the borders.
"""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The part of an image that the network sees.

    Attributes:
        pixels: (h, w, 3) uint8, the image at the network's input size.
        placement: which part of the image these pixels show.
        guide: (H, W, 3) uint8, the same part at a multiple of that size, used to refine borders; None if the image has
            no more details, or if no refinement needs them.
    """

    pixels: NDArray[np.uint8]
    placement: Placement
    guide: NDArray[np.uint8] | None = None


def guide_size(placement: Placement) -> tuple[int, int] | None:
    """Return the size at which the borders of an image are refined, a multiple of the network's input size.

    It is at most 1024 pixels per side, and about the size of the image. None if that is the network's input size.
    """
    ratio = max(placement.height / placement.size[0], placement.width / placement.size[1])
    factor = min(FULL_SIDE // max(placement.size), round(ratio))
    return (placement.size[0] * factor, placement.size[1] * factor) if factor > 1 else None


def fit_guide(image: Image.Image, placement: Placement, fit: Fit) -> NDArray[np.uint8] | None:
    """Resize an image (RGB) to its `guide_size`, as it was fitted to the network's input; None if that is None."""
    size = guide_size(placement)
    return None if size is None else fit_image(image, size, fit)[0]


def plain_masks(view: View, timings: dict[str, float], name: str) -> Masks | None:
    """Return the one mask of an image of a single colour, or None for any other image.

    The padding of the network's convolutions sets the borders of such an image apart, so its outputs are not used.

    Args:
        view: the image.
        timings: receives the duration of the stage, in seconds.
        name: name of the stage.
    """
    if not is_plain(view.pixels, view.placement):
        return None
    with stage(timings, name):
        return finish_labels(np.zeros(view.placement.target, dtype=np.uint16), view.placement)


def finished_masks(proposals: Array | Proposals, view: View, refine: Refine, timings: dict[str, float]) -> Masks:
    """Let proposals compete for the pixels of the image, and refine the masks by the image if that is wanted.

    They compete at the image's own resolution. With a refinement they do so at about 256 pixels per side; the refined
    masks are enlarged with smooth borders. An image of the network's input size keeps its pixels.

    Args:
        proposals: (k, h, w) float, on any device, or `Proposals`.
        view: the image.
        refine: the refinement of masks; one of proposals has been applied before.
        timings: receives the duration of both stages, in seconds.
    """
    placement = view.placement
    proposals = proposals if isinstance(proposals, Proposals) else Proposals(proposals)
    if refine not in PIXEL_REFINEMENTS:
        with stage(timings, "suppress"):
            return finish_labels(_whole(proposals.label, placement), placement)
    factor = reduction_factor(placement.size)
    with stage(timings, "suppress"):
        rows, columns = (Points.evenly(side, factor) for side in placement.size)
        small = np.empty((len(rows.places), len(columns.places)), dtype=np.uint16)
        proposals.label(rows, columns, small)
    with stage(timings, "refine"):
        image = reduced_image(view.pixels, factor)
        refined = PIXEL_REFINEMENTS[refine](small, image)
        if placement.same:
            return finish_labels(enlarged(refined, factor), placement)
        larger = view.pixels if view.guide is None else view.guide
        if refine == "colour" and _is_coarse(refined, placement):
            refined = colour_refine_fine(refined, image, larger)
        spread = SPREAD if _is_coarse(refined, placement) else 0
        return finish_labels(_whole(partial(label_by_labels, refined, spread=spread), placement), placement)


def _is_coarse(grid: NDArray[np.uint16], placement: Placement) -> bool:
    """Whether the image has clearly more pixels than the cells that cover it."""
    return bool(max(placement.height, placement.width) > COARSE * max(grid.shape))


def _whole(label: Callable[[Points, Points, NDArray[np.uint16]], None], placement: Placement) -> NDArray[np.uint16]:
    """Label the part of an image that the network sees, at the size of the result."""
    whole = np.empty(placement.target, dtype=np.uint16)
    label(*placement.points(), whole[placement.seen()])
    return whole
