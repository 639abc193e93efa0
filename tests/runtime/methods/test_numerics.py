"""Properties of aggregate, merge, suppress and refine; parity with the slow reference and scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from diffseg.arrays import to_host
from diffseg.methods import kmeans, merge
from diffseg.methods.aggregate import aggregate_and_count, aggregate_attention
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_distances, anchor_indices, merge_attention
from diffseg.methods.suppress import non_max_suppression
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from . import reference
from .strategies import attention, seeds

FEW = settings(max_examples=15)


@FEW
@given(seeds, st.sampled_from([(8,), (8, 4), (16, 8, 4, 2), (16, 4)]))
def test_aggregate_is_the_reference(seed, sides):
    maps = [attention(seed + n, n) for n in sides]
    result = aggregate_attention(maps)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference.aggregate(maps), atol=1e-6)
    np.testing.assert_allclose(result.sum((2, 3)), 1, atol=1e-5)


@FEW
@given(seeds)
def test_aggregate_takes_maps_in_any_order_and_of_any_float(seed):
    maps = [attention(seed + n, n) for n in (16, 8, 4)]
    expected = aggregate_attention(maps)
    np.testing.assert_array_equal(aggregate_attention(maps[::-1]), expected)
    np.testing.assert_allclose(aggregate_attention([m.astype(np.float64) for m in maps]), expected, atol=1e-7)
    np.testing.assert_allclose(aggregate_attention([m.astype(np.float16) for m in maps]), expected, atol=1e-3)
    np.testing.assert_allclose(aggregate_attention([m.mean(0) for m in maps]), expected, atol=1e-7)


def test_aggregate_leaves_its_input_alone_unless_told_to_write_there():
    maps = [attention(n, n).mean(0) for n in (16, 8)]
    before = [m.copy() for m in maps]
    expected = aggregate_attention(maps)
    for m, b in zip(maps, before, strict=True):
        np.testing.assert_array_equal(m, b)
    result = aggregate_attention(maps, out=maps[0])
    assert np.shares_memory(result, maps[0])
    np.testing.assert_array_equal(result, expected)


def test_a_missing_resolution_renormalises_the_weights():
    maps = [attention(n, n) for n in (64, 32, 16)]
    result = aggregate_attention(maps)
    np.testing.assert_allclose(result, aggregate_attention(maps, weights=(64 / 112, 32 / 112, 16 / 112)), rtol=1e-6)
    np.testing.assert_allclose(result.sum((2, 3)), 1, atol=1e-5)


def test_aggregate_of_an_image_that_is_not_square():
    rng = np.random.default_rng(0)
    maps = [rng.random((n, n), np.float32) for n in (4 * 6, 2 * 3)]
    result = aggregate_attention(maps, grids=[(4, 6), (2, 3)])
    assert result.shape == (4, 6, 4, 6)
    np.testing.assert_allclose(result.sum((2, 3)), 1, atol=1e-5)
    fine, coarse = (m / m.sum(-1, keepdims=True) for m in maps)
    keys = coarse.reshape(6, 2, 3).repeat(1, 0)
    weights = [
        np.maximum(0, 1 - abs(np.clip((np.arange(2 * m) + 0.5) / 2 - 0.5, 0, m - 1)[:, None] - np.arange(m)))
        for m in (2, 3)
    ]
    keys = np.einsum("yi,qij,xj->qyx", weights[0], keys, weights[1])
    keys /= keys.sum((1, 2), keepdims=True)
    expected = (4 * fine.reshape(4, 6, 4, 6) + 2 * keys.reshape(2, 3, 4, 6).repeat(2, 0).repeat(2, 1)) / 6
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "no attention maps"),
        ([np.ones((3, 4))], {}, "found \\(3, 4\\)"),
        ([np.ones((6, 6))], {}, "grids="),
        ([np.ones((16, 16)), np.ones((9, 9))], {}, "does not divide"),
        ([np.ones((16, 16))], {"weights": (1, 2)}, "as many weights"),
        ([np.ones((16, 16))], {"weights": (0,)}, "not all zero"),
        ([np.ones((16, 16))], {"weights": (float("nan"),)}, "finite"),
    ],
)
def test_aggregate_refuses_what_is_no_attention(maps, options, message):
    with pytest.raises(ValueError, match=message):
        aggregate_attention(maps, **options)


@FEW
@given(seeds, st.sampled_from([(0.5,), (0.3, 0.3, 0.3), (1.0, 0.5), (0.05, 2.0, 0.1)]), st.integers(2, 5))
def test_merge_is_the_reference(seed, thresholds, anchors):
    aggregated = aggregate_attention([attention(seed + n, n) for n in (12, 6)])
    result = merge_attention(aggregated, thresholds, anchors)
    expected = reference.merge(aggregated, thresholds, anchors)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=2e-6)


@FEW
@given(seeds, st.floats(0, 3))
def test_proposals_are_distributions(seed, threshold):
    aggregated = aggregate_attention([attention(seed, 8)])
    proposals = merge_attention(aggregated, threshold, 4)
    assert 1 <= len(proposals) <= 16
    np.testing.assert_allclose(proposals.sum((1, 2)), 1, atol=1e-4)


def test_anchors_of_the_paper():
    assert anchor_indices(64, 64, 16).reshape(16, 16)[:, 0].tolist() == [64 * r + 1 for r in range(1, 62, 4)]
    assert anchor_indices(64, 64, 16)[:16].tolist() == [64 + c for c in range(1, 62, 4)]
    assert anchor_indices(5, 5, 1).tolist() == [12]
    assert anchor_indices(2, 3, 16).tolist() == list(range(6))


@pytest.mark.parametrize(
    "poison", ["zeros", "nan map", "nan entry", "all nan", "constant", "inf", "negative", "one hot"]
)
@pytest.mark.parametrize("thresholds", [(1.0, 1.0, 1.0), (1.0,), (0.0, 0.0)])
@pytest.mark.parametrize("anchors", [1, 4])
def test_degenerate_attention_neither_crashes_nor_is_empty(poison, thresholds, anchors):
    maps = attention(3, 8)[0].copy()
    match poison:
        case "zeros":
            maps[:, :32] = 0
        case "nan map":
            maps[9] = np.nan
        case "nan entry":
            maps[9, 3] = np.nan
        case "all nan":
            maps[:] = np.nan
        case "constant":
            maps[:] = 1 / 64
        case "inf":
            maps[0, 0] = np.inf
        case "negative":
            maps[0, 0] = -1
        case "one hot":
            maps = np.eye(64, dtype=np.float32)
    for tensor in (aggregate_attention([maps.copy()]), maps.reshape(8, 8, 8, 8)):
        proposals = merge_attention(tensor, thresholds, anchors)
        assert len(proposals) >= 1
        assert np.isfinite(proposals).all()
        labels = non_max_suppression(proposals, (16, 16))
        assert labels.max() < len(proposals)
        refined = kmeans_refine(aggregate_attention([maps.copy()]), proposals)
        assert len(refined) >= 1
        assert np.isfinite(refined).all()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("scale", [3e38, 1e-38, 1e-44])
@pytest.mark.parametrize("sides", [(8,), (8, 4), (16, 8)])
def test_aggregation_of_huge_and_tiny_rows_neither_overflows_nor_vanishes(sides, scale, heads):
    """They are distributions once they are divided by their sums, so none of them counts as mended."""
    maps = [attention(n, n, heads=heads) for n in sides]
    for m in maps:
        m[:, ::3] *= np.float64(scale) / m[:, ::3].max((0, 2), keepdims=True)  # the largest entry of a row is `scale`
    result, mended = aggregate_and_count(maps)
    assert int(mended) == 0
    np.testing.assert_allclose(result.sum((2, 3)), 1, atol=1e-5)
    ordinary = [m.astype(np.float64) / m.max((0, 2), keepdims=True) for m in maps]
    np.testing.assert_allclose(result, aggregate_attention([m.astype(np.float32) for m in ordinary]), atol=1e-6)


def test_rows_of_the_least_and_the_largest_float_become_uniform():
    for value in (np.float32(1e-45), np.finfo(np.float32).max):
        maps = [np.full((n * n, n * n), value, np.float32) for n in (8, 4)]
        result, mended = aggregate_and_count(maps)
        np.testing.assert_allclose(result, 1 / 64, rtol=1e-6)
        assert int(mended) == 0


@FEW
@given(st.lists(st.tuples(st.sampled_from([np.nan, np.inf, -np.inf, -1, 0]), st.integers(0, 15)), max_size=6))
def test_mended_rows_are_counted_once_each(spoilt):
    maps = [attention(n, n).mean(0) for n in (8, 4)]
    for value, row in spoilt:
        maps[1][row] = value
    result, mended = aggregate_and_count(maps)
    assert int(mended) == len({row for _, row in spoilt})
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result.sum((2, 3)), 1, atol=1e-5)


def test_thresholds_may_be_numpys():
    aggregated = aggregate_attention([attention(1, 8)])
    expected = merge_attention(aggregated, (0.5, 0.5, 0.5), 4)
    for thresholds in (0.5, np.float32(0.5), np.full(3, 0.5), [0.5] * 3):
        np.testing.assert_array_equal(merge_attention(aggregated, thresholds, 4), expected)


@pytest.mark.parametrize("spoilt", [None, 0, np.nan])
def test_known_distances_serve_any_threshold(spoilt):
    maps = aggregate_attention([attention(1, 8)])
    if spoilt is not None:
        maps[3, 4] = spoilt
    distances = anchor_distances(maps, 4)
    for threshold in (0, 0.01, 0.5, 9):
        found = merge_attention(maps, threshold, 4, distances=distances)
        np.testing.assert_array_equal(found, merge_attention(maps, threshold, 4))
        assert np.isfinite(found).all()


def test_a_map_of_zeros_becomes_uniform():
    maps = attention(3, 8)[0].copy()
    maps[9] = 0
    proposals = merge_attention(maps.reshape(8, 8, 8, 8), (0.0,), 8)
    np.testing.assert_allclose(proposals.sum((1, 2)), 1, atol=1e-4)


def test_an_image_of_one_region_gives_one_mask():
    labels = non_max_suppression(merge_attention(np.full((16,) * 4, 1 / 256, np.float32)), (64, 64))
    assert labels.shape == (64, 64)
    assert (labels == 0).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4), {}, "\\(h, w, h, w\\)"),
        ((4, 4, 4, 5), {}, "\\(h, w, h, w\\)"),
        ((4, 4, 4, 4), {"thresholds": ()}, "thresholds"),
        ((4, 4, 4, 4), {"thresholds": (-1,)}, "thresholds"),
        ((4, 4, 4, 4), {"thresholds": (float("nan"),)}, "thresholds"),
        ((4, 4, 4, 4), {"anchors": 0}, "anchors"),
    ],
)
def test_merge_refuses_what_it_cannot_use(shape, options, message):
    with pytest.raises(ValueError, match=message):
        merge_attention(np.full(shape, 1 / 16, np.float32), **options)


@FEW
@given(seeds, st.integers(1, 6), st.sampled_from([8, 24, 40]))
def test_suppression_is_the_reference(seed, k, size):
    proposals = np.random.default_rng(seed).random((k, 8, 8), np.float32)
    labels = non_max_suppression(proposals, (size, size))
    assert labels.dtype == np.uint16
    assert (labels == reference.suppress(proposals, size)).mean() > 0.998  # float32 near-ties


def test_suppression_gives_ties_to_the_lowest_index():
    one = np.random.default_rng(0).random((1, 8, 8), np.float32)
    assert (non_max_suppression(one.repeat(5, 0), (100, 77)) == 0).all()


def test_suppression_of_another_shape():
    proposals = np.zeros((2, 4, 6), np.float32)
    proposals[0, :, :3] = proposals[1, :, 3:] = 1
    labels = non_max_suppression(proposals, (40, 90))
    assert labels.shape == (40, 90)
    assert (labels[:, :44] == 0).all()
    assert (labels[:, 46:] == 1).all()


@FEW
@given(seeds, st.integers(1, 6))
def test_refinement_is_scikit_learns(seed, k):
    aggregated = aggregate_attention([attention(seed + n, n, regions=4) for n in (12, 6)])
    proposals = merge_attention(aggregated, 0.2, 4)[:k]
    maps = aggregated.reshape(144, 144).astype(np.float64)
    fitted = KMeans(len(proposals), init=proposals.reshape(len(proposals), -1).astype(np.float64), n_init=1).fit(maps)
    expected = np.stack([maps[fitted.labels_ == i].mean(0) for i in sorted(set(fitted.labels_))])
    np.testing.assert_allclose(kmeans_refine(aggregated, proposals).reshape(-1, 144), expected, atol=1e-6)


def test_refinement_refills_an_empty_cluster_as_scikit_learn_does():
    aggregated = aggregate_attention([attention(5, 12, regions=4)])
    proposals = merge_attention(aggregated, 0.2, 4)[:2]
    proposals = np.concatenate([proposals, np.full((1, 12, 12), 5.0, np.float32)])  # nearest to nothing
    maps = aggregated.reshape(144, 144).astype(np.float64)
    fitted = KMeans(len(proposals), init=proposals.reshape(len(proposals), -1).astype(np.float64), n_init=1).fit(maps)
    expected = np.stack([maps[fitted.labels_ == i].mean(0) for i in sorted(set(fitted.labels_))])
    np.testing.assert_allclose(kmeans_refine(aggregated, proposals).reshape(-1, 144), expected, atol=1e-6)


def test_refinement_refuses_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="same grid"):
        kmeans_refine(np.ones((4, 4, 4, 4), np.float32), np.ones((2, 5, 5), np.float32))


def test_every_step_runs_on_any_array_library():
    """The same code serves CuPy: nothing outside the array-API standard is used, and nothing leaves the library."""
    array_api_strict = pytest.importorskip("array_api_strict", reason="needs the extra 'dev'")
    maps = [attention(n, n) for n in (16, 8, 4)]
    strict = [array_api_strict.asarray(m) for m in maps]
    expected = aggregate_attention(maps)
    aggregated = aggregate_attention(strict)
    np.testing.assert_allclose(to_host(aggregated), expected, atol=1e-7)
    proposals = merge_attention(aggregated, 0.5, 4)
    np.testing.assert_allclose(to_host(proposals), merge_attention(expected, 0.5, 4), atol=1e-6)
    refined = kmeans_refine(aggregated, proposals)
    labels = non_max_suppression(refined, (32, 48))
    host = non_max_suppression(kmeans_refine(expected, merge_attention(expected, 0.5, 4)), (32, 48))
    np.testing.assert_array_equal(to_host(labels), host)
    for result in (aggregated, proposals, refined, labels):
        assert type(result).__module__.startswith("array_api_strict")


@pytest.mark.parametrize(("n", "limit"), [(64, 150), (128, 800)])
def test_memory_above_the_inputs_is_bounded(n, limit):
    """The aggregated tensor takes the finest map's place; merging works in row blocks. In MB."""
    maps = [np.full((side**2, side**2), 1 / side**2, np.float32) for side in (n, n // 2, n // 4, n // 8)]
    maps[0] += np.random.default_rng(0).random(maps[0].shape[0], np.float32)[:, None] * 1e-7
    tracemalloc.start()
    try:
        aggregated = aggregate_attention(maps, out=maps[0])
        labels = non_max_suppression(merge_attention(aggregated), (8 * n, 8 * n))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert labels.shape == (8 * n, 8 * n)
    assert peak < limit * 1e6


@pytest.mark.parametrize(("factor", "steps"), [(2.0, 6), (50.0, 6), (0.5, 1)])
def test_kmeans_stops_at_scikit_learn_s_tolerance(monkeypatch, factor, steps):
    """Means that move by `factor` times what ends the iterations go on moving; labels never settle here."""
    maps = np.random.default_rng(1).random((4, 4, 4, 4), dtype=np.float32)
    flat = maps.reshape(16, 16).astype(np.float64)
    limit = 1e-4 * flat.var(axis=0).mean()  # scikit-learn's
    moves, labels = [], iter(range(100))

    def move(_, __, means):
        moves.append(factor if len(moves) < 5 else 0.5)
        moved = means.astype(np.float64)
        moved[0, 0] += np.sqrt(moves[-1] * limit)
        return moved

    monkeypatch.setattr(kmeans, "_means", move)
    monkeypatch.setattr(kmeans, "_assign", lambda *_: (np.arange(16) + next(labels)) % 2)
    kmeans.kmeans_refine(maps, maps[:2, 0])
    assert len(moves) == steps


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_suppression_needs_a_size(size):
    maps = np.ones((2, 3, 3), np.float32)
    with pytest.raises(ValueError, match="at least 1 × 1 pixels"):
        non_max_suppression(maps, size)
    assert non_max_suppression(maps, (1, 1)).shape == (1, 1)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3, 3), (2, 0, 3), (65536, 1, 1)])
def test_suppression_needs_proposals(shape):
    with pytest.raises(ValueError, match=r"proposals must be \(k, h, w\)"):
        non_max_suppression(np.ones(shape, np.float32), (2, 2))
    assert non_max_suppression(np.ones((65535, 1, 1), np.float32), (1, 1)).shape == (1, 1)


def test_one_threshold_stands_for_three_rounds(monkeypatch):
    attention = np.random.default_rng(0).random((4, 4, 4, 4), np.float32) ** 6
    attention /= attention.sum((2, 3), keepdims=True)
    rounds = []
    greedily = merge._merge_greedily
    monkeypatch.setattr(merge, "_merge_greedily", lambda maps, t: rounds.append(t) or greedily(maps, t))
    merge_attention(attention, 0.6, 4)
    assert rounds == [0.6, 0.6]  # after the first, which merges anchors
    merge_attention(attention)
    assert rounds[2:] == [1.0, 1.0]
    merge_attention(attention, [0.5])
    assert len(rounds) == 4
