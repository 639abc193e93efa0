"""Pixel-adaptive mask refinement: parity with a slow version, and cases in which nothing may change."""

import numpy as np
import pytest
from diffseg.methods.pamr import median_filter, pamr_refine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from .strategies import seeds

FEW = settings(max_examples=10, deadline=None)


def case(seed, size=(20, 26), count=4):
    rng = np.random.default_rng(seed)
    labels = ndimage.zoom(rng.integers(0, count, (4, 5)), (size[0] / 4, size[1] / 5), order=0).astype(np.uint16)
    return labels, rng.random((*size, 3)).astype(np.float32)


def slow(labels, image, iterations, dilations):
    height, width = labels.shape
    image = image.astype(np.float64)

    def tap(plane, dy, dx):
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        return plane[rows][:, columns]

    shifts = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]
    taps = np.stack([tap(image, *s) for s in shifts])
    spread = 1e-8 + 0.1 * taps.std(0, ddof=1)
    ring = [s for s in shifts if s != (0, 0)]
    logits = np.stack([-(np.abs(tap(image, *s) - image) / spread).mean(-1) for s in ring])
    weights = np.exp(logits - logits.max(0))
    weights /= weights.sum(0)
    kinds = np.unique(labels)
    masks = np.stack([labels == k for k in kinds]).astype(np.float64)
    for _ in range(iterations):
        masks = np.stack([sum(w * tap(m, *s) for w, s in zip(weights, ring, strict=True)) for m in masks])
    return masks, kinds


@FEW
@given(seeds, st.sampled_from([((1,), 3), ((1, 2, 4), 2), ((1, 30), 4)]))
def test_refinement_is_the_slow_one(seed, settings):
    dilations, iterations = settings
    labels, image = case(seed)
    masks, kinds = slow(labels, image, iterations, dilations)
    refined = pamr_refine(labels, image, iterations, dilations)
    assert refined.dtype == labels.dtype
    chosen = masks[np.searchsorted(kinds, refined), *np.indices(labels.shape)]
    np.testing.assert_allclose(chosen, masks.max(0), atol=1e-5)


def test_a_border_moves_to_the_edge_of_the_colours():
    image = np.zeros((40, 40, 3), np.float32)
    image[:, 20:] = 1
    labels = np.zeros((40, 40), np.uint16)
    labels[:, 23:] = 1
    refined = pamr_refine(labels, image)
    np.testing.assert_array_equal(refined, (image[..., 0] > 0.5).astype(np.uint16))


def test_one_mask_and_no_iteration_change_nothing():
    labels, image = case(1)
    np.testing.assert_array_equal(pamr_refine(labels, image, 0), labels)
    np.testing.assert_array_equal(pamr_refine(np.zeros_like(labels), image), np.zeros_like(labels))
    np.testing.assert_array_equal(pamr_refine(labels, np.ones_like(image), 0), labels)


def test_an_even_image_gives_no_nan():
    labels, image = case(2)
    refined = pamr_refine(labels, np.full_like(image, 0.5))
    assert set(np.unique(refined)) <= set(np.unique(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0"),
        ({"dilations": ()}, "dilations at least 1"),
        ({"dilations": (0, 1)}, "dilations at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        pamr_refine(*case(0), **options)


def test_another_size_is_refused():
    labels, image = case(0)
    with pytest.raises(ValueError, match="of the same size"):
        pamr_refine(labels[:-1], image)


@FEW
@given(seeds)
def test_the_median_is_scipys(seed):
    labels = np.random.default_rng(seed).integers(0, 9, (12, 17))
    np.testing.assert_array_equal(median_filter(labels), ndimage.median_filter(labels, size=3))
