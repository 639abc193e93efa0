"""The averaged attention on a real GPU, against its NumPy twin, and inside a CUDA graph."""

import ml_dtypes
import numpy as np
import pytest
from diffseg.engines.kernels.launch import averaged_attention
from diffseg.engines.kernels.twin import averaged_attention as twin

cupy = pytest.importorskip("cupy", reason="needs CuPy, to launch the kernels")

SHAPES = {  # batch, layers·heads, nq, nk, width
    "64x64 of SD 1.5": (1, 40, 4096, 4096, 40),
    "32x32 of SD 1.5": (2, 40, 1024, 1024, 80),
    "16x16 of SD 1.5": (1, 40, 256, 256, 160),
    "8x8 of SD 1.5": (1, 8, 64, 64, 160),
    "32x32 of SDXL": (1, 120, 1024, 1024, 64),
    "5x5": (2, 8, 25, 25, 40),
    "12x20": (3, 10, 240, 240, 64),
    "narrow": (1, 4, 64, 100, 8),
}


def draw(shape, dtype):
    """Queries and keys as NumPy's arrays; bfloat16 as its bits."""
    batch, heads, nq, nk, width = shape
    random = np.random.default_rng(0)
    queries = random.standard_normal((batch, heads, nq, width), np.float32) * 2 / np.sqrt(width)
    keys = random.standard_normal((batch, heads, nk, width), np.float32) * 2
    if dtype == "bfloat16":
        return queries.astype(ml_dtypes.bfloat16).view(np.uint16), keys.astype(ml_dtypes.bfloat16).view(np.uint16)
    return queries.astype(dtype), keys.astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_compute_what_the_twin_computes(gpu, shape, dtype):
    if dtype == "bfloat16" and float(gpu.compute_capability) < 8:
        pytest.skip("this GPU has no bfloat16")
    queries, keys = draw(SHAPES[shape], dtype)
    averaged = averaged_attention(cupy.asarray(queries), cupy.asarray(keys)).get()
    np.testing.assert_allclose(averaged, twin(queries, keys), rtol=1e-4, atol=1e-6)


def test_the_kernels_are_captured_in_a_graph_and_replayed():
    shape = SHAPES["12x20"]
    queries, keys = (cupy.asarray(each) for each in draw(shape, "float16"))
    batch, heads, nq, nk, _ = shape
    averaged, sums = cupy.empty((batch, nq, nk), np.float32), cupy.empty((batch, heads, nq), np.float32)
    averaged_attention(queries, keys, averaged, sums)  # loads the kernels, which can't be captured
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        averaged_attention(queries, keys, averaged, sums)
        graph = stream.end_capture()
        queries *= 0.5
        graph.launch()
    stream.synchronize()
    np.testing.assert_allclose(averaged.get(), twin(queries.get(), keys.get()), rtol=1e-4, atol=1e-6)
