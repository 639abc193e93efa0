"""The Segmenter with a network that reuses its memory and runs in parallel with the host, as on a GPU."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.errors import DeviceMemoryError, ImageError
from diffseg.engines.providers.network import SessionPool

from tests.runtime.doubles import LendingNetwork, LendingSession

PATIENCE = 20  # seconds: only a test that fails waits for so long


def pictures(count):
    """Different images of four plain quarters, uint8 (64, 64, 3)."""
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 256, (2, 2, 3), np.uint8), np.ones((32, 32, 1), np.uint8)) for _ in range(count)]


def same(found, expected):
    return all(np.array_equal(a.labels, b.labels) for a, b in zip(found, expected, strict=True))


def test_results_come_in_order_and_are_those_of_one_at_a_time(fake_bundle):
    images = pictures(11)
    plain = Segmenter(fake_bundle, LendingNetwork(device="cpu"))
    alone = [plain(image, threshold=0.5) for image in images]
    assert len({len(result.segments) for result in alone} | {alone[0].labels.tobytes(), alone[1].labels.tobytes()}) > 2
    for batch in (1, 3, 4):
        overlapping = Segmenter(fake_bundle, LendingNetwork(seconds=0.002), batch=batch)
        assert same(overlapping(images, threshold=0.5), alone)


def test_kept_attention_is_not_the_network_s_own_memory(fake_bundle):
    segmenter = Segmenter(fake_bundle, LendingNetwork(), batch=2)
    images = pictures(6)
    kept = segmenter(images, threshold=0.5, keep_attention=True)
    for result, image in zip(kept, images, strict=True):
        np.testing.assert_array_equal(result.attention.values, segmenter(image, keep_attention=True).attention.values)
        assert same([result.resegment(0.5)], [result])


def test_a_stream_that_is_used_between_its_results_is_not_disturbed(fake_bundle):
    segmenter = Segmenter(fake_bundle, LendingNetwork(), batch=2)
    images = pictures(6)
    expected = segmenter(images, threshold=0.5)
    found = []
    for _, result in segmenter.stream(images, 0.5):
        segmenter(images[0])
        found.append(result)
    assert same(found, expected)


def test_decoding_and_writing_go_on_while_the_network_works(fake_bundle):
    """Each step waits for one that can only run in parallel; in sequence they would wait for ever."""
    taken, working = threading.Semaphore(0), threading.Semaphore(0)

    def images():
        for image in pictures(4):
            taken.release()
            yield image

    class Waiting(LendingNetwork):
        def session(self):
            assert taken.acquire(timeout=PATIENCE)
            working.release()
            return super().session()

    segmenter = Segmenter(fake_bundle, Waiting())
    results = segmenter.stream(images())
    next(results)
    assert working.acquire(timeout=PATIENCE)  # the first
    assert working.acquire(timeout=PATIENCE)  # the second began while we hold the first and ask for nothing
    assert len(list(results)) == 3


def test_images_that_cannot_be_read_keep_their_place(fake_bundle, tmp_path):
    images = pictures(4)
    images.insert(1, tmp_path / "missing.png")
    results = list(Segmenter(fake_bundle, LendingNetwork(), batch=2).stream(images))
    assert [isinstance(result, ImageError) for _, result in results] == [False, True, False, False, False]


def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(fake_bundle, caplog):
    network = LendingNetwork(room=1)
    segmenter = Segmenter(fake_bundle, network, batch=4)
    images = pictures(8)
    with caplog.at_level(logging.WARNING):
        found = segmenter(images, threshold=0.5)
    assert network.passes == [4, 2] + [1] * 8
    assert [record.getMessage() for record in caplog.records] == [
        "no room for a batch of 4; continuing with a batch size of 2",
        "no room for a batch of 2; continuing with a batch size of 1",
    ]
    assert same(found, Segmenter(fake_bundle, LendingNetwork(device="cpu"))(images, threshold=0.5))


def test_one_image_that_does_not_fit_is_an_error(fake_bundle):
    with pytest.raises(DeviceMemoryError, match="no room for a batch of 1"):
        Segmenter(fake_bundle, LendingNetwork(room=0))(pictures(1)[0])


class Overflowing(LendingNetwork):
    """Some rows of its attention are NaN, or more than one row per image."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.pool = SessionPool(lambda: OverflowingSession(self))


class OverflowingSession(LendingSession):
    def attend(self, latent):
        outputs = super().attend(latent)
        for image, rows in zip(outputs[0], self.network.rows, strict=False):
            image[:rows] = np.nan
        outputs[1][0, -1, 0] = -1
        return outputs


def test_mended_attention_is_one_warning_per_batch(fake_bundle, caplog):
    segmenter = Segmenter(fake_bundle, Overflowing((3, 0, 2)), batch=3)
    with caplog.at_level(logging.WARNING):
        found = segmenter(pictures(3), keep_attention=True)
    assert [result.attention.mended_rows for result in found] == [4, 0, 2]
    (record,) = caplog.records
    assert "NaN, infinite or negative attention in 6 rows of 2 images" in record.getMessage()
    caplog.clear()
    Segmenter(fake_bundle, LendingNetwork())(pictures(2))
    assert not caplog.records


def test_threads_share_a_network_but_no_session(fake_bundle):
    network = LendingNetwork(seconds=0.005)
    segmenter = Segmenter(fake_bundle, network)
    images = pictures(8)
    expected = [Segmenter(fake_bundle, LendingNetwork(device="cpu"))(image, threshold=0.5) for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda image: segmenter(image, threshold=0.5), images))
    assert same(found, expected)


def test_a_pool_makes_as_many_sessions_as_are_used_at_once():
    made = []
    pool = SessionPool(lambda: made.append(object()) or made[-1])
    for _ in range(3):
        with pool.take() as only:
            assert only is made[0]
    with pool.take() as first, pool.take() as second:
        assert first is not second
    assert len(made) == 2


def test_a_session_in_which_something_failed_is_not_used_again():
    pool = SessionPool(object)
    with pytest.raises(ZeroDivisionError), pool.take() as broken:
        _ = 1 / 0
    with pool.take() as next_one:
        assert next_one is not broken
