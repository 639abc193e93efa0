"""Boundaries against brute force."""

import numpy as np
import pytest
from diffseg.measure.evaluate.boundary import Boundary, BoundaryCounts
from diffseg.measure.overlap import VOID
from hypothesis import given
from hypothesis import strategies as st

from tests.labelled import labelled


def edge_pixels(labels):
    height, width = labels.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if (x + 1 < width and labels[y, x] != labels[y, x + 1]) or (y + 1 < height and labels[y, x] != labels[y + 1, x])
    }


@given(labelled())
def test_boundaries_by_distances_of_all_pairs(pair):
    truth, labels = pair

    def near(point, others):
        return any((point[0] - y) ** 2 + (point[1] - x) ** 2 <= 4 for y, x in others)

    void = list(zip(*np.nonzero(truth == VOID), strict=True))
    # a true edge that touches void, at its pixel or at either neighbour that makes it an edge, is not known
    true = {
        (y, x)
        for y, x in edge_pixels(truth)
        if truth[y, x] != VOID
        and (x + 1 == truth.shape[1] or truth[y, x + 1] != VOID)
        and (y + 1 == truth.shape[0] or truth[y + 1, x] != VOID)
    }
    found = edge_pixels(labels)
    counted = {p for p in found if not near(p, void)}
    expected = BoundaryCounts(
        len(counted), sum(near(p, true) for p in counted), len(true), sum(near(p, found) for p in true)
    )
    assert Boundary(truth).counts(labels) == expected


def test_boundary_f_score():
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 20:] = 1
    shifted, far = np.zeros_like(truth), np.zeros_like(truth)
    shifted[:, 22:] = 1
    far[:, 23:] = 1
    boundary = Boundary(truth)
    assert boundary.counts(truth).f_score() == 1
    assert boundary.counts(shifted).f_score() == 1
    assert boundary.counts(far).f_score() == 0
    assert boundary.counts(np.zeros_like(truth)).f_score() == 0
    assert Boundary(np.zeros_like(truth)).counts(np.zeros_like(truth)).f_score() == 1
    assert Boundary(np.zeros_like(truth)).counts(truth).f_score() == 0
    assert BoundaryCounts(10, 5, 20, 20).f_score() == pytest.approx(2 / 3)


@given(labelled(), st.permutations(range(4)))
def test_numbers_of_masks_do_not_matter_to_boundaries(pair, numbers):
    truth, labels = pair
    assert Boundary(truth).counts(labels) == Boundary(truth).counts(np.array(numbers, np.uint16)[labels])
