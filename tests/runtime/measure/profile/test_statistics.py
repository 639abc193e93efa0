"""Percentiles, drift and ratios, against NumPy, exact distributions and noise."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from diffseg.measure.profile.statistics import Summary, drift, paired_ratio
from hypothesis import given
from hypothesis import strategies as st

seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)
RUNS, GROUPS = 24, [i % 4 for i in range(24)]
SLOW_IMAGES = np.array([1.0, 3.0, 0.5, 1.2])[np.array(GROUPS)]


@given(seconds)
def test_a_summary_is_what_numpy_says(values):
    summary = Summary.of(values, [2 * v for v in values])
    assert summary.min == min(values)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.median == pytest.approx(np.median(values))
    for percent, found in ((90, summary.p90), (95, summary.p95), (99, summary.p99)):
        assert found == pytest.approx(np.percentile(values, percent))
    assert summary.share == pytest.approx(0.5)


def noise(seed):
    """Run times as they are: a floor, a tail to the right, and now and then a run that was disturbed."""
    rng = np.random.default_rng(seed)
    return SLOW_IMAGES * (1 + rng.gamma(2, 0.03, RUNS) + (rng.random(RUNS) < 0.1) * rng.random(RUNS))


def test_noise_passes_and_a_slow_image_is_no_drift():
    found = [drift(noise(seed), GROUPS) for seed in range(300)]
    assert all(d.judged for d in found)
    assert sum(d.drifting for d in found) <= 18
    # The probability is one: a tenth of steady profiles is below a tenth.
    assert 15 <= sum(d.probability < 0.1 for d in found) <= 45


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_rise_a_fall_and_a_step_are_drift(factor):
    slope = np.linspace(1, factor, RUNS)
    step = np.where(np.arange(RUNS) < RUNS // 2, 1, factor)
    for shape in (slope, step):
        found = [drift(noise(seed) * shape, GROUPS) for seed in range(50)]
        assert sum(d.drifting for d in found) >= 40
        assert all((d.change > 0) == (factor > 1) for d in found if d.drifting)
    exact = drift(SLOW_IMAGES * slope, GROUPS)
    assert exact.change == pytest.approx(factor - 1, rel=0.15)


def test_small_changes_and_few_runs_are_no_warning():
    assert not drift(SLOW_IMAGES * np.linspace(1, 1.03, RUNS), GROUPS).drifting
    assert drift(SLOW_IMAGES * np.linspace(1, 1.03, RUNS), GROUPS).probability < 1e-6
    for count, groups in ((1, 1), (4, 4), (8, 4), (4, 1)):
        few = drift(np.linspace(1, 2, count), [i % groups for i in range(count)])
        assert (few.judged, few.drifting) == (False, False)
    assert drift(np.linspace(1, 2, 6), [0] * 6).drifting


def test_equal_runs_and_ties_do_not_drift():
    found = drift([1.0] * 20, [0] * 20)
    assert (found.change, found.probability, found.drifting) == (0, 1, False)


def test_the_probability_is_that_of_mann_and_kendall():
    # Textbook form without groups and ties: n = 10, S = 45 - 2 discordant pairs, Var = n (n - 1) (2n + 5) / 18 = 125.
    values = [1, 2, 3, 5, 4, 6, 7, 9, 8, 10]
    z = (45 - 2 * 2 - 1) / 125**0.5
    from statistics import NormalDist

    assert drift(values, [0] * 10).probability == pytest.approx(2 * NormalDist().cdf(-z))


@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=40))
def test_the_interval_of_a_ratio_is_the_sign_tests(ratios):
    a = np.linspace(1, 3, len(ratios))
    found = paired_ratio(a, a * ratios)
    n, ordered = len(ratios), sorted(ratios)
    assert found.median == pytest.approx(np.median(ratios))
    coverage = {k: 1 - 2 * sum(Fraction(comb(n, i), 2**n) for i in range(k)) for k in range(n // 2 + 1)}
    k = max(k for k in coverage if coverage[k] >= Fraction(95, 100))
    if k == 0:
        assert n < 6
        assert found.low is found.high is None
    else:
        assert (found.low, found.high) == pytest.approx((ordered[k - 1], ordered[n - k]))


def test_pairs_cancel_what_images_differ_by():
    rng = np.random.default_rng(0)
    a = SLOW_IMAGES * (1 + 0.01 * rng.random(RUNS))
    b = 1.1 * SLOW_IMAGES * (1 + 0.01 * rng.random(RUNS))
    found = paired_ratio(a, b)
    assert 1.09 < found.low <= found.median <= found.high < 1.11
    for pair in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="ratios need pairs"):
            paired_ratio(*pair)
