"""Scores of masks, computed from the attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diffseg.arrays import from_host, namespace, to_host

if TYPE_CHECKING:
    from diffseg.segmentation import Segmentation
    from numpy.typing import NDArray


def mask_scores(result: Segmentation) -> NDArray[np.float32]:
    """Return how clearly each mask stands out from the other masks of its image.

    The map of a mask is the mean attention map of its places. The score is the share of the mask's own map in the sum
    of the maps of all masks, averaged over the places of the mask. It is 1 for the only mask of an image, and falls
    towards 1/k where k maps are alike. It says nothing about what the mask shows, and is not a probability.

    Args:
        result: must contain its attention: segment with `keep_attention=True`.

    Returns:
        (k,) float32 from 0 to 1, one per segment, in the order of `result.segments`. 0 for pixels that the network does
        not see.

    Raises:
        ValueError: the attention was not kept.
    """
    attention = result.kept_attention()
    values = attention.values
    rows, columns = values.shape[:2]
    cover = _cover(result, (rows, columns))
    xp = namespace(values)
    sums = to_host(from_host(cover, values) @ xp.reshape(values, (rows * columns, -1)))
    sizes = cover.sum(1)
    maps = sums / np.maximum(sizes, 1)[:, None]
    shares = maps / np.maximum(maps.sum(0), np.finfo(np.float32).tiny)
    by_label = (shares * cover).sum(1) / np.maximum(sizes, 1)
    order = [segment.label for segment in result.segments]
    scores: NDArray[np.float32] = np.clip(by_label[order], 0, 1).astype(np.float32)
    return scores


def _cover(result: Segmentation, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Return how many pixels of the network's input each mask has in each place of the grid: (k, places) float32."""
    placement = result.kept_attention().placement
    height, width = placement.size
    y = ((np.arange(height) + 0.5) * (placement.height / height) + placement.top).astype(np.int64)
    x = ((np.arange(width) + 0.5) * (placement.width / width) + placement.left).astype(np.int64)
    # With `pad`, the input extends beyond the image; its margins belong to no mask.
    rows, columns = (
        np.flatnonzero((at >= 0) & (at < n)) for at, n in ((y, placement.image_size[0]), (x, placement.image_size[1]))
    )
    labels = result.labels[np.ix_(y[rows], x[columns])].astype(np.int64)
    places = (rows * grid[0] // height)[:, None] * grid[1] + (columns * grid[1] // width)[None, :]
    count = grid[0] * grid[1]
    found = np.bincount((labels * count + places).ravel(), minlength=len(result.segments) * count)
    return found.reshape(-1, count).astype(np.float32)
