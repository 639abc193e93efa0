"""Long loops can be stopped between their steps."""

import time

import numpy as np
import pytest
from diffseg.arrays import prefetched
from diffseg.cancellation import StoppedError, checkpoint, processor_seconds, stoppable
from diffseg.methods.colour import colour_refine
from diffseg.methods.cut import CutTree
from diffseg.methods.kmeans import kmeans_refine
from diffseg.methods.merge import anchor_distances, merge_attention
from diffseg.methods.pamr import pamr_refine
from diffseg.methods.suppress import non_max_suppression

RNG = np.random.default_rng(0)
ATTENTION = RNG.random((8, 8, 8, 8), np.float32) ** 4
ATTENTION /= ATTENTION.sum((2, 3), keepdims=True)
LABELS = np.arange(64, dtype=np.uint16).reshape(8, 8) // 4
PIXELS = RNG.integers(0, 256, (8, 8, 3), np.uint8)

WORK = {
    "distances": lambda: anchor_distances(ATTENTION, 4).values,
    "merge": lambda: merge_attention(ATTENTION, [0.0, 0.0], 8),
    "suppress": lambda: non_max_suppression(ATTENTION.reshape(64, 8, 8), (16, 16)),
    "kmeans": lambda: kmeans_refine(ATTENTION, ATTENTION[0]),
    "colour": lambda: colour_refine(LABELS, PIXELS),
    "pamr": lambda: pamr_refine(LABELS, PIXELS.astype(np.float32) / 255),
    "cut": lambda: CutTree(ATTENTION.reshape(64, 64) + ATTENTION.reshape(64, 64).T).labels(2.0),
}


class After:
    """Stops the work at its n-th check."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        if self.left < 0:
            raise StoppedError


@pytest.mark.parametrize("name", WORK)
def test_every_long_loop_has_checkpoints(name):
    expected = WORK[name]()
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    with stoppable(count):
        np.testing.assert_array_equal(WORK[name](), expected)
    assert steps > 1, "only the check at the beginning was made"
    with pytest.raises(StoppedError), stoppable(After(steps - 1)):
        WORK[name]()


def test_a_check_lasts_as_long_as_its_block():
    checkpoint()
    outer = After(3)
    with stoppable(outer):
        with stoppable(None):
            checkpoint()
        with pytest.raises(StoppedError), stoppable(After(0)):
            pytest.fail("the block began")
        checkpoint()
        assert outer.left == 1
    checkpoint()
    assert outer.left == 1


def test_thousands_of_maps_are_merged_in_blocks_like_few(monkeypatch):
    from diffseg.methods import merge

    whole = merge_attention(ATTENTION, [0.5, 0.5, 0.1], 8)
    blocks = merge.row_blocks

    def small(rows, row_bytes, like, least=1):
        return blocks(rows, 1 << 21, like)

    monkeypatch.setattr(merge, "row_blocks", small)
    np.testing.assert_allclose(merge_attention(ATTENTION, [0.5, 0.5, 0.1], 8), whole, rtol=1e-5, atol=1e-7)


def test_the_work_of_helping_threads_counts():
    """Even that of threads which help those."""

    def work(depth: int) -> float:
        if depth:
            return sum(prefetched(work, [depth - 1], 1))
        start = time.thread_time()
        while time.thread_time() < start + 0.05:
            pass
        return time.thread_time() - start

    before, own = processor_seconds(), time.thread_time()
    done = sum(prefetched(work, [0, 0, 1], 2))
    assert done >= 0.15
    assert processor_seconds() - before >= done
    assert time.thread_time() - own < done
