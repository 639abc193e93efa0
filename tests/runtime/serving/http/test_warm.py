"""Which batches the server segments before it is ready."""

from types import SimpleNamespace

from diffseg.serving.http.batcher import Batcher

from tests.runtime.doubles import LendingNetwork


def warmed(network):
    sizes = []
    segmenter = SimpleNamespace(network=network, batch=4)
    Batcher._warm_up(SimpleNamespace(segmenter=segmenter, _probe=sizes.append))
    return sizes


def test_every_size_whose_first_pass_takes_longer_is_warmed():
    assert warmed(SimpleNamespace(sizes_to_warm=lambda batch: [batch, 2, 1])) == [4, 2, 1]


def test_elsewhere_one_image_is_enough():
    assert warmed(LendingNetwork()) == [1]
