"""Assignment of pixels to concepts (DiffCut): labels of places become labels of pixels."""

from __future__ import annotations

import numpy as np
from diffseg.arrays import Array, from_host, namespace, to_host
from diffseg.methods.cut import normalized
from diffseg.methods.suppress import non_max_suppression


def assign_concepts(features: Array, labels: Array, size: tuple[int, int] = (128, 128)) -> Array:
    """Assign each pixel to the region whose mean feature is most similar (Couairon et al., 2024, section 3.3).

    The features are upsampled bilinearly with half-pixel centres, and each pixel takes the concept with the largest dot
    product, the lowest label in a tie. Upsampling is linear, so the products are taken on the grid and upsampled, which
    saves the upsampling of every channel.

    Args:
        features: `(h·w, C)` float, one row per place in row-major order.
        labels: `(h, w)` integers from 0, the regions.
        size: `(H, W)` of the result, in pixels.

    Returns:
        `(H, W)` uint16. Its labels are those of `labels` made dense; one that wins no pixel leaves a gap.

    Raises:
        ValueError: the labels do not fit the features, or `size` is empty.
    """
    return non_max_suppression(concept_scores(features, labels), size)


def concept_scores(features: Array, labels: Array) -> Array:
    """Return how similar each place is to each concept, the mean of the normalised features of a region.

    Args:
        features: `(h·w, C)` float, one row per place in row-major order.
        labels: `(h, w)` integers from 0, the regions.

    Returns:
        `(k, h, w)` float32 dot products, in the order of the labels.

    Raises:
        ValueError: the labels do not fit the features.
    """
    places, grid = tuple(features.shape), tuple(labels.shape)
    if len(places) != 2 or len(grid) != 2 or places[0] != grid[0] * grid[1] or 0 in places:  # noqa: PLR2004
        raise ValueError(f"features must be (h·w, C) and labels (h, w), found {places} and {grid}")
    xp = namespace(features)
    members = np.unique(to_host(labels).reshape(-1), return_inverse=True)[1].reshape(-1)
    one_hot = members[:, None] == np.arange(members.max() + 1)  # (h·w, k)
    shares = from_host((one_hot / one_hot.sum(0)).astype(np.float64), features)
    normed = normalized(features)
    concepts = shares.T @ normed  # (k, C)
    scores = xp.astype(concepts @ normed.T, xp.float32)  # (k, h·w)
    return xp.reshape(scores, (-1, *grid))
