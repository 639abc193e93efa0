"""Non-maximum suppression: each pixel goes to the proposal with the largest value there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import Array, device, lerp_indices, namespace, resize_last, row_blocks, to_host
from diffseg.cancellation import checkpoint
from diffseg.methods import fused
from diffseg.methods.tiles import Points, label_by_maps

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Proposals:
    """Proposals that compete for pixels where they are.

    Attributes:
        maps: (m, h, w) float, with m at most 65,535.
        count: number of maps that count, the first ones: () int32 on their device; None for all.
        mended: () int32 on their device, or an integer, that is wanted on the host.
        mended_rows: `mended`, once it is there. It comes with the labels, or stays None if these are made on the host.
    """

    maps: Array
    count: Array | None = None
    mended: Array | int = 0
    mended_rows: int | None = None

    def label(self, rows: Points, columns: Points, out: NDArray[np.uint16]) -> None:
        """Label the pixels of (H, W), at any places of the area that the maps cover, with the largest map's index.

        With fused kernels, the labels are made on the device. Otherwise the maps are copied to the host.
        """
        self.mended_rows = fused.label_by_maps(self.maps, self.count, self.mended, rows, columns, out)
        if self.mended_rows is None:
            maps = self.maps if self.count is None else self.maps[: int(self.count), ...]
            label_by_maps(to_host(maps), rows, columns, out)


def non_max_suppression(proposals: Array, size: tuple[int, int] = (512, 512)) -> Array:
    """Label each pixel with the index of the proposal that is largest there (DiffSeg, section 3.4, equation 7).

    Proposals are upsampled bilinearly with half-pixel centres. Ties go to the lowest index.

    Args:
        proposals: `(k, h, w)` float, with k at most 65,535.
        size: `(H, W)` of the result, in pixels.

    Returns:
        `(H, W)` uint16 labels from 0 to k-1. A proposal that wins no pixel leaves a gap in the numbering.

    Raises:
        ValueError: `proposals` does not have the shape of proposals, or `size` is empty.
    """
    shape = tuple(proposals.shape)
    if len(shape) != 3 or 0 in shape or shape[0] > 65535:  # noqa: PLR2004
        raise ValueError(f"proposals must be (k, h, w) with 1 ≤ k ≤ 65535, found {shape}")
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 × 1 pixels, found {height} × {width}")
    if isinstance(proposals, np.ndarray):
        out = np.empty(size, dtype=np.uint16)
        label_by_maps(proposals, Points.evenly(height), Points.evenly(width), out)
        return out
    xp = namespace(proposals)
    lower, upper, fraction = lerp_indices(shape[1], height, proposals)
    labels = xp.empty((height, width), dtype=xp.uint16, device=device(proposals))
    for rows in row_blocks(height, 4 * shape[0] * width, proposals):
        checkpoint()
        # Resize the rows first, while the maps are narrow, and then the columns.
        low = xp.take(proposals, lower[rows], axis=1)  # (k, r, w)
        tall = xp.take(proposals, upper[rows], axis=1)
        tall -= low
        tall *= fraction[rows][None, :, None]
        tall += low
        block = resize_last(xp.permute_dims(tall, (1, 0, 2)), width)  # (r, k, W)
        labels[rows, :] = xp.astype(xp.argmax(block, axis=1), xp.uint16)
    return labels
