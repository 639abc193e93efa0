"""The fused kernels: their numbers are the CPU's, an image waits once, and no index is copied twice."""

import ast
import shutil
import sys
from pathlib import Path

import diffseg
import numpy as np
import pytest
from diffseg.arrays import to_host
from diffseg.attention import AggregatedAttention
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.methods import fused, kmeans
from diffseg.methods.aggregate import aggregate_and_count, aggregate_attention
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_distances, merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffseg.methods.tiles import Points, label_by_maps
from diffseg.placement import Placement

from .strategies import attention

pytest.importorskip("array_api_strict", reason="needs the extra 'dev'")
from .gpu_double import DEVICE, Gpu, compile_kernels, strict


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels for the CPU")
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def gpu(library):
    return Gpu(library)


def placed(array):
    return strict.asarray(array.copy(), device=DEVICE)


def maps_of(seed, sides=(16, 8, 4), regions=4):
    return [attention(seed + n, n, regions=regions).mean(0) for n in sides]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("sides", [(8,), (8, 4), (12, 6, 3), (16, 8, 4, 2)])
def test_aggregation(gpu, monkeypatch, sides, in_place):
    maps = maps_of(1, sides)
    maps[0][3], maps[0][40, 2], maps[-1][0, 1], maps[-1][1] = 0, np.nan, -1, np.inf
    maps[0][7] *= 3e38 / np.float64(maps[0][7].max())
    maps[0][8] *= 1e-44 / np.float64(maps[0][8].max())
    expected, count = aggregate_and_count(maps)
    device = [placed(m) for m in maps]
    with gpu.counting(monkeypatch):
        result, mended = aggregate_and_count(device, out=device[0] if in_place else None)
    assert gpu.counts == {"calls": 1 + len(sides)}  # the count's zero, and one per resolution
    np.testing.assert_allclose(to_host(result), expected, atol=1e-6)
    assert int(mended) == int(count) == 4
    assert np.shares_memory(result._array, device[0]._array) == in_place


def test_aggregation_of_an_image_that_is_not_square(gpu, monkeypatch):
    rng = np.random.default_rng(0)
    maps, grids = [rng.random((n, n), np.float32) for n in (8 * 6, 4 * 3)], [(8, 6), (4, 3)]
    with gpu.counting(monkeypatch):
        result = aggregate_attention([placed(m) for m in maps], grids=grids)
    np.testing.assert_allclose(to_host(result), aggregate_attention(maps, grids=grids), atol=1e-6)
    assert gpu.names["aggregate_level"] == 2


@pytest.mark.parametrize("thresholds", [(0.5,), (1.0, 1.0, 1.0), (0.2, 0.4), (0.0, 0.0), (0.3, 9.0), (float("inf"),)])
@pytest.mark.parametrize("anchors", [1, 4, 5])
def test_merging(gpu, monkeypatch, thresholds, anchors):
    aggregated = aggregate_attention(maps_of(3))
    expected = merge_attention(aggregated, thresholds, anchors)
    device = placed(aggregated)
    with gpu.counting(monkeypatch):
        distances = anchor_distances(device, anchors, clean=True)
        result = merge_attention(device, thresholds, anchors, distances=distances)
    assert gpu.names["near_weights"] == 1
    assert gpu.names["greedy_weights"] == len(thresholds) - 1
    np.testing.assert_allclose(to_host(distances.values), anchor_distances(aggregated, anchors).values, atol=1e-4)
    assert tuple(result.shape) == expected.shape
    np.testing.assert_allclose(to_host(result), expected, atol=2e-6)


def test_maps_that_may_be_no_distributions_are_looked_at_first(gpu, monkeypatch):
    maps = attention(1, 8)[0]
    maps[3], maps[40, 2], maps[50, 1] = 0, np.nan, -1
    maps = maps.reshape((8,) * 4)
    with gpu.counting(monkeypatch):
        result = merge_attention(placed(maps), (0.5, 0.5), 4)
    np.testing.assert_allclose(to_host(result), merge_attention(maps, (0.5, 0.5), 4), atol=1e-6)


POINTS = {
    "evenly": (Points.evenly(40), Points.evenly(30)),
    "few": (Points.evenly(5), Points.evenly(7)),
    "of the grid": (Points.evenly(8), Points.evenly(6)),
    "every fourth": (Points.evenly(64, 4), Points.evenly(48, 4)),
    "anywhere": (Points(np.array([-3.0, 0.1, 2.75, 9.5]), 5.5), Points(np.linspace(1, 4, 50), 4.25)),
}


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("mended", [0, 7, 70_000])
@pytest.mark.parametrize("block", [None, 3])
def test_suppression(gpu, monkeypatch, points, mended, block):
    rows, columns = POINTS[points]
    proposals = np.random.default_rng(0).random((5, 8, 6), np.float32)
    proposals[4] = proposals[2]  # a tie, which the lower index wins
    padded = np.concatenate([proposals, np.full((3, 8, 6), 9, np.float32)])  # beyond the count: not looked at
    count = strict.full((), 5, dtype=strict.int32, device=DEVICE)
    expected, found = (np.full((len(rows.places), len(columns.places)), 9999, np.uint16) for _ in range(2))
    label_by_maps(proposals, rows, columns, expected)
    device = placed(padded)
    if block:
        blocks = [slice(i, min(i + block, len(found))) for i in range(0, len(found), block)]
        monkeypatch.setattr(fused, "row_blocks", lambda *_: blocks)
    with gpu.counting(monkeypatch):
        assert fused.label_by_maps(device, count, mended, rows, columns, found) == mended
    np.testing.assert_array_equal(found, expected)
    assert gpu.counts["waits"] == (-(-len(found) // block) if block else 1)


def test_without_a_count_all_maps_compete(gpu, monkeypatch):
    proposals = np.random.default_rng(0).random((5, 8, 6), np.float32)
    found = np.empty((40, 30), np.uint16)
    device = placed(proposals)
    with gpu.counting(monkeypatch):
        assert fused.label_by_maps(device, None, 0, *POINTS["evenly"], found) == 0
    np.testing.assert_array_equal(found, non_max_suppression(proposals, (40, 30)))


def test_labels_of_a_part_of_an_image_leave_the_rest(gpu, monkeypatch):
    """As with `crop`, where the network does not see the margins."""
    proposals = np.random.default_rng(0).random((5, 8, 6), np.float32)
    whole = np.full((60, 50), 9999, np.uint16)
    device = placed(proposals)
    with gpu.counting(monkeypatch):
        fused.label_by_maps(device, None, 0, *POINTS["evenly"], whole[10:50, 5:35])
    np.testing.assert_array_equal(whole[10:50, 5:35], non_max_suppression(proposals, (40, 30)))
    whole[10:50, 5:35] = 9999
    assert (whole == 9999).all()


SIZE = (64, 64)
SETTINGS = MergeSettings((0.6, 0.6, 0.6), 8, "none")


def segment(maps, settings=SETTINGS, picture=SIZE):
    """The way of an image behind the network, from its maps to labels."""
    values, mended = aggregate_and_count(maps, out=maps[0])
    placement = Placement(picture, SIZE, 0, 0, *picture)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)  # one colour would be one segment
    aggregated = AggregatedAttention(values, pixels, placement, mended)
    labels, _ = aggregated.masks(settings, {})
    return labels, aggregated.mended_rows


@pytest.mark.parametrize("refine", ["none", "colour"])
def test_an_image_waits_once_and_copies_no_index_again(gpu, monkeypatch, refine):
    settings = MergeSettings((0.6, 0.6, 0.6), 8, refine)
    images = [maps_of(seed, (16, 8, 4, 2)) for seed in (10, 20, 30)]
    images[2][1][4] = np.nan
    expected = [segment([m.copy() for m in maps], settings) for maps in images]
    assert len({labels.max() for labels, _ in expected}) > 1 or expected[0][0].max() > 1
    for i, maps in enumerate(images):
        device = [placed(m) for m in maps]
        gpu.take()
        with gpu.counting(monkeypatch):
            labels, mended = segment(device, settings)
            names = dict(gpu.names)
        counts = gpu.take()
        np.testing.assert_array_equal(labels, expected[i][0])
        assert mended == expected[i][1] == (1 if i == 2 else 0)
        assert counts["waits"] == 1, names
        assert i == 0 or counts["copies"] == 0, names
        assert counts["calls"] == 22, names


@pytest.mark.parametrize("refine", ["none", "colour"])
def test_an_image_of_another_size_waits_once_as_well(gpu, monkeypatch, refine):
    settings = MergeSettings((0.6, 0.6, 0.6), 8, refine)
    for i in range(2):
        maps = maps_of(10, (16, 8, 4, 2))
        expected, _ = segment([m.copy() for m in maps], settings, (150, 231))
        device = [placed(m) for m in maps]
        gpu.take()
        with gpu.counting(monkeypatch):
            labels, mended = segment(device, settings, (150, 231))
            names = dict(gpu.names)
        counts = gpu.take()
        np.testing.assert_array_equal(labels, expected)
        assert mended == 0
        assert counts["waits"] == 1, names
        assert counts["calls"] == 22, names
        assert i == 0 or counts["copies"] == (1 if refine == "none" else 0), names  # where its rows and columns lie


def kmeans_iterations(monkeypatch, maps, settings):
    """Labels on the host, and how many iterations k-means took."""
    steps = []
    with monkeypatch.context() as patch:
        means = kmeans._means
        patch.setattr(kmeans, "_means", lambda *arguments: steps.append(1) or means(*arguments))
        labels, mended = segment([m.copy() for m in maps], settings)
    return labels, mended, len(steps)


def gradual_maps():
    """Maps (256, 256) whose places attend to what is near, so that clusters have no borders of their own."""
    y, x = np.divmod(np.arange(256), 16)
    near = np.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 18)
    near *= np.random.default_rng(0).uniform(0.5, 1, near.shape)
    return [(near / near.sum(1, keepdims=True)).astype(np.float32)]


@pytest.mark.parametrize(
    ("thresholds", "least", "more"),
    [((0.6, 0.2), 9, 0), ((1.0, 0.5), 7, 0), ((0.5,), 3, 5)],  # in the last case, a cluster becomes empty once
)
@pytest.mark.parametrize("every", [1, 3, 4])
def test_kmeans_waits_once_in_a_few_iterations(gpu, monkeypatch, thresholds, least, more, every):
    settings = MergeSettings(thresholds, 8, "kmeans")
    maps = gradual_maps()
    expected, mended, iterations = kmeans_iterations(monkeypatch, maps, settings)
    assert iterations >= least
    monkeypatch.setattr(kmeans, "EVERY", every)
    device = [placed(m) for m in maps]
    with gpu.counting(monkeypatch):
        labels, spoilt = segment(device, settings)
        names = dict(gpu.names)
    np.testing.assert_array_equal(labels, expected)
    assert spoilt == mended
    # The number of proposals, the state of the iterations now and then, and the labels.
    waits = gpu.counts["waits"] - 2 - -(-iterations // every)
    assert 0 <= waits <= more, names


@pytest.mark.parametrize("every", [1, 2, 4, 20])
@pytest.mark.parametrize("most", [1, 2, 3, 300])
def test_kmeans_on_a_device_takes_the_steps_of_the_host(monkeypatch, every, most):
    """Also where a cluster becomes empty, and where the largest number of iterations ends it."""
    aggregated = aggregate_attention([attention(5, 12, regions=4)])
    start = merge_attention(aggregated, 0.2, 4)[:3]
    start = np.concatenate([start, np.full((2, 12, 12), 5.0, np.float32), start[:1]])  # nearest to nothing, and a twin
    expected = kmeans_refine(aggregated, start, iterations=most)
    monkeypatch.setattr(kmeans, "EVERY", every)
    found = kmeans_refine(placed(aggregated), placed(start), iterations=most)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(to_host(found), expected, atol=1e-6)


def test_without_the_kernels_no_index_is_copied_again_either(gpu, monkeypatch):
    for i in range(2):
        device = [placed(m) for m in maps_of(10, (16, 8, 4, 2))]
        gpu.take()
        with gpu.counting(monkeypatch, fused_kernels=False):
            aggregate_and_count(device)
        assert gpu.counts["waits"] == 0
        assert i == 0 or gpu.counts["copies"] == 0, gpu.names


def test_row_products_on_a_device_are_no_batched_matrix_products(gpu, monkeypatch):
    """CuPy's vecdot copies its arguments and multiplies 1 × N by N × 1 matrices."""
    maps = aggregate_attention(maps_of(3))
    device = placed(maps)
    with gpu.counting(monkeypatch, fused_kernels=False):
        proposals = merge_attention(device, (0.5, 0.5), 4)
        kmeans_refine(device, proposals)
    assert gpu.names["vecdot"] == 0


def test_only_arrays_of_cupy_take_the_kernels():
    assert fused.kernels(np.zeros((2, 2), np.float32)) is None
    assert fused.kernels(strict.zeros((2, 2))) is None


def names_of_namespace(folder):
    """Attributes that modules of the package read from `xp`, the namespace of an array."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                value = node.value
                if isinstance(value, ast.Attribute) and value.attr == "xp":
                    yield "cupy", node.attr
                if isinstance(value, ast.Name) and value.id == "xp":
                    yield "array_api_compat.cupy", node.attr
                if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "namespace":
                    yield "array_api_compat.cupy", node.attr


def test_cupy_has_every_name_that_the_runtime_reads():
    """The modules import without a driver."""
    pytest.importorskip("cupy")
    import array_api_compat.cupy  # noqa: F401

    found = set(names_of_namespace(Path(diffseg.__file__).parent))
    assert {("array_api_compat.cupy", "uint16"), ("cupy", "take")} <= found
    missing = [(module, name) for module, name in sorted(found) if not hasattr(sys.modules[module], name)]
    assert missing == []


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_kernels_compile_for_every_gpu(architecture):
    """By CUDA's own compiler, which needs no driver."""
    pytest.importorskip("cupy")
    try:
        from cupy_backends.cuda.libs import nvrtc

        program = nvrtc.createProgram(fused.SOURCE, "fused.cu", (), ())
    except (ImportError, RuntimeError):
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc)")
    nvrtc.compileProgram(program, (*fused.OPTIONS, f"--gpu-architecture={architecture}"))
    assert nvrtc.getProgramLog(program).strip("\0\n ") == ""
