"""The cut of attention: which places it makes, and that blocks of attention become regions."""

import numpy as np
import pytest
from diffseg.methods.cut_attention import AttentionCut, pooling_factor


@pytest.mark.parametrize(
    ("grid", "factor"), [((64, 64), 2), ((16, 16), 1), ((64, 96), 2), ((96, 64), 2), ((40, 40), 2), ((128, 128), 4)]
)
def test_the_shorter_side_has_at_most_32_places(grid, factor):
    assert pooling_factor(grid) == factor


def test_sides_without_a_common_divisor_stay_as_they_are():
    assert pooling_factor((37, 41)) == 1


@pytest.mark.parametrize("grid", [(12, 16), (64, 4)])
def test_parts_that_attend_to_themselves_become_regions(grid):
    """Three vertical stripes, each of which spreads 94 % of its attention evenly over itself."""
    height, width = grid
    stripe = np.arange(width) * 4 // width
    stripe = np.where(stripe == 3, 2, stripe)
    of = np.tile(stripe, height)
    same = (of[:, None] == of).astype(np.float64)
    attention = 0.94 * same / same.sum(1, keepdims=True) + 0.06 / of.size
    cut = AttentionCut.of(attention.reshape(*grid, *grid).astype(np.float32))
    proposals = cut.proposals(0.45)
    assert proposals.dtype == np.float32
    assert proposals.shape == (3, *grid)
    np.testing.assert_allclose(proposals.sum((1, 2)), 1, rtol=1e-4)
    winners = proposals.argmax(0)
    assert all(len(np.unique(winners[:, stripe == s])) == 1 for s in range(3))
    assert len(np.unique(winners)) == 3
    assert cut.proposals(0.0).shape == (1, *grid)
    assert cut.nbytes == cut.tree.affinity.nbytes + cut.maps.nbytes


def test_places_are_squares_of_the_grid():
    rng = np.random.default_rng(0)
    attention = rng.random((64, 64, 64, 64), np.float32)
    attention /= attention.sum((2, 3), keepdims=True)
    cut = AttentionCut.of(attention)
    np.testing.assert_allclose(cut.maps[33].reshape(64, 64), attention[2:4, 2:4].mean((0, 1)), rtol=1e-5)
    walk = attention[2:4, 2:4, 6:8, 10:12].mean((0, 1)).sum(), attention[6:8, 10:12, 2:4, 2:4].mean((0, 1)).sum()
    place, other = 1 * 32 + 1, 3 * 32 + 5
    np.testing.assert_allclose(cut.tree.affinity[place, other], sum(walk) / 2, rtol=1e-5)


def test_the_factor_divides_both_sides():
    assert pooling_factor((96, 33)) == pooling_factor((33, 96)) == 3
