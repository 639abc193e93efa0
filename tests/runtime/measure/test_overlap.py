"""Overlap of masks against brute force, and against scikit-learn where it has the measure."""

import itertools
import sys

import numpy as np
import pytest
from diffseg.engines.errors import MissingPackageError
from diffseg.measure.overlap import VOID, Overlap, adjusted_rand, covering, image_iou, mask_iou, match
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from tests.labelled import labelled

maps = arrays(np.uint16, (5, 6), elements=st.integers(0, 3))


@given(maps, maps)
def test_mask_iou_is_the_best_of_all_matchings(a, b):
    expected, found = (np.unique(x, return_inverse=True)[1].reshape(5, 6) for x in (a, b))
    ious = np.zeros((expected.max() + 1, found.max() + 1))
    for i, j in np.ndindex(*ious.shape):
        ious[i, j] = ((expected == i) & (found == j)).sum() / ((expected == i) | (found == j)).sum()
    if ious.shape[0] > ious.shape[1]:
        ious = ious.T
    best = max(
        sum(ious[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(ious.shape[1]), len(ious))
    )
    assert mask_iou(a, b) == pytest.approx(best / ious.shape[1])


@given(maps, st.permutations(range(4)))
def test_renumbered_masks_are_the_same_masks(labels, order):
    assert mask_iou(labels, np.array(order, np.uint16)[labels]) == pytest.approx(1)


@given(labelled())
def test_overlap_counts_pixels(pair):
    truth, labels = pair
    overlap = Overlap.of(truth, labels)
    assert overlap.table.shape == (len(overlap.classes), labels.max() + 1)
    for row, label in enumerate(overlap.classes):
        for mask in range(overlap.table.shape[1]):
            assert overlap.table[row, mask] == ((truth == label) & (labels == mask)).sum()
    assert overlap.masks == len(np.unique(labels[truth != VOID]))


@given(labelled())
def test_covering_by_its_definition(pair):
    truth, labels = pair
    known = truth != VOID
    total = 0
    for region in np.unique(truth[known]):
        inside = truth == region
        best = max((inside & (labels == m)).sum() / (inside | ((labels == m) & known)).sum() for m in np.unique(labels))
        total += inside.sum() * best
    assert covering(Overlap.of(truth, labels)) == pytest.approx(total / known.sum())


@given(labelled())
def test_image_iou_is_the_best_of_all_assignments(pair):
    truth, labels = pair
    known = truth != VOID
    overlap = Overlap.of(truth, labels)
    masks = [(labels == m) & known for m in range(labels.max() + 1)] + [np.zeros_like(known)] * len(overlap.classes)
    best = max(
        sum(((truth == c) & m).sum() / ((truth == c) | m).sum() for c, m in zip(overlap.classes, some, strict=True))
        for some in itertools.permutations(masks, len(overlap.classes))
    )
    assert image_iou(overlap) == pytest.approx(best / len(overlap.classes))


@given(labelled())
def test_adjusted_rand_is_scikit_learns(pair):
    truth, labels = pair
    known = truth != VOID
    assert adjusted_rand(Overlap.of(truth, labels)) == pytest.approx(adjusted_rand_score(truth[known], labels[known]))


@given(labelled(), st.randoms(use_true_random=False))
def test_what_is_free_of_order(pair, random):
    truth, labels = pair
    numbers = list(range(7))
    random.shuffle(numbers)
    renamed = np.array(numbers, np.uint16)[labels]
    one, other = Overlap.of(truth, labels), Overlap.of(truth, renamed)
    for measure in (covering, adjusted_rand, image_iou):
        assert measure(one) == pytest.approx(measure(other))


def test_matching_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingPackageError, match="scipy is not installed: "):
        match(np.eye(2))
