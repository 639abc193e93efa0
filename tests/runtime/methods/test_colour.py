"""Borders that follow the colours of the image."""

import numpy as np
import pytest
from diffseg.methods.colour import FAR, colour_refine, energy_of, window_sum
from hypothesis import given, settings
from hypothesis import strategies as st


def scene(height: int = 256, width: int = 256, noise: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """A disc and a strip before a background that changes slowly: (pixels, labels)."""
    y, x = np.mgrid[:height, :width]
    truth = np.where((y - 100) ** 2 + (x - 90) ** 2 < 60**2, 1, 0) + 2 * (x > 0.75 * width)
    colours = np.array([[60, 90, 60], [180, 60, 50], [70, 80, 170]])[truth].astype(float)
    colours += 30 * (y / height)[..., None] + np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return colours.clip(0, 255).astype(np.uint8), truth.astype(np.uint16)


def coarse(labels: np.ndarray, cell: int = 16) -> np.ndarray:
    return labels[cell // 2 :: cell, cell // 2 :: cell].repeat(cell, 0).repeat(cell, 1)


def test_coarse_borders_move_to_the_edges_of_the_picture():
    pixels, truth = scene()
    before = coarse(truth)
    after = colour_refine(before, pixels)
    assert (before != truth).mean() > 0.02
    assert (after != truth).mean() < 0.002


def test_a_large_picture_is_reduced_and_its_borders_stay_within_a_reduced_pixel():
    pixels, truth = (a.repeat(2, 0).repeat(2, 1) for a in scene())
    after = colour_refine(coarse(truth, 32), pixels)
    assert after.shape == truth.shape
    assert (after != truth).mean() < 0.004


def test_without_an_edge_the_masks_stay_where_attention_put_them():
    pixels = np.random.default_rng(1).normal(120, 5, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    labels = np.zeros((256, 256), np.uint16)
    labels[:, 100:] = 1
    assert (colour_refine(labels, pixels) != labels).mean() < 0.02


def test_colours_far_away_do_not_matter():
    """The left half of a mask is red, the right half blue: its borders are found all the same."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, :128, 0], pixels[:, 128:, 2] = 200, 200
    pixels[100:, :] = 90
    truth = np.zeros((256, 256), np.uint16)
    truth[100:] = 1
    before = np.roll(truth, 6, axis=0)
    before[:6] = 0
    np.testing.assert_array_equal(colour_refine(before, pixels), truth)


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), masks=st.integers(1, 5), seed=st.integers(0, 99),
    radius=st.integers(0, 50),
)  # fmt: skip
def test_no_mask_is_invented_whatever_the_size(height, width, masks, seed, radius):
    rng = np.random.default_rng(seed)
    labels = (7 * rng.integers(masks, size=(height, width))).astype(np.uint16)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    refined = colour_refine(labels, pixels, radius=radius, rounds=2)
    assert refined.shape == labels.shape
    assert refined.dtype == np.uint16
    assert set(np.unique(refined)) <= set(np.unique(labels))


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 20), width=st.integers(1, 20), radius=st.integers(0, 30), seed=st.integers(0, 99))
def test_window_sums_are_sums_over_windows(height, width, radius, seed):
    maps = np.random.default_rng(seed).random((2, height, width), np.float32)
    expected = np.empty_like(maps)
    for y in range(height):
        for x in range(width):
            window = maps[:, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            expected[:, y, x] = window.sum((1, 2))
    np.testing.assert_allclose(window_sum(maps, radius), expected, rtol=1e-5)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="same size"):
        colour_refine(np.zeros((8, 8), np.uint16), np.zeros((8, 9, 3), np.uint8))


def test_a_window_of_two_pixels_has_a_colour_model_and_one_of_a_single_pixel_has_none():
    colours = np.full((3, 1, 2), 0.5, np.float32)
    sums = np.concatenate([np.array([[[2.0, 1.0]]], np.float32), np.full((6, 1, 2), 0.5, np.float32)])
    energy = energy_of(sums, colours)
    assert energy[0, 0] < FAR
    assert energy[0, 1] == FAR
