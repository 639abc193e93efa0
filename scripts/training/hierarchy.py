"""Region hierarchies of an image, from which the embedded model learns which places belong together.

No labels and no network: superpixels are merged by Ward's cost between their features (means of
colour and texture, histograms of colour and of textons, height in the image). Merging costs more across
a contour and for regions that don't touch. The most expensive merge that is needed to join two places
tells how far apart they are, and several recipes are averaged. Needs scikit-image and scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.cluster.vq import kmeans2, vq
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab
from skimage.segmentation import slic

SUPERPIXELS = 320
TEXTONS = 64
HUES = 20  # bins of each of the two colour channels
AREA = 350.0  # sum of the areas in Ward's cost, for any number of superpixels
FINE, COARSE = -1.5, 1.0  # range of levels of the affinity: nats of cost below and above the typical cost


class Recipe(NamedTuple):
    """How superpixels are merged: weights of their features, and factors that make a merge more expensive."""

    exponent: float  # exponent of the area in Ward's cost: a small one merges large regions early
    lightness: float
    chroma: float
    roughness: float
    hues: float  # histogram of the colour channels
    textons: float  # histogram of textons
    height: float  # vertical position in the image
    contour: float  # exponent of the contrast along the common border
    gap: float  # contrast assumed between regions that don't touch
    apart: float  # factor on the cost of merging them
    typical: float  # logarithm of the cost at which cutting the hierarchy gives sensible regions


RECIPES = (
    Recipe(0.5, 0.1, 0.5, 0.6, 0.5, 1.2, 0.2, 1.0, 0.25, 5.0, 7.8),
    Recipe(0.75, 0.1, 0.5, 0.6, 0.5, 1.2, 0.2, 1.0, 1.0, 2.0, 8.5),
    Recipe(0.75, 0.1, 0.5, 1.0, 1.2, 1.6, 0.1, 0.5, 1.0, 5.0, 9.6),
)


class Superpixels(NamedTuple):
    """n superpixels of an image and their features."""

    labels: np.ndarray  # (H, W) int64
    area: np.ndarray  # (n,) pixels
    mean: np.ndarray  # (n, 7): L, a, b, three measures of texture, height in percent
    hues: np.ndarray  # (n, 2 HUES) pixels
    textons: np.ndarray  # (n, TEXTONS) pixels
    border: np.ndarray  # (n, n) length of the common border in pixels
    light_contrast: np.ndarray  # (n, n) sum of the gradients along it
    colour_contrast: np.ndarray  # (n, n)


def texture(light: np.ndarray) -> np.ndarray:
    """Compute Gaussian derivatives of lightness (H, W) at three scales, with compressed contrast → (H, W, 15)."""
    found = []
    for sigma in (1.0, 2.0, 4.0):
        found += [sigma * gaussian_filter(light, sigma, order=order) for order in ((0, 1), (1, 0))]
        found += [sigma**2 * gaussian_filter(light, sigma, order=order) for order in ((0, 2), (2, 0), (1, 1))]
    stack = np.stack(found, -1)
    norm = np.sqrt((stack**2).sum(-1, keepdims=True))
    return stack * (np.log1p(norm / 3) / np.maximum(norm, 1e-6))


def learn_textons(files: Sequence[Path]) -> np.ndarray:
    """Cluster the texture at random places of images with k-means → (TEXTONS, 15)."""
    rng, samples = np.random.default_rng(0), []
    for file in files:
        light = rgb2lab(np.asarray(Image.open(file).convert("RGB")))[..., 0].astype(np.float32)
        samples.append(rng.choice(texture(light).reshape(-1, 15), 400))
    return kmeans2(np.concatenate(samples), TEXTONS, iter=30, minit="++", seed=0)[0]


def superpixels(image: np.ndarray, textons: np.ndarray) -> Superpixels:
    """Divide an image, uint8 (H, W, 3), into superpixels (SLIC) and describe them."""
    labels = slic(image, SUPERPIXELS, compactness=12, max_num_iter=5, start_label=0, sigma=0.7)
    lab = rgb2lab(image).astype(np.float32)
    light, flat, n = lab[..., 0], labels.ravel(), int(labels.max()) + 1
    area = np.bincount(flat, minlength=n).astype(np.float64)
    variance = gaussian_filter(light**2, 3) - gaussian_filter(light, 3) ** 2
    slopes = [2 * gaussian_filter(np.abs(gaussian_filter(light, 1, order=o)), 3) for o in ((0, 1), (1, 0))]
    height = np.broadcast_to(np.linspace(0, 100, len(light))[:, None], light.shape)
    maps = (*np.moveaxis(lab, -1, 0), np.sqrt(np.maximum(variance, 0)), *slopes, height)
    mean = np.stack([np.bincount(flat, m.ravel(), n) / area for m in maps], 1)
    nearest = vq(texture(light).reshape(-1, 15), textons)[0]
    histogram = np.bincount(flat * TEXTONS + nearest, minlength=n * TEXTONS).reshape(n, TEXTONS)
    hues = np.concatenate([soft_histogram(flat, lab[..., channel], n) for channel in (1, 2)], 1)
    gradients = np.zeros((3, *light.shape))
    for channel in range(3):
        for sigma in (1.0, 2.0):
            across, down = (gaussian_filter(lab[..., channel], sigma, order=o) for o in ((0, 1), (1, 0)))
            gradients[channel] += sigma * np.hypot(across, down) / 20
    sides = ((labels[:, 1:], labels[:, :-1], np.maximum(gradients[:, :, 1:], gradients[:, :, :-1])),)
    sides += ((labels[1:], labels[:-1], np.maximum(gradients[:, 1:], gradients[:, :-1])),)
    codes = np.concatenate([(a * n + b).ravel() for a, b, _ in sides])
    slope = np.concatenate([s.reshape(3, -1) for *_, s in sides], 1)
    border, bright, coloured = (
        np.bincount(codes, weight, n * n).reshape(n, n) for weight in (None, slope[0], slope[1] + slope[2])
    )
    for matrix in (border, bright, coloured):
        np.fill_diagonal(matrix, 0)
    both_ways = (matrix + matrix.T for matrix in (border, bright, coloured))
    return Superpixels(labels, area, mean, hues, histogram.astype(np.float64), *both_ways)


def soft_histogram(flat: np.ndarray, channel: np.ndarray, n: int) -> np.ndarray:
    """Return the histogram (n, HUES) of a Lab colour channel in each superpixel. Each pixel counts for two bins."""
    place = np.clip((channel.ravel() + 55) / 120 * (HUES - 1), 0, HUES - 1.001)
    index, rest = place.astype(np.int64), place % 1
    low = np.bincount(flat * HUES + index, 1 - rest, n * HUES)
    return (low + np.bincount(flat * HUES + index + 1, rest, n * HUES)).reshape(n, HUES)


def distances(pixels: Superpixels, recipe: Recipe) -> np.ndarray:
    """Merge the cheapest pair until one region is left.

    Returns:
        (n, n) float32: logarithm of the most expensive merge that was needed to join two superpixels.
    """
    n = len(pixels.area)
    scale = [recipe.lightness, *(recipe.chroma,) * 2, *(recipe.roughness,) * 3, recipe.height]
    mean = pixels.mean * np.array(scale)
    counts = np.concatenate([pixels.hues, pixels.textons], 1)
    weight = 40 * np.repeat([recipe.hues, recipe.textons], [2 * HUES, TEXTONS])
    area, total = pixels.area * (AREA / pixels.area.sum()), pixels.area.copy()
    border = pixels.border.astype(np.float64)
    contrast = recipe.lightness * pixels.light_contrast + recipe.chroma * pixels.colour_contrast
    feature = np.concatenate([mean, np.sqrt(counts / total[:, None]) * weight], 1)  # Hellinger's distance

    def price(i: int) -> np.ndarray:
        size = area * area[i] / (area + area[i])
        cost = size**recipe.exponent * ((feature - feature[i]) ** 2).sum(1)
        touch = border[i] > 0
        edge = np.where(touch, contrast[i] / np.maximum(border[i], 1), recipe.gap)
        cost *= np.where(touch, 1, recipe.apart) * (edge + 0.05) ** recipe.contour
        cost[i] = np.inf
        return cost

    cost = np.stack([price(i) for i in range(n)])
    member, far = [np.array([i]) for i in range(n)], np.full((n, n), -np.inf, np.float32)
    where = list(range(n))  # one superpixel for each remaining region: its row in all arrays
    dearest = -np.inf
    while len(where) > 1:
        i, j = sorted(divmod(int(cost.argmin()), len(where)))
        dearest = max(dearest, float(np.log(cost[i, j] + 1e-9)))
        far[np.ix_(member[i], member[j])] = far[np.ix_(member[j], member[i])] = dearest
        member[i] = np.concatenate([member[i], member.pop(j)])
        where.pop(j)
        mean[i] = (mean[i] * area[i] + mean[j] * area[j]) / (area[i] + area[j])
        for table in (area, total, counts, border, contrast):
            table[i] += table[j]
        for table in (border, contrast):
            table[:, i] += table[:, j]
            table[i, i] = 0
        feature[i] = np.concatenate([mean[i], np.sqrt(counts[i] / total[i]) * weight])
        keep = np.arange(len(area)) != j
        area, total, mean, counts, feature = (table[keep] for table in (area, total, mean, counts, feature))
        border, contrast, cost = (table[keep][:, keep] for table in (border, contrast, cost))
        cost[i] = cost[:, i] = price(i)
    return far


def affinity(far: np.ndarray) -> np.ndarray:
    """Convert distances (recipe, n, n) to affinities, uint8 (n, n): the share, of 255, of cuts that keep two together.

    The cuts are made at fixed costs, evenly on a logarithmic scale, so simple images give few regions.
    """
    typical = np.array([recipe.typical for recipe in RECIPES], np.float32)[:, None, None]
    together = np.clip((typical + COARSE - far.astype(np.float32)) / (COARSE - FINE), 0, 1)
    return np.rint(255 * together.mean(0)).astype(np.uint8)
