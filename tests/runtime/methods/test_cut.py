"""Properties of the recursive cut and the assignment of concepts; parity with a slow version of both."""

import json

import numpy as np
import pytest
import scipy.linalg
from diffseg.methods import eigenvector
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import CutTree, best_division, recursive_normalized_cut
from diffseg.methods.eigenvector import second_eigenvector
from hypothesis import given, settings
from hypothesis import strategies as st

from .reference import upsample
from .strategies import seeds

FEW = settings(max_examples=15, deadline=None)


def blobs(seed, grid=(8, 8), regions=4, channels=16, noise=0.3):
    """(h·w, channels) float32 features with regions in them."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in grid], indexing="ij")
    centres = rng.random((regions, 2))
    region = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1).ravel()
    return (rng.normal(size=(regions, channels))[region] + noise * rng.normal(size=(len(region), channels))).astype(
        "f4"
    )


def affinity_of(features, alpha=10):
    f = features.astype(np.float64)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    a = f @ f.T
    return ((a - a.min()) / (a.max() - a.min())) ** alpha


def cut_cost(affinity, above):
    """Normalised cut as the paper defines it: cut / volume of one side + cut / volume of the other."""
    between = affinity[above][:, ~above].sum()
    return between / affinity[above].sum() + between / affinity[~above].sum()


def slow_labels(features, tau):
    """The reference's recursion, with whole matrices and no shortcuts; partitions of up to 20 divisions."""
    a = affinity_of(features)
    a = (a + a.T) / 2
    zero = (a == 0).any(1)
    sides = []

    def divide(keep):
        if keep.sum() < 2:
            return
        part = a[keep][:, keep]
        degrees = part.sum(1)
        v = scipy.linalg.eigh(np.diag(degrees) - part, np.diag(degrees))[1][:, 1]
        v *= np.sign(v[np.abs(v).argmax()])
        thresholds = np.linspace(v.min() * 0.99, v.max() * 0.99, 100)
        cost, t = min(((cut_cost(part, v > t), t) for t in thresholds), key=lambda pair: pair[0])
        if cost < tau:
            side = np.zeros(len(a), bool)
            side[np.flatnonzero(keep)[v > t]] = True
            sides.append(side)
            divide(side & ~zero)
            divide(keep & ~side & ~zero)

    divide(np.ones(len(a), bool))
    value = np.zeros(len(a))
    for side in sides:
        value += (value.max() + 1) * side
    return np.unique(value, return_inverse=True)[1]


def same_partition(a, b):
    return (
        len({*zip(np.ravel(a).tolist(), np.ravel(b).tolist(), strict=True)}) == len(np.unique(a)) == len(np.unique(b))
    )


@FEW
@given(seeds, st.sampled_from([(8, 8), (12, 7), (16, 16)]), st.sampled_from([0.3, 0.5, 0.8]))
def test_the_cut_is_the_slow_one(seed, grid, tau):
    features = blobs(seed, grid)
    labels = recursive_normalized_cut(features, tau, grid=grid)
    assert labels.shape == grid
    assert same_partition(labels, slow_labels(features, tau))
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


@FEW
@given(seeds)
def test_a_division_costs_its_normalised_cut_and_no_threshold_is_cheaper(seed):
    affinity = affinity_of(blobs(seed))
    vector = second_eigenvector(affinity)
    above, cost = best_division(affinity, vector)
    assert cost == pytest.approx(cut_cost(affinity, above), rel=1e-9)
    candidates = np.linspace(vector.min() * 0.99, vector.max() * 0.99, 100)
    assert cost <= min(cut_cost(affinity, vector > t) for t in candidates) + 1e-12


@FEW
@given(seeds, st.sampled_from([65, 130, 300]))
def test_the_eigenvector_is_that_of_all_eigenvectors(seed, places):
    affinity = affinity_of(blobs(seed, (places, 1)))
    degrees = affinity.sum(1)
    expected = scipy.linalg.eigh(np.diag(degrees) - affinity, np.diag(degrees))[1][:, 1]
    found = second_eigenvector(affinity)
    cosine = abs(found @ expected) / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine == pytest.approx(1, abs=1e-9)
    assert found[np.abs(found).argmax()] > 0


def test_an_iteration_that_does_not_converge_falls_back_on_all_eigenvectors(monkeypatch):
    affinity = affinity_of(blobs(1, (16, 16)))
    expected = second_eigenvector(affinity)
    monkeypatch.setattr(eigenvector, "STEPS", 2)
    assert eigenvector._lanczos(affinity, affinity.sum(1) ** 0.5) is None
    np.testing.assert_allclose(second_eigenvector(affinity), expected, atol=1e-6 * np.abs(expected).max())


def test_a_larger_tau_divides_further_and_the_tree_gives_what_a_fresh_one_gives(monkeypatch):
    features = blobs(3, (16, 16), regions=8, noise=0.8)
    tree = CutTree.of_features(features)
    counts = []
    for tau in (0.2, 0.6, 0.4, 0.2):
        labels = tree.labels(tau)
        np.testing.assert_array_equal(labels, recursive_normalized_cut(features, tau).ravel())
        counts.append(labels.max() + 1)
    assert counts[0] < counts[2] < counts[1]
    assert counts[3] == counts[0]
    monkeypatch.setattr(
        "diffseg.methods.cut.second_eigenvector", lambda _: pytest.fail("an eigenproblem was solved again")
    )
    tree.labels(0.4)


def test_more_divisions_than_a_float_has_digits():
    features = blobs(0, (16, 16), regions=40, noise=0.05, channels=64)
    labels = recursive_normalized_cut(features, 1.5)
    assert labels.max() >= 30
    divisions = CutTree.of_features(features).divided(1.5)
    assert len(divisions) > 30
    members = np.stack([np.isin(np.arange(256), d.places[d.upper]) for d in divisions])
    assert same_partition(labels, np.unique(members, axis=1, return_inverse=True)[1])


@pytest.mark.parametrize(
    ("features", "shape"),
    [
        (np.ones((16, 3)), (4, 4)),
        (np.zeros((16, 3)), (4, 4)),
        (np.full((16, 3), np.nan), (4, 4)),
        (np.full((16, 3), np.inf), (4, 4)),
        (np.ones((1, 3)), (1, 1)),
    ],
    ids=["constant", "zeros", "NaN", "infinite", "one place"],
)
def test_features_without_a_difference_are_one_region(features, shape):
    labels = recursive_normalized_cut(features)
    assert labels.shape == shape
    assert not labels.any()
    assert not assign_concepts(features, labels, (9, 5)).any()


@FEW
@given(seeds, st.sampled_from([0, np.nan, np.inf, 1e300, 1e-300]))
def test_a_place_that_says_nothing_does_no_harm(seed, value):
    features = blobs(seed).astype(np.float64)
    features[5] = value
    labels = recursive_normalized_cut(features)
    assert labels.shape == (8, 8)
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_two_places():
    np.testing.assert_array_equal(recursive_normalized_cut(np.eye(2), 0.5, grid=(1, 2)).shape, (1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((5, 2)),), "5 places do not fill a grid of 2 × 2: pass grid=(h, w)"),
        ((np.ones(4),), r"features must be \(places, channels\), found \(4,\)"),
        ((np.ones((0, 4)),), r"found \(0, 4\)"),
        ((np.eye(4), float("nan")), "tau must be a number, found NaN"),
        ((np.eye(4), 0.5, float("nan")), "alpha must be a number, found nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(h, w)", r"\(h, w\)")):
        recursive_normalized_cut(*arguments)


@FEW
@given(seeds, st.sampled_from([(8, 8), (6, 10)]), st.sampled_from([(32, 32), (30, 41), (5, 7)]))
def test_assignment_is_the_slow_one(seed, grid, size):
    features = blobs(seed, grid)
    labels = recursive_normalized_cut(features, 0.8, grid=grid)
    normed = features.astype(np.float64)
    normed /= np.linalg.norm(normed, axis=1, keepdims=True)
    concepts = np.stack([normed[labels.ravel() == k].mean(0) for k in range(labels.max() + 1)])
    rows = upsample_axis(normed.reshape(*grid, -1), size)
    scores = rows @ concepts.T  # (H, W, k)
    found = assign_concepts(features, labels, size)
    assert found.shape == size
    chosen = np.take_along_axis(scores, found[..., None].astype(int), 2)[..., 0]
    np.testing.assert_allclose(chosen, scores.max(2), atol=1e-5)


def upsample_axis(maps, size):
    """(h, w, C) → (H, W, C): bilinear, half-pixel centres."""
    for axis, target in enumerate(size):
        m = maps.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * m / target - 0.5, 0, m - 1)
        weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(m)))
        maps = np.moveaxis(np.tensordot(weights, maps, (1, axis)), 0, axis)
    return maps


def test_the_slow_upsampling_is_the_other_slow_one():
    maps = np.random.default_rng(0).random((5, 5, 1))
    np.testing.assert_allclose(upsample_axis(maps, (20, 20))[..., 0], upsample(maps[..., 0], 20))


def test_assignment_refuses_labels_of_another_grid():
    with pytest.raises(
        ValueError, match=r"features must be \(h·w, C\) and labels \(h, w\), found \(16, 3\) and \(3, 3\)"
    ):
        assign_concepts(np.ones((16, 3)), np.zeros((3, 3), int))


def test_the_iteration_ends_as_soon_as_it_has_converged(monkeypatch):
    """It is checked every eighth step. Two groups of places that hardly know each other need few."""
    noise = np.random.default_rng(0).random((120, 120)) * 0.01
    affinity = np.kron(np.eye(2), np.ones((60, 60))) + noise + noise.T
    shapes = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: shapes.append(len(matrix)) or eigh(matrix))
    scale = affinity.sum(1) ** -0.5
    assert eigenvector._lanczos(affinity * scale[:, None] * scale, 1 / scale) is not None
    assert max(shapes) <= 16


def test_the_hierarchy_leads_to_the_labels():
    rng = np.random.default_rng(3)
    features = np.repeat(rng.standard_normal((6, 5)), 10, axis=0) + 0.1 * rng.standard_normal((60, 5))
    tree = CutTree.of_features(features)
    for tau in (0, 0.3, 0.6, 0.9):
        labels, nodes = tree.hierarchy(tau)
        np.testing.assert_array_equal(labels, tree.labels(tau))
        divided = [node for node in nodes if "parts" in node]
        assert all(0 <= node["cost"] < tau for node in divided)
        assert sorted(part for node in divided for part in node["parts"]) == list(range(1, len(nodes)))
        leaves = [node["label"] for node in nodes if "label" in node]
        assert len(leaves) == len(divided) + 1
        assert set(leaves) - {None} <= set(labels.tolist())
        assert len(set(leaves) - {None}) == len(set(labels.tolist()))
        json.dumps(nodes)
    assert len(divided) > 2


def test_a_deep_hierarchy_is_a_flat_list():
    tree = CutTree(np.diag(np.full(400, 1.0)) + 1e-3)
    _, nodes = tree.hierarchy(2)
    assert len(json.dumps(nodes)) < 100_000


def test_a_threshold_may_lie_below_zero():
    affinity = np.full((4, 4), 1e-3)
    affinity[1:, 1:] = 1.0
    affinity[0, 0] = 1.0
    above, cost = best_division(affinity, np.array([-1.0, -0.5, -0.4, 0.1]))
    assert above.tolist() == [False, True, True, True]
    assert cost < 0.1


def test_a_place_without_affinity_or_with_too_much_has_no_eigenvector():
    affinity = np.ones((5, 5))
    assert second_eigenvector(affinity) is not None
    alone = affinity.copy()
    alone[0], alone[:, 0] = 0.0, 0.0
    assert second_eigenvector(alone) is None
    affinity[0, 0] = np.inf
    assert second_eigenvector(affinity) is None
