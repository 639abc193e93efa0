"""The masks of encoder features, without a network."""

import numpy as np
import pytest
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.features import EncoderFeatures
from diffseg.image import Placement

GRID = (12, 16)
SETTINGS = MergeSettings(method="diffcut", tau=0.5)


@pytest.fixture
def features():
    """Three vertical stripes of features of their own, with some noise, and an image of three colours."""
    stripe = np.repeat([0, 1, 2, 2], 4)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((3, 64))
    values = directions[stripe][None].repeat(12, 0).reshape(-1, 64) + 0.1 * rng.standard_normal((192, 64))
    pixels = np.array([[200, 20, 20], [20, 200, 20], [20, 20, 200]], np.uint8)[stripe].repeat(8, 0)
    placement = Placement((48, 64), (96, 128), 0, 0, 48, 64)
    return EncoderFeatures(values.astype(np.float32), GRID, np.tile(pixels, (96, 1, 1)), placement)


@pytest.mark.parametrize("refine", ["none", "colour", "pamr"])
def test_regions_of_similar_features_become_masks(features, refine):
    timings = {}
    labels, segments = features.masks(SETTINGS.updated(refine=refine), timings)
    assert labels.shape == (48, 64)
    assert [segment.area for segment in segments] == pytest.approx([48 * 32, 48 * 16, 48 * 16], rel=0.15)
    for columns in (slice(3, 13), slice(19, 29), slice(35, 64)):
        assert len(np.unique(labels[:, columns])) == 1
    assert list(timings) == ["cut", "suppress", *(["refine"] if refine != "none" else [])]


def test_a_new_tau_solves_no_eigenproblem_again(features, monkeypatch):
    labels, _ = features.masks(SETTINGS, {})
    kept = features.copy()
    assert kept.values is not features.values
    assert kept.nbytes == features.values.nbytes + 8 * 192**2
    monkeypatch.setattr("diffseg.methods.cut.second_eigenvector", None)
    for one in (features, kept):
        assert len(one.masks(SETTINGS.updated(tau=0), {})[1]) == 1
        np.testing.assert_array_equal(one.masks(SETTINGS, {})[0], labels)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_features_without_contrast_give_one_mask(value):
    values = np.full((16, 8), value, np.float32)
    placement = Placement((5, 7), (32, 32), 0, 0, 5, 7)
    one = EncoderFeatures(values, (4, 4), np.zeros((32, 32, 3), np.uint8), placement)
    labels, segments = one.masks(SETTINGS, {})
    assert labels.shape == (5, 7)
    assert len(segments) == 1


def test_settings_keep_to_what_the_network_returns():
    with pytest.raises(ValueError, match="method must be one of diffcut, found 'diffseg'"):
        SETTINGS.updated(method="diffseg")
    with pytest.raises(ValueError, match="method must be one of diffseg, cut, found 'diffcut'"):
        MergeSettings().updated(method="diffcut")
    with pytest.raises(ValueError, match="refine 'kmeans' needs attention"):
        SETTINGS.updated(refine="kmeans")
