"""Colour refinement at a higher resolution: only pixels near the borders of masks are assigned anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import cpu_workers, prefetched
from diffseg.cancellation import checkpoint
from diffseg.methods.colour import FAR, RADIUS, REACH, SMOOTHNESS, energy_of, features_of, window_sum
from diffseg.methods.reduction import present, surroundings
from diffseg.methods.tiles import Points, label_by_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 2
FULL_SIDE = 1024
"""Longest side, in pixels, at which borders are refined. Beyond it they are only smoothed."""


def colour_refine_fine(
    coarse: NDArray[np.uint16], image: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> NDArray[np.uint16]:
    """Move the borders of masks that `colour_refine_reduced` found to the colour edges of a larger image.

    The colour models stay those of the coarse image. Pixels near a border are assigned to the mask with the highest
    posterior, as in `colour_refine`, from the masks that are near; the others keep theirs.

    Args:
        coarse: (h, w) labels.
        image: (h, w, 3) float32, 0 to 1, by which they were refined.
        pixels: (H, W, 3) uint8, the same image at the resolution of the result, at least (h, w).

    Returns:
        (H, W) uint16 labels, a subset of those of `coarse`.
    """
    height, width = pixels.shape[:2]
    scale = max(1, round(height / coarse.shape[0]))
    labels = np.empty((height, width), dtype=np.uint16)
    label_by_labels(coarse, Points.evenly(height), Points.evenly(width), labels, spread=0)
    band = np.flatnonzero(_near_borders(labels, scale + 1))
    if not band.size:
        return labels
    reach = REACH * scale // 2
    y, x = np.divmod(band, width)
    colours = pixels.reshape(-1, 3)[band].T.astype(np.float32) / np.float32(255)  # (3, n)
    cells = y * coarse.shape[0] // height, x * coarse.shape[1] // width
    models = _Models(coarse, image)

    def energies(label: int) -> tuple[int, NDArray[np.intp], NDArray[np.float32]]:
        near = np.flatnonzero(_shares(labels == label, y, x, reach + scale + 1) > 0)
        return label, near, models.energy(label, (cells[0][near], cells[1][near]), colours[:, near])

    workers = cpu_workers(labels)
    pairs = [pair for pair in prefetched(energies, present(coarse), workers) if pair[1].size]

    def posteriors(
        pair: tuple[int, NDArray[np.intp], NDArray[np.float32]],
    ) -> tuple[int, NDArray[np.intp], NDArray[np.float32]]:
        label, near, energy = pair
        share = _shares(labels == label, y, x, reach)[near]
        return label, near, energy - np.float32(SMOOTHNESS) * np.log(share + np.float32(1e-3))

    for _ in range(ROUNDS):
        least, moved = np.full(band.shape, FAR), labels.ravel()[band]
        before = moved.copy()
        for label, near, total in prefetched(posteriors, pairs, workers):
            checkpoint()
            better = total < least[near]
            least[near[better]] = total[better]
            moved[near[better]] = label
        if np.array_equal(before, moved):
            break
        labels.reshape(-1)[band] = moved
    return labels


class _Models:
    """The colour model of each mask at each cell of the coarse image: sums over the windows around it."""

    def __init__(self, labels: NDArray[np.uint16], image: NDArray[np.float32]) -> None:
        self._labels = labels
        self._features = features_of(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def energy(
        self, label: int, cells: tuple[NDArray[np.int64], NDArray[np.int64]], colours: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the negative log-likelihood of colours (3, n) at n cells under the model of a mask, (n,)."""
        mask = self._labels == label
        rows, columns = surroundings(mask, RADIUS)
        sums = window_sum(self._features[:, rows, columns] * mask[rows, columns], RADIUS)
        y, x = cells[0] - rows.start, cells[1] - columns.start
        known = (y >= 0) & (x >= 0) & (y < sums.shape[1]) & (x < sums.shape[2])
        energy = np.full(known.shape, FAR)
        energy[known] = energy_of(sums[:, y[known], x[known]], colours[:, known])
        return energy


def _near_borders(labels: NDArray[np.uint16], radius: int) -> NDArray[np.bool_]:
    """Return which pixels of (H, W) are within `radius` pixels of another label, along rows or columns or both."""
    border = np.zeros(labels.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = labels[one] != labels[other]
        border[one] |= differs
        border[other] |= differs
    for axis in (0, 1):
        grown = border.copy()
        for step in range(1, radius + 1):
            ahead = (slice(None),) * axis + (slice(step, None),)
            back = (slice(None),) * axis + (slice(None, -step),)
            grown[back] |= border[ahead]
            grown[ahead] |= border[back]
        border = grown
    return border


def _shares(mask: NDArray[np.bool_], y: NDArray[np.int64], x: NDArray[np.int64], radius: int) -> NDArray[np.float32]:
    """Return the share of a mask (H, W) in the square windows around the pixels (y, x), clipped at the borders."""
    share = np.zeros(y.shape, dtype=np.float32)
    if not mask.any():
        return share
    rows, columns = surroundings(mask, radius)
    within = np.flatnonzero((y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop))
    part = mask[rows, columns]
    sums = np.zeros((part.shape[0] + 1, part.shape[1] + 1), dtype=np.int32)
    np.cumsum(part, axis=0, dtype=np.int32, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    y, x = y[within], x[within]
    top, bottom = np.maximum(y - radius, 0), np.minimum(y + radius + 1, mask.shape[0])
    left, right = np.maximum(x - radius, 0), np.minimum(x + radius + 1, mask.shape[1])
    area = (bottom - top) * (right - left)
    # Outside this part, the mask is empty.
    top, bottom = np.maximum(top, rows.start) - rows.start, np.minimum(bottom, rows.stop) - rows.start
    left, right = np.maximum(left, columns.start) - columns.start, np.minimum(right, columns.stop) - columns.start
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    share[within] = inside / area
    return share
