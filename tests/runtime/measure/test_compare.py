"""Comparison of a provider with the CPU. Both are test doubles, and one of them is wrong on purpose."""

import numpy as np
import pytest
from diffseg.measure import compare
from diffseg.measure.compare import compare_providers
from PIL import Image

from tests.runtime.doubles import AlteredNetwork, LendingNetwork

pytest.importorskip("scipy", reason="needs the extra 'eval'")


@pytest.fixture
def held(fake_bundle, tmp_path, monkeypatch):
    """Compare a network with the correct one on two images."""
    rng = np.random.default_rng(1)
    paths = []
    for i in range(2):
        picture = np.kron(rng.integers(0, 256, (2, 2, 3), np.uint8), np.ones((40, 50, 1), np.uint8))
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture).save(paths[-1])

    def hold(network):
        both = {"cpu": LendingNetwork(device="cpu"), "double": network}
        monkeypatch.setattr(compare, "load_network", lambda _, provider: both[provider])
        return compare_providers(fake_bundle, "double", paths)

    return hold


def test_equal_networks_agree(held):
    comparison = held(LendingNetwork())
    assert comparison.passed
    assert comparison.first_difference is None
    assert [found.name for found in comparison.outputs] == ["latent", "attention_8", "attention_4"]
    assert comparison.mask_iou == {"0.png": 1.0, "1.png": 1.0}


def poison(outputs):
    outputs[1][0, 3, 5] = np.nan
    return outputs


def halve(outputs):
    outputs[1] *= 0.5
    return outputs


def shift(outputs):
    outputs[0][...] = np.roll(outputs[0], 9, axis=-1)
    return outputs


def lean(outputs):
    """Rows that still sum to 1 and point the same way, but put nothing where there was little."""
    for output in outputs:
        kept = np.where(output < 1e-3, 1e-20, output)
        output[...] = kept / kept.sum(-1, keepdims=True)
    return outputs


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (AlteredNetwork(encode=lambda latent: latent[..., ::-1]), "latent: cosine 0."),
        (AlteredNetwork(attend=poison), "attention_4: 1 entries are NaN or infinite"),
        (AlteredNetwork(attend=halve), "attention_4: mean symmetric KL"),
        (AlteredNetwork(attend=shift), "attention_8: 1st percentile of row cosines"),
        (AlteredNetwork(attend=lean), "attention_8: mean symmetric KL"),
    ],
)
def test_the_first_output_that_differs_is_named(held, network, message):
    comparison = held(network)
    assert not comparison.passed
    assert comparison.first_difference.startswith(message)


def test_masks_are_held_against_each_other_too(held, monkeypatch):
    """Differences within the bounds can still cross a threshold; the masks then show it."""
    monkeypatch.setitem(compare.LIMITS, "fp32", dict.fromkeys(compare.LIMITS["fp32"], -9.0) | {
        "kl": 99.0, "row_sum_error": 99.0, "mask_iou": 0.99,
    })  # fmt: skip
    comparison = held(AlteredNetwork(attend=shift))
    assert comparison.first_difference.startswith("masks of 0.png: mean IoU 0.")
