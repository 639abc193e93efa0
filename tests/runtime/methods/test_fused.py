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
from diffseg.methods import fused
from diffseg.methods.aggregate import aggregate_and_count, aggregate_attention
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_distances, merge_attention
from diffseg.methods.suppress import non_max_suppression
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


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (5, 7)])
@pytest.mark.parametrize("mended", [0, 7, 70_000])
def test_suppression(gpu, size, mended):
    proposals = np.random.default_rng(0).random((5, 8, 6), np.float32)
    proposals[4] = proposals[2]  # a tie, which the lower index wins
    padded = np.concatenate([proposals, np.full((3, 8, 6), 9, np.float32)])  # beyond the count: not looked at
    count = strict.full((), 5, dtype=strict.int32, device=DEVICE)
    packed = to_host(gpu.kernels.suppress(placed(padded), count, mended, size))
    np.testing.assert_array_equal(packed[:-2].reshape(size), non_max_suppression(proposals, size))
    assert int(packed[-2]) + (int(packed[-1]) << 16) == mended


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


@pytest.mark.parametrize("refine", ["none", "colour", "kmeans"])
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
        if refine == "kmeans":
            continue  # it asks after each iteration whether to go on
        assert counts["waits"] == 1, names
        assert i == 0 or counts["copies"] == 0, names
        assert counts["calls"] == 22, names


@pytest.mark.parametrize(("refine", "waits"), [("none", 3), ("colour", 1)])
def test_an_image_of_another_size_brings_its_few_proposals_to_the_host(gpu, monkeypatch, refine, waits):
    """Their number, the proposals and the number of mended rows, or the labels that are to be refined."""
    settings = MergeSettings((0.6, 0.6, 0.6), 8, refine)
    maps = maps_of(10, (16, 8, 4, 2))
    expected, _ = segment([m.copy() for m in maps], settings, (150, 231))
    device = [placed(m) for m in maps]
    gpu.take()
    with gpu.counting(monkeypatch):
        labels, mended = segment(device, settings, (150, 231))
        names = dict(gpu.names)
    np.testing.assert_array_equal(labels, expected)
    assert mended == 0
    assert gpu.take()["waits"] == waits, names


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
