"""Measures of agreement, compared with plain float64 computations on whole arrays."""

import numpy as np
import pytest
from diffseg.engines import agreement


@pytest.fixture(params=[1 << 24, 50, 1], ids=["whole", "blocks", "rows"])
def pair(request, monkeypatch):
    """Two attentions (2, 9, 16) float32 that nearly agree, compared in blocks of several sizes."""
    monkeypatch.setattr(agreement, "BLOCK", request.param)
    rng = np.random.default_rng(0)
    expected = rng.random((2, 9, 16), np.float32)
    found = expected + rng.normal(0, 0.01, expected.shape).astype(np.float32)
    return tuple((x / x.sum(-1, keepdims=True)).astype(np.float32) for x in (expected, np.abs(found)))


def test_measures_are_those_of_the_whole_arrays(pair):
    x, y = (values.astype(np.float64) for values in pair)
    cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    assert agreement.max_error(*pair) == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    assert agreement.row_cosines(*pair) == pytest.approx(cosines.ravel(), abs=1e-12)
    assert agreement.cosine(*pair) == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert agreement.symmetric_kl(*pair) == pytest.approx(((x - y) * np.log(x / y)).sum(-1).mean() / 2, rel=1e-3)
    assert agreement.row_sum_error(pair[1]) == pytest.approx(np.abs(y.sum(-1) - 1).max())


def test_an_array_agrees_with_itself(pair):
    x = pair[0]
    assert agreement.max_error(x, x) == agreement.symmetric_kl(x, x) == 0
    assert agreement.row_cosines(x, x) == pytest.approx(1)


def test_bad_numbers_are_never_hidden(pair):
    expected, found = pair
    found[1, 4, 3], found[0, 0, 0] = np.nan, np.inf
    assert agreement.count_not_finite(found) == 2
    found[0, 0, 0] = 0
    assert np.isnan([agreement.max_error(expected, found), agreement.cosine(expected, found)]).all()
    assert np.isnan([agreement.symmetric_kl(expected, found), agreement.row_sum_error(found)]).all()
    assert np.flatnonzero(np.isnan(agreement.row_cosines(expected, found))).tolist() == [13]


def test_zeros_have_a_cosine_and_a_divergence():
    zeros, row = np.zeros((1, 4), np.float32), np.full((1, 4), 0.25, np.float32)
    assert agreement.row_cosines(zeros, row).tolist() == [0]
    assert np.isfinite(agreement.symmetric_kl(zeros, row))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_infinity_and_nan_are_told_by_the_result_alone(bad):
    """A warning would be an error here."""
    good = np.full((2, 4), 0.25, np.float32)
    spoilt = good.copy()
    spoilt[1, 2] = bad
    assert not np.isfinite([agreement.max_error(good, spoilt), agreement.cosine(good, spoilt)]).any()
    assert not np.isfinite([agreement.row_cosines(good, spoilt)[1], agreement.row_sum_error(spoilt)]).any()
