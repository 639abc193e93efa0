"""The NumPy twin against a softmax that is written plainly in float64."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from diffseg.engines.kernels import twin
from diffseg.engines.kernels.twin import averaged_attention
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def naive(queries, keys):
    """The average as the paper writes it, with every head's map in memory."""
    logits = np.einsum("bhqd,bhkd->bhqk", queries.astype(np.float64), keys.astype(np.float64))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=1)


def draw(shape, places, dtype, seed, scale=1.0):
    """Queries and keys; `shape` is (batch, heads, nq, d), and `places` is nk."""
    random = np.random.default_rng(seed)
    batch, heads, _, width = shape
    queries = random.standard_normal(shape) * scale / np.sqrt(width)
    return queries.astype(dtype), (random.standard_normal((batch, heads, places, width)) * scale).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 20)),
    places=st.integers(1, 40),
    dtype=st.sampled_from(sorted(DTYPES)),
    scale=st.sampled_from([0.0, 1.0, 8.0]),
    block=st.sampled_from([1, 7, 64, 1 << 22]),
)
def test_the_twin_is_the_mean_of_softmaxes(shape, places, dtype, scale, block):
    queries, keys = draw(shape, places, DTYPES[dtype], seed=sum(shape), scale=scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "BLOCK", block)
        averaged = averaged_attention(queries, keys)
    assert averaged.dtype == np.float32
    assert averaged.shape == (shape[0], shape[2], places)
    np.testing.assert_allclose(averaged, naive(queries, keys), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(averaged.sum(axis=-1), 1, atol=1e-5)


def test_bits_of_bfloat16_are_bfloat16():
    queries, keys = draw((2, 3, 25, 40), 25, ml_dtypes.bfloat16, seed=1)
    bits = averaged_attention(queries.view(np.uint16), keys.view(np.uint16))
    np.testing.assert_array_equal(bits, averaged_attention(queries, keys))


def test_large_logits_of_half_precision_do_not_overflow():
    queries = np.full((1, 2, 4, 64), 200, np.float16)
    keys = np.full((1, 2, 5, 64), 200, np.float16)  # logits of 2.56 million: infinite in float16
    np.testing.assert_allclose(averaged_attention(queries, keys), 0.2)


def test_memory_is_bounded_by_the_result_and_one_block():
    queries, keys = draw((1, 4, 2048, 8), 2048, np.float16, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "BLOCK", 1 << 16)
        tracemalloc.start()
        averaged = averaged_attention(queries, keys)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < averaged.nbytes + 4 * (1 << 20)


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (np.ones((1, 2, 3, 4), np.float16), np.ones((1, 2, 3, 4), np.float32), "queries are float16 and keys float32"),
        (np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)), "both must be float16"),
        (np.ones((1, 2, 3, 4), np.float16), np.ones((1, 3, 3, 4), np.float16), r"keys \(1, 3, 3, 4\)"),
        (np.ones((1, 2, 3, 4), np.float16), np.ones((1, 2, 3, 5), np.float16), r"keys \(1, 2, 3, 5\)"),
        (np.ones((2, 3, 4), np.float16), np.ones((2, 3, 4), np.float16), r"queries are \(2, 3, 4\)"),
        (np.ones((1, 2, 0, 4), np.float16), np.ones((1, 2, 3, 4), np.float16), "no size may be 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(queries, keys, message):
    with pytest.raises(ValueError, match=message):
        averaged_attention(queries, keys)
