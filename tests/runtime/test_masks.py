"""Masks at the image's own resolution."""

import tracemalloc

import numpy as np
import pytest
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.features import EncoderFeatures
from diffseg.image import fit_image
from diffseg.labels import place_labels
from diffseg.masks import View, finished_masks, guide_size
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffseg.methods.suppress import non_max_suppression
from diffseg.placement import Placement
from PIL import Image, ImageDraw

SIZE = (512, 512)


def oblique(width, height):
    """An image of two colours with noise, on both sides of an oblique line, and the line's column in each row."""
    line = width * (0.3 + 0.3 * (np.arange(height) + 0.5) / height)
    image = Image.new("RGB", (width, height), (200, 60, 40))
    ImageDraw.Draw(image).polygon([(0, 0), (line[0], 0), (line[-1], height), (0, height)], (40, 90, 180))
    return image, line


def proposals(angle=0.3):
    """Two maps that meet along the same line, but for waves."""
    y, x = (np.mgrid[:64, :64] + 0.5) / 64
    side = x - 0.3 - angle * y + 0.01 * np.sin(20 * y)
    return np.stack([1 / (1 + np.exp(30 * side)), 1 / (1 + np.exp(-30 * side))]).astype(np.float32)


def view_of(image, fit="stretch", *, guide=True):
    pixels, placement = fit_image(image, SIZE, fit)
    finer = guide_size(placement) if guide else None
    return View(pixels, placement, None if finer is None else fit_image(image, finer, fit)[0])


def steps(labels):
    """How far the border between labels 0 and 1 moves from row to row, without the first and last rows."""
    border = (labels == labels[0, 0]).sum(1)
    return np.abs(np.diff(border))[len(border) // 20 : -len(border) // 20]


@pytest.mark.parametrize(("refine", "error"), [("none", 0.02), ("colour", 0.003), ("pamr", 0.01)])
def test_twelve_megapixels_have_no_stairs(refine, error):
    image, line = oblique(4000, 3000)
    labels, segments = finished_masks(proposals(), view_of(image), refine, {})
    assert labels.shape == (3000, 4000)
    assert sum(segment.area for segment in segments) == labels.size
    assert steps(labels).max() <= 3  # the labels of the network's input, repeated, have steps of 8
    assert np.abs((labels == labels[0, 0]).sum(1) - line).mean() <= error * 4000


def test_memory_is_that_of_the_labels():
    placement = Placement((4000, 3000), SIZE, 0, 0, 4000, 3000)
    many = np.random.default_rng(0).random((40, 64, 64), np.float32)
    view = View(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8), placement)
    finished_masks(many, view, "none", {})  # imports and caches
    tracemalloc.start()
    try:
        labels, _ = finished_masks(many, view, "none", {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert labels.nbytes == 24_000_000
    assert peak < labels.nbytes + 70_000_000  # blocks of 8 MB and what describes their runs


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_an_image_of_the_network_s_size_keeps_its_labels(fit):
    image, _ = oblique(512, 512)
    view = view_of(image, fit)
    assert view.placement.same
    assert view.guide is None
    labels, segments = finished_masks(proposals(), view, "none", {})
    expected = place_labels(non_max_suppression(proposals(), SIZE), view.placement)
    np.testing.assert_array_equal(labels, expected[0])
    assert segments == expected[1]


def test_a_crop_and_its_image_have_the_same_masks():
    image, _ = oblique(900, 600)
    labels, _ = finished_masks(proposals(), view_of(image, "crop"), "none", {})
    inner, _ = finished_masks(proposals(), view_of(image.crop((150, 0, 750, 600))), "none", {})
    np.testing.assert_array_equal(labels[:, 150:750], inner)
    assert set(np.unique(labels[:, :150])) == set(np.unique(labels[:, 750:])) == {2}


def test_margins_take_part_and_are_cut_off():
    image, _ = oblique(1000, 500)
    labels, _ = finished_masks(proposals(), view_of(image, "pad"), "none", {})
    square = Image.new("RGB", (1000, 1000))
    square.paste(image, (0, 250))
    whole, _ = finished_masks(proposals(), view_of(square), "none", {})
    np.testing.assert_array_equal(labels, whole[250:750])


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((512, 512), "stretch", None),
        ((640, 480), "stretch", None),
        ((900, 300), "stretch", (1024, 1024)),
        ((4000, 3000), "pad", (1024, 1024)),
        ((20, 20), "crop", None),
        ((4000, 700), "crop", None),
    ],
)
def test_the_size_of_the_guide(size, fit, expected):
    assert guide_size(fit_image(Image.new("RGB", size), SIZE, fit)[1]) == expected


def test_a_guide_moves_borders_to_finer_details():
    """A narrow tongue that has no pixel of its own at the network's size."""
    image, _ = oblique(2048, 2048)
    ImageDraw.Draw(image).rectangle((400, 1000, 1180, 1019), (200, 60, 40))
    with_guide, _ = finished_masks(proposals(), view_of(image), "colour", {})
    without, _ = finished_masks(proposals(), view_of(image, guide=False), "colour", {})
    truth = np.asarray(image)[..., 0] > 120
    right, other = ((found != found[0, 0]) == truth for found in (with_guide, without))
    assert right.mean() > 0.98
    assert right.mean() >= other.mean()


@pytest.mark.parametrize("refine", ["none", "colour", "pamr"])
def test_smaller_results_take_pixels_of_larger_ones(refine):
    from diffseg.serving.http.responses import shrunk

    image, _ = oblique(900, 600)
    for fit in ("stretch", "crop", "pad"):
        view = view_of(image, fit)
        whole, _ = finished_masks(proposals(), view, refine, {})
        small = shrunk(view.placement, 97)
        found, _ = finished_masks(proposals(), View(view.pixels, small, view.guide), refine, {})
        assert found.shape == small.target == (65, 97)
        np.testing.assert_array_equal(found, whole[np.ix_(*small.taken())])


def test_features_compete_at_the_size_of_the_image():
    stripe = np.repeat([0, 1, 2, 2], 4)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 64))[stripe][None].repeat(16, 0).reshape(-1, 64)
    values += 0.05 * rng.standard_normal(values.shape)
    image, _ = oblique(1600, 1200)
    view = view_of(image)
    features = EncoderFeatures(values.astype(np.float32), (16, 16), view.pixels, view.placement, view.guide)
    labels, segments = features.masks(MergeSettings(method="diffcut", tau=0.5), {})
    assert labels.shape == (1200, 1600)
    assert len(segments) == 3
    regions = recursive_normalized_cut(features.values, 0.5)
    np.testing.assert_array_equal(labels, assign_concepts(features.values, regions, (1200, 1600)))


def test_arrays_of_another_library_give_the_same_masks():
    strict = pytest.importorskip("array_api_strict")
    image, _ = oblique(700, 500)
    view = view_of(image)
    rng = np.random.default_rng(0)
    maps = rng.random((256, 256)).astype(np.float32) + 8 * (rng.integers(0, 4, 256)[:, None] == np.arange(256) // 64)
    maps = (maps / maps.sum(1, keepdims=True)).astype(np.float32).reshape((16,) * 4)
    settings = MergeSettings((0.3, 0.3, 0.3), 4, "none")
    expected, _ = AggregatedAttention(maps, view.pixels, view.placement).masks(settings, {})
    placed = strict.asarray(maps, device=strict.Device("device1"))
    found, _ = AggregatedAttention(placed, view.pixels, view.placement).masks(settings, {})
    assert found.shape == (500, 700)
    assert len(np.unique(expected)) > 2
    assert (found == expected).mean() > 0.999  # sums are rounded differently
