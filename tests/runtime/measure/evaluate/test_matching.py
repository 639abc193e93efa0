"""The paper's matching against brute force."""

import itertools

import numpy as np
import pytest
from diffseg.measure.evaluate.matching import Matches, match_classes
from diffseg.measure.overlap import Overlap
from hypothesis import given

from tests.labelled import CLASSES, labelled


@given(labelled())
def test_matching_finds_the_best_of_all_assignments(pair):
    overlap = Overlap.of(*pair)
    matches = match_classes(overlap, CLASSES)
    table = np.zeros((CLASSES, CLASSES), int)
    table[list(overlap.classes), : overlap.table.shape[1]] = overlap.table
    best = max(table[range(CLASSES), order].sum() for order in itertools.permutations(range(CLASSES)))
    assert matches.true_positives.sum() == best
    # each class has its pixels, and with no more masks than classes every mask is charged to some class
    np.testing.assert_array_equal(matches.true_positives + matches.false_negatives, table.sum(1))
    assert (matches.true_positives + matches.false_positives).sum() == table.sum()
    assert matches.accuracy() == pytest.approx(best / table.sum())


def test_surplus_masks_are_charged_to_nobody():
    table = np.array([[50, 9, 1, 0], [0, 1, 2, 30]])
    overlap = Overlap((0, 1), table)
    matches = match_classes(overlap, 2)
    np.testing.assert_array_equal(matches.true_positives, [50, 30])
    np.testing.assert_array_equal(matches.false_positives, [0, 0])  # masks 1 and 2 are gone
    np.testing.assert_array_equal(matches.false_negatives, [10, 3])
    assert match_classes(overlap, 4).false_positives.sum() == 13  # classes that are not in the image take them


def test_miou_depends_on_the_order_of_labels_and_accuracy_does_not():
    # Class 0 is in the first image only, class 1 in the second only: an unwanted mask falls on the other or on class 2.
    images = [Overlap((0,), np.array([[60, 40, 0]])), Overlap((1,), np.array([[0, 40, 60]]))]
    orders = list(itertools.product(itertools.permutations(range(3)), repeat=2))
    sums = [
        sum((match_classes(o, 3, np.array(p)) for o, p in zip(images, order, strict=True)), Matches.none(3))
        for order in orders
    ]
    assert len({round(m.mean_iou(), 6) for m in sums}) > 1
    assert {m.accuracy() for m in sums} == {0.6}


def test_iou_sums_over_images_and_leaves_out_classes_that_never_come_up():
    matches = Matches(np.array([30, 0, 0]), np.array([10, 5, 0]), np.array([20, 0, 0]))
    np.testing.assert_allclose(matches.iou(), [0.5, 0, np.nan])
    assert matches.mean_iou() == 0.25
    assert np.isnan(Matches.none(2).mean_iou())
    assert np.isnan(Matches.none(2).accuracy())
