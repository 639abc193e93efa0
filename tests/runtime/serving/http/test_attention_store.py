"""The store of kept attention is bounded and expires."""

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.serving.http.attention_store import AttentionStore

from tests.runtime.doubles import LendingNetwork

BYTES = 8**4 * 4 + 8**2 * 4**2 * 4 + 3 * (3 * 64) ** 2
"""Attention, the distances of 4 × 4 anchors, and the image at three times the network's input size."""


@pytest.fixture
def result(fake_bundle, photo):
    return Segmenter(fake_bundle, LendingNetwork(device="cpu"))(photo, anchors=4, keep_attention=True)


def test_the_longest_unused_makes_room(result):
    store = AttentionStore(2 * BYTES, 100)
    first, second = store.add(result), store.add(result)
    assert store.get(first) is not None
    third = store.add(result)
    assert store.get(second) is None
    assert store.get(first) is not None
    assert store.get(third) is not None
    assert (len(store), store.bytes) == (2, 2 * BYTES)
    store.drop(first)
    assert store.get(first) is None


def test_distances_of_more_anchors_take_room_from_others(result):
    store = AttentionStore(2 * BYTES, 100)
    first, second = store.add(result), store.add(result)
    store.get(second).resegment(0.5, anchors=8)
    assert store.bytes > 2 * BYTES
    assert store.get(second) is not None
    assert (len(store), store.get(first)) == (1, None)


def test_ids_cannot_be_guessed(result):
    store = AttentionStore(100 * BYTES, 100)
    keys = {store.add(result) for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) >= 22 for key in keys)  # 128 bits
    assert store.get("") is None


def test_what_is_unused_expires(result):
    now = [0.0]
    store = AttentionStore(9 * BYTES, 10, lambda: now[0])
    used, unused = store.add(result), store.add(result)
    now[0] = 8
    assert store.get(used) is not None
    now[0] = 15
    store.expire()
    assert (len(store), store.get(unused)) == (1, None)
    assert store.get(used) is not None


def test_too_large_and_nothing_to_keep(result, fake_bundle, photo):
    assert AttentionStore(BYTES - 1, 10).add(result) is None
    assert AttentionStore(BYTES, 10).add(Segmenter(fake_bundle, LendingNetwork())(photo)) is None


def test_neither_the_picture_nor_the_rest_of_the_batch_is_kept(result, fake_bundle, photo):
    segmenter = Segmenter(fake_bundle, LendingNetwork(device="cpu"), batch=4)
    batch = segmenter([photo] * 4, anchors=4, keep_attention=True)
    store = AttentionStore(BYTES, 10)
    kept = store.get(store.add(batch[1]))
    assert kept.attention.values.base is None
    assert kept.image.size == (1, 1)
    np.testing.assert_array_equal(kept.resegment(0.3).labels, result.resegment(0.3).labels)


def test_reading_the_size_is_no_use(result):
    store = AttentionStore(2 * BYTES, 100)
    first, second = store.add(result), store.add(result)
    store.get(first)
    assert store.bytes == 2 * BYTES
    third = store.add(result)
    assert [store.get(key) is not None for key in (first, second, third)] == [True, False, True]


def test_what_outgrows_the_whole_store_stays_alone(result):
    store = AttentionStore(BYTES + 100, 100)
    key = store.add(result)
    store.get(key).resegment(0.5, anchors=8)
    assert store.bytes > BYTES + 100
    assert store.get(key) is not None
    assert store.get(key) is not None
    assert len(store) == 1
