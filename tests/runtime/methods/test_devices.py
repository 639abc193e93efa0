"""Results stay on their arguments' device, shown on array-api-strict's second one: it refuses to mix devices."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from diffseg.arrays import to_host
from diffseg.methods.aggregate import aggregate_and_count, aggregate_attention
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_distances, merge_attention
from diffseg.methods.pamr import median_filter, pamr_refine
from diffseg.methods.suppress import non_max_suppression

from .strategies import attention

strict = pytest.importorskip("array_api_strict", reason="needs the extra 'dev'")
DEVICE = strict.Device("device1")
CREATION = ("asarray", "arange", "empty", "eye", "full", "linspace", "ones", "zeros")


@pytest.fixture(autouse=True)
def no_default_device(monkeypatch):
    """Creating an array without naming its device is an error, even where nothing would notice later."""

    def explicit(create):
        def checked(*arguments, device=None, **options):
            assert device == DEVICE, f"{create.__name__} on {device or 'the default device'}"
            return create(*arguments, device=device, **options)

        return checked

    for name in CREATION:
        monkeypatch.setattr(strict, name, explicit(getattr(strict, name)))


def placed(array):
    return strict.asarray(array, device=DEVICE)


def same(result, expected, **tolerance):
    assert result.device == DEVICE
    np.testing.assert_allclose(to_host(result), expected, **tolerance)


def spoilt(maps):
    """One row of each kind that is not a distribution, so that the branches that repair them run too."""
    maps = [m.copy() for m in maps]
    maps[0][:, 3], maps[0][:, 40, 2], maps[0][:, 90, 1] = 0, np.nan, -1
    return maps


@pytest.mark.parametrize("damage", [list, spoilt])
def test_aggregate(damage):
    maps = damage([attention(n, n) for n in (16, 8, 4)])
    same(aggregate_attention([placed(m) for m in maps]), aggregate_attention(maps), atol=1e-7)
    out = placed(np.empty((256, 256), np.float32))
    same(aggregate_attention([placed(m.mean(0)) for m in maps], out=out), aggregate_attention(maps), atol=1e-6)


def test_mended_rows_are_counted_on_the_device():
    maps = spoilt([attention(n, n) for n in (16, 8, 4)])
    maps[0][:, 5] *= 1e-44 / np.float64(maps[0][:, 5].max())  # denormal, but a distribution
    maps[1][:, 7] *= 3e38 / np.float64(maps[1][:, 7].max())
    maps[1][:, 2, 3] = np.inf
    values, mended = aggregate_and_count([placed(m) for m in maps])
    expected, count = aggregate_and_count(maps)
    same(values, expected, atol=1e-6)
    same(mended, 4)
    assert int(count) == 4


def test_aggregate_of_an_image_that_is_not_square():
    rng = np.random.default_rng(0)
    maps, grids = [rng.random((n, n), np.float32) for n in (4 * 6, 2 * 3)], [(4, 6), (2, 3)]
    same(aggregate_attention([placed(m) for m in maps], grids=grids), aggregate_attention(maps, grids=grids), atol=1e-6)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merge(damaged, dtype):
    maps = attention(1, 8)[0].astype(dtype)
    if damaged:
        maps[3], maps[40, 2], maps[50, 1] = 0, np.nan, -1
    maps = maps.reshape((8,) * 4)
    distances = anchor_distances(placed(maps), 4)
    same(distances.values, anchor_distances(maps, 4).values, atol=1e-4)
    for thresholds in (0.5, (1.0,), (0.2, 0.4)):
        same(merge_attention(placed(maps), thresholds, 4), merge_attention(maps, thresholds, 4), atol=1e-6)
        found = merge_attention(placed(maps), thresholds, 4, distances=distances)
        same(found, merge_attention(maps, thresholds, 4), atol=1e-6)


def test_suppress():
    proposals = np.random.default_rng(0).random((5, 8, 6), np.float32)
    labels = non_max_suppression(placed(proposals), (40, 30))
    same(labels, non_max_suppression(proposals, (40, 30)))


@pytest.mark.parametrize("with_an_empty_cluster", [False, True])
def test_kmeans(with_an_empty_cluster):
    aggregated = aggregate_attention([attention(5, 12, regions=4)])
    proposals = merge_attention(aggregated, 0.2, 4)[:2]
    if with_an_empty_cluster:
        proposals = np.concatenate([proposals, np.full((1, 12, 12), 5.0, np.float32)])  # nearest to nothing
    found = kmeans_refine(placed(aggregated), placed(proposals))
    same(found, kmeans_refine(aggregated, proposals), atol=1e-6)


def test_the_namespace_package_knows_copies_of_every_library():
    """Since 1.12 its `asarray` takes copy=False for CuPy as well."""
    requirement = pytest.importorskip("packaging.requirements").Requirement
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [r for r in map(requirement, project["dependencies"]) if r.name == "array-api-compat"]
    assert "1.11.2" not in found.specifier
    assert "1.12" in found.specifier


def test_cut_and_assign():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(4, 8))[np.arange(144) // 36] + 0.3 * rng.normal(size=(144, 8))).astype(np.float32)
    labels = recursive_normalized_cut(features, 0.8)
    assert labels.max() >= 3
    result = recursive_normalized_cut(placed(features), 0.8)
    same(result, labels)
    same(assign_concepts(placed(features), result, (40, 30)), assign_concepts(features, labels, (40, 30)))


def test_pamr():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 5)).astype(np.uint16).repeat(5, 0).repeat(5, 1)
    image = rng.random((20, 25, 3)).astype(np.float32)
    same(pamr_refine(placed(labels), placed(image), 3), pamr_refine(labels, image, 3))
    same(median_filter(placed(labels)), median_filter(labels))
