"""Measures against brute force, and against scikit-learn where it has them."""

import itertools

import numpy as np
import pytest
from diffseg.measure.evaluate.agreement import (
    Boundary,
    BoundaryCounts,
    Matches,
    Overlap,
    adjusted_rand,
    covering,
    image_iou,
    match_classes,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import adjusted_rand_score

COUNT = 5
VOID = 255


@st.composite
def maps(draw, masks=4, classes=COUNT - 1):
    """Truth with some void, not all of it, and labels, of the same small shape."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9))
    truth = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(classes), VOID])))
    labels = draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, masks - 1)))
    assume((truth != VOID).any())
    return truth, labels


@given(maps())
def test_overlap_counts_pixels(pair):
    truth, labels = pair
    overlap = Overlap.of(truth, labels)
    assert overlap.table.shape == (len(overlap.classes), labels.max() + 1)
    for row, label in enumerate(overlap.classes):
        for mask in range(overlap.table.shape[1]):
            assert overlap.table[row, mask] == ((truth == label) & (labels == mask)).sum()
    assert overlap.masks == len(np.unique(labels[truth != VOID]))


@given(maps())
def test_matching_finds_the_best_of_all_assignments(pair):
    overlap = Overlap.of(*pair)
    matches = match_classes(overlap, COUNT)
    table = np.zeros((COUNT, COUNT), int)
    table[list(overlap.classes), : overlap.table.shape[1]] = overlap.table
    best = max(table[range(COUNT), order].sum() for order in itertools.permutations(range(COUNT)))
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


@given(maps())
def test_covering_by_its_definition(pair):
    truth, labels = pair
    known = truth != VOID
    total = 0
    for region in np.unique(truth[known]):
        inside = truth == region
        best = max((inside & (labels == m)).sum() / (inside | ((labels == m) & known)).sum() for m in np.unique(labels))
        total += inside.sum() * best
    assert covering(Overlap.of(truth, labels)) == pytest.approx(total / known.sum())


@given(maps())
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


@given(maps())
def test_adjusted_rand_is_scikit_learns(pair):
    truth, labels = pair
    known = truth != VOID
    assert adjusted_rand(Overlap.of(truth, labels)) == pytest.approx(adjusted_rand_score(truth[known], labels[known]))


@given(maps(), st.randoms(use_true_random=False))
def test_what_is_free_of_order(pair, random):
    truth, labels = pair
    numbers = list(range(7))
    random.shuffle(numbers)
    renamed = np.array(numbers, np.uint16)[labels]
    one, other = Overlap.of(truth, labels), Overlap.of(truth, renamed)
    for measure in (covering, adjusted_rand, image_iou):
        assert measure(one) == pytest.approx(measure(other))
    assert Boundary(truth).counts(labels) == Boundary(truth).counts(renamed)


def edge_pixels(labels):
    height, width = labels.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if (x + 1 < width and labels[y, x] != labels[y, x + 1]) or (y + 1 < height and labels[y, x] != labels[y + 1, x])
    }


@given(maps())
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
