"""The methods that are compared: those of `segment`, k-means on attention, and two baselines without a network."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from diffseg.engines.bundle.settings import MAX_TAU, REFINEMENTS, Refine

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

CONSTANT_CLUSTERS = 6
"""Number of clusters of the k-means that does not use the number of classes of an image (K-Means-C of the paper)."""

FIT_PIXELS = 20_000
"""Number of pixels of an image, evenly spread, to which colour k-means is fitted. All pixels are then assigned."""

POSITION = 40.0
"""Weight of the position: the longer side of the image counts as much as this difference in Lab."""

SUPERPIXELS = 360
REGIONS = 8
LIGHTNESS, COLOUR, TEXTURE, AREA_EXPONENT = 0.5, 1.3, 1.0, 0.75
"""Weights of L, of a and b, and of the texture features; exponent of the area term in Ward's cost."""

MAX_THRESHOLDS = 100


class Method(StrEnum):
    """A method that makes masks."""

    DIFFSEG = "diffseg"
    CUT = "cut"
    DIFFCUT = "diffcut"
    KMEANS_C = "kmeans-c"
    KMEANS_S = "kmeans-s"
    COLOUR = "colour"
    SUPERPIXELS = "superpixels"

    @property
    def needs_attention(self) -> bool:
        """Whether the method uses the attention of a network."""
        return self in (Method.DIFFSEG, Method.CUT, Method.KMEANS_C, Method.KMEANS_S)

    @property
    def needs_features(self) -> bool:
        """Whether the method uses the encoder features of a network that was exported for DiffCut."""
        return self is Method.DIFFCUT

    @property
    def needs_network(self) -> bool:
        """Whether the method needs a bundle."""
        return self.needs_attention or self.needs_features

    @property
    def has_settings(self) -> bool:
        """Whether the method is one of `segment`, with thresholds or tau, and a refinement."""
        return self in (Method.DIFFSEG, Method.CUT, Method.DIFFCUT)


def methods_of(*, features: bool) -> tuple[Method, ...]:
    """Return the methods that a bundle allows: one with encoder features, or else one with attention."""
    return tuple(m for m in Method if not (m.needs_attention if features else m.needs_features))


EXPLANATIONS = {
    Method.DIFFSEG: "attention maps merged by KL divergence; the number is the threshold",
    Method.CUT: "normalised cuts of the graph of the attention; the number is tau",
    Method.DIFFCUT: "normalised cuts of the graph of encoder features (DiffCut); the number is tau",
    Method.KMEANS_C: f"k-means on the same attention, always {CONSTANT_CLUSTERS} clusters",
    Method.KMEANS_S: "k-means on the same attention, given the number of classes in the image",
    Method.COLOUR: f"no network: k-means on colour and position, {CONSTANT_CLUSTERS} clusters",
    Method.SUPERPIXELS: f"no network: SLIC superpixels merged by Ward's cost to {REGIONS} regions",
}


def parse_methods(text: str) -> tuple[Method, ...]:
    """Read a list such as `diffseg,kmeans-c`.

    Raises:
        ValueError: the list contains an unknown method or is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(Method)]
    if unknown or not names:
        raise ValueError(f"methods must be some of {', '.join(Method)}, found {', '.join(unknown) or 'none'}")
    return tuple(method for method in Method if method in names)


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Read `0.5:1.5:0.1` (first:last:step, the last included) or `0.3,0.6`.

    Raises:
        ValueError: the text is not such a list, or has a negative threshold or more than 100 thresholds.
    """
    problem = f"thresholds must be FIRST:LAST:STEP or a list such as 0.3,0.6, at least 0 each, found {text!r}"
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = math.floor((last - first) / step + 1e-6) + 1  # 0.1 has no exact binary form
            values = [round(first + i * step, 6) for i in range(min(count, MAX_THRESHOLDS + 1) if step > 0 else 0)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(problem) from None
    usable = 0 < len(values) <= MAX_THRESHOLDS and all(math.isfinite(value) and value >= 0 for value in values)
    if not usable:
        raise ValueError(problem)
    return tuple(dict.fromkeys(values))


def parse_taus(text: str) -> tuple[float, ...]:
    """Read a list of tau such as `0.45,0.5`.

    Raises:
        ValueError: the text is not such a list, or has a value that is not from 0 to 2.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0 <= value <= MAX_TAU for value in values):
        raise ValueError(f"tau must be a number from 0 to {MAX_TAU}, or a list such as 0.45,0.5, found {text!r}")
    return tuple(dict.fromkeys(values))


def parse_refinements(text: str) -> tuple[Refine, ...]:
    """Read a list of refinements such as `none,pamr`.

    Raises:
        ValueError: the list contains an unknown refinement or is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in REFINEMENTS]
    if unknown or not names:
        found = ", ".join(unknown) or "none at all"
        raise ValueError(f"refine must be some of {', '.join(REFINEMENTS)}, found {found}")
    return cast("tuple[Refine, ...]", tuple(dict.fromkeys(names)))


def one_thread() -> AbstractContextManager[Any]:
    """Keep scikit-learn's loops on the calling thread, because images run in parallel and OpenMP's threads spin.

    On two cores with other work, scikit-learn's own two threads took ten times as long as one.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="openmp")
    return limits


def kmeans_attention(attention: NDArray[np.float32], clusters: int) -> NDArray[np.int32]:
    """Cluster the h·w attention maps of (h, w, h, w) with k-means, and return labels (h, w).

    This is scikit-learn's `KMeans` on the float32 maps, with one start by k-means++ and a fixed seed.
    """
    from sklearn.cluster import KMeans

    height, width = attention.shape[:2]
    maps = attention.reshape(height * width, height * width)
    # Maps sum to 1, so their variance is far below 1. Scale them to a mean square of 1 to preserve float32 precision.
    maps = maps * np.float32(1 / np.sqrt(np.mean(np.square(maps), dtype=np.float64)))
    with one_thread():
        labels = KMeans(min(clusters, len(maps)), n_init=1, random_state=0).fit_predict(maps)
    return np.asarray(labels, dtype=np.int32).reshape(height, width)


def kmeans_colour(image: Image.Image, clusters: int = CONSTANT_CLUSTERS) -> NDArray[np.int32]:
    """Cluster pixels by Lab colour and position, and return labels (H, W)."""
    from skimage.color import rgb2lab
    from sklearn.cluster import KMeans

    lab = rgb2lab(np.asarray(image)).astype(np.float32)
    height, width = lab.shape[:2]
    place = np.mgrid[:height, :width].astype(np.float32) * (POSITION / max(height, width))
    features = np.concatenate([lab, np.moveaxis(place, 0, -1)], axis=-1).reshape(height * width, 5)
    chosen = features[:: max(1, len(features) // FIT_PIXELS)]
    with one_thread():
        labels = KMeans(min(clusters, len(chosen)), n_init=1, random_state=0).fit(chosen).predict(features)
    return np.asarray(labels, dtype=np.int32).reshape(height, width)


def merge_superpixels(image: Image.Image, regions: int = REGIONS) -> NDArray[np.int32]:
    """Divide an image into SLIC superpixels, merge neighbours by Ward's cost on colour and texture; labels (H, W).

    `_ward` is used because superpixels differ in area, and scikit-learn's clustering does not support weights.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    pixels = np.asarray(image)
    parts = slic(pixels, SUPERPIXELS, compactness=15, max_num_iter=5, start_label=0)
    lab = rgb2lab(pixels).astype(np.float32)
    light = lab[..., 0]
    variance = gaussian_filter(light**2, 3) - gaussian_filter(light, 3) ** 2
    slopes = (np.abs(gaussian_filter(light, 1, order=order)) for order in ((0, 1), (1, 0)))
    texture = (np.sqrt(np.maximum(variance, 0)), *(2 * gaussian_filter(slope, 3) for slope in slopes))
    maps = (LIGHTNESS * light, COLOUR * lab[..., 1], COLOUR * lab[..., 2], *(TEXTURE * t for t in texture))
    flat, count = parts.ravel(), int(parts.max()) + 1
    area = np.bincount(flat, minlength=count).astype(np.float64)
    features = np.stack([np.bincount(flat, m.ravel(), count) / area for m in maps], axis=1)  # (superpixels, 6)
    touch = np.zeros((count, count), dtype=np.bool_)
    for a, b in ((parts[:, 1:], parts[:, :-1]), (parts[1:], parts[:-1])):
        touch[a, b] = touch[b, a] = True
    np.fill_diagonal(touch, val=False)
    return np.asarray(_ward(features, area / area.mean(), touch, regions)[parts], dtype=np.int32)


def _ward(
    features: NDArray[np.float64], area: NDArray[np.float64], touch: NDArray[np.bool_], regions: int
) -> NDArray[np.int64]:
    """Merge the cheapest neighbours until `regions` are left or none touch. Return the region of each part, from 0."""
    region = np.arange(len(area))

    def price(i: int) -> NDArray[np.float64]:
        size = area * area[i] / (area + area[i])
        cost = size**AREA_EXPONENT * ((features - features[i]) ** 2).sum(axis=1)
        return np.asarray(np.where(touch[i], cost, np.inf))

    costs = np.stack([price(i) for i in range(len(area))])
    for _ in range(len(area) - regions):
        i, j = divmod(int(costs.argmin()), len(area))
        if not np.isfinite(costs[i, j]):
            break
        features[i] = (features[i] * area[i] + features[j] * area[j]) / (area[i] + area[j])
        area[i] += area[j]
        touch[i] |= touch[j]
        touch[:, i] |= touch[:, j]
        touch[i, i] = touch[j] = touch[:, j] = False
        costs[j] = costs[:, j] = np.inf
        costs[i] = costs[:, i] = price(i)
        region[region == j] = i
    return np.asarray(np.unique(region, return_inverse=True)[1])
