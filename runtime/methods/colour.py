"""Colour refinement: move the borders of masks to the colour edges of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import cpu_workers, prefetched
from diffseg.cancellation import checkpoint
from diffseg.methods.reduction import enlarged, present, reduced, reduction_factor, surroundings

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_VARIANCE = 0.03**2
"""Added to the variance of each colour channel (0 to 1), because even a uniform surface has noise."""

RADIUS, REACH, SMOOTHNESS = 16, 4, 3.0
"""Defaults of `colour_refine`."""

FAR = np.float32(1e9)
"""Energy of a mask that has no colour model at a pixel."""


def colour_refine(
    labels: NDArray[np.uint16],
    pixels: NDArray[np.uint8],
    *,
    radius: int = RADIUS,
    reach: int = REACH,
    smoothness: float = SMOOTHNESS,
    rounds: int = 10,
) -> NDArray[np.uint16]:
    """Move the borders of masks to where the colours of the image change.

    For each mask, the colours within a window around each pixel are modelled by a Gaussian (the local region
    statistics of Lankton and Tannenbaum, 2008, and Brox and Cremers, 2009). Each pixel is assigned to the mask with
    the highest posterior: the likelihood of the pixel's colour, weighted by the mask's share of the surrounding
    pixels. The assignment is repeated until it converges. Attention decides which regions belong together, on a
    grid of up to 64 × 64; the colours decide where the borders between them lie.

    Args:
        labels: (H, W) integers, at least 0.
        pixels: (H, W, 3) uint8, the image that was segmented. Both are reduced to about 256 pixels per side.
        radius: radius of the square windows of the colour models, in reduced pixels.
        reach: radius of the windows in which the masks' shares are measured, in reduced pixels.
        smoothness: weight of the logarithm of the shares.
        rounds: maximum number of rounds. Fewer are run if no pixel changes its mask.

    Returns:
        (H, W) uint16 labels. A mask that loses all its pixels leaves a gap in the numbering.

    Raises:
        ValueError: labels and pixels differ in size.
    """
    if labels.shape != pixels.shape[:2] or pixels.shape[2:] != (3,):
        raise ValueError(
            f"labels must be (H, W) and pixels (H, W, 3) of the same size, found {labels.shape} and {pixels.shape}"
        )
    factor = reduction_factor(labels.shape)
    small, means = reduced(labels, pixels, factor)
    refined = colour_refine_reduced(small, means, radius=radius, reach=reach, smoothness=smoothness, rounds=rounds)
    return enlarged(refined, factor)


def colour_refine_reduced(
    labels: NDArray[np.uint16],
    image: NDArray[np.float32],
    *,
    radius: int = RADIUS,
    reach: int = REACH,
    smoothness: float = SMOOTHNESS,
    rounds: int = 10,
) -> NDArray[np.uint16]:
    """Refine as `colour_refine` does, without a reduction: (h, w) labels by the colours (h, w, 3), 0 to 1."""
    small = labels
    colours = np.ascontiguousarray(image.transpose(2, 0, 1))  # (3, h, w)
    features = features_of(colours)
    around = window_sum(features[:1], reach)

    def energy_in_window(label: int) -> tuple[int, tuple[slice, slice], NDArray[np.float32]]:
        mask = small == label
        window = surroundings(mask, radius)
        inside = features[:, *window] * mask[window]
        energy = energy_of(window_sum(inside, radius), colours[:, *window])
        share = window_sum(inside[:1], reach)[0] / around[0, *window]
        energy -= smoothness * np.log(share + np.float32(1e-3))
        return label, window, energy

    for _ in range(rounds):
        least, moved = np.full(small.shape, FAR), small.copy()
        for label, window, energy in prefetched(energy_in_window, present(small), cpu_workers(small)):
            checkpoint()
            better = energy < least[window]
            least[window][better] = energy[better]
            moved[window][better] = label
        if np.array_equal(moved, small):
            break
        small = moved
    return small


def features_of(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the summands of a colour model: a one, the colours and their squares, (3, …) → (7, …)."""
    return np.concatenate([np.ones((1, *colours.shape[1:]), np.float32), colours, colours**2])


def energy_of(sums: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the negative log-likelihood (…) of each pixel's colour under the model at that pixel.

    Args:
        sums: (7, …), overwritten to avoid allocations, which would take longer than the arithmetic. For each
            pixel: the number of pixels in its window, the sums of their colours, and the sums of the squared colours.
        colours: (3, …), 0 to 1.
    """
    absent = sums[0] < 2  # noqa: PLR2004  a single pixel has no variance
    sums[1:] /= np.maximum(sums[0], 1)
    mean, variance = sums[1:4], sums[4:]
    variance -= mean**2
    np.maximum(variance, 0, out=variance)
    variance += np.float32(LEAST_VARIANCE)
    away = np.subtract(colours, mean, out=mean)
    away *= away
    away /= variance
    energy: NDArray[np.float32] = (away.sum(0) + np.log(variance.prod(0))) / 2
    energy[absent] = FAR
    return energy


def window_sum(maps: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Sum (c, h, w) maps over windows of 2·radius + 1 pixels per side, clipped at the borders.

    The sums are composed of partial sums over 1, 2, 4, … neighbours, which takes few additions of whole arrays.
    """
    for axis in (1, 2):
        before = (slice(None),) * axis
        size, width = maps.shape[axis], 2 * min(radius, maps.shape[axis] - 1) + 1
        part = np.zeros([n + (width - 1) * (i == axis) for i, n in enumerate(maps.shape)], np.float32)
        part[*before, width // 2 : width // 2 + size] = maps
        total, span, done = part[*before, :size].copy(), 1, 1
        while 2 * span <= width:
            part = part[*before, :-span] + part[*before, span:]
            span *= 2
            if width & span:
                total += part[*before, done : done + size]
                done += span
        maps = total
    return maps
