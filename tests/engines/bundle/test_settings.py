"""Settings that the caller leaves out, and fingerprints, to the last digit."""

import pytest
from diffseg.engines.bundle.manifest import ENCODER, QUERIES_KEYS, UNET, File, MergeSettings


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_one_threshold_stands_for_every_round_of_the_bundle(rounds):
    settings = MergeSettings(thresholds=(1.0,) * rounds)
    assert settings.updated(0.5).thresholds == (0.5,) * rounds
    assert settings.updated([0.5, 0.7]).thresholds == (0.5, 0.7)
    assert settings.updated().thresholds == (1.0,) * rounds


@pytest.mark.parametrize("position", [0, 1, 11, 12, 31, 62, 63])
def test_every_digit_of_a_hash_counts(position):
    digits = "0123456789abcdef" * 4
    other = "e" if digits[position] == "f" else "f"
    assert File(digits, 1).digest_problem(digits) is None
    changed = digits[:position] + other + digits[position + 1 :]
    assert File(digits, 1).digest_problem(changed).startswith("sha256 ")


@pytest.mark.parametrize("anchors", [2.5, "3", True, None])
def test_anchors_are_whole_numbers(anchors):
    with pytest.raises(ValueError, match="whole number"):
        MergeSettings(anchors=anchors)
    with pytest.raises(ValueError, match="at least 1 per side"):
        MergeSettings(anchors=0)


def test_a_form_concerns_the_unet_alone(formed_bundle):
    graphs = formed_bundle.graphs(QUERIES_KEYS)
    assert graphs[ENCODER].file == "vae_encoder.onnx"
    assert graphs[UNET].file == "unet.queries_keys.onnx"
