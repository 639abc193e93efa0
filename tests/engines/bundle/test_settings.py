"""Settings that the caller leaves out, and fingerprints, to the last digit."""

import pytest
from diffseg.engines.bundle.manifest import ENCODER, QUERIES_KEYS, UNET, File, Source
from diffseg.engines.bundle.settings import MAX_ROUNDS, TAUS, MergeSettings


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


def test_the_defaults_are_those_of_the_papers():
    settings = MergeSettings()
    assert (settings.thresholds, settings.anchors, settings.refine, settings.method) == (
        (1.0,) * 3,
        16,
        "none",
        "diffseg",
    )
    assert settings.tau == TAUS["diffseg"] == TAUS["cut"] == 0.45
    assert TAUS["diffcut"] == 0.5


def test_tau_is_from_0_to_2():
    for tau in (0, 0.5, 1.5, 2):
        assert MergeSettings(tau=tau).tau == tau
    for tau in (-0.001, 2.001, float("nan")):
        with pytest.raises(ValueError, match="tau must be a number from 0 to 2"):
            MergeSettings(tau=tau)


def test_as_many_thresholds_as_rounds():
    assert len(MergeSettings((0.0,) * MAX_ROUNDS).thresholds) == MAX_ROUNDS == 64
    with pytest.raises(ValueError, match="at most 64 thresholds"):
        MergeSettings((0.0,) * (MAX_ROUNDS + 1))


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        MergeSettings().tau = 1.0
    with pytest.raises(AttributeError):
        Source("nowhere").checkpoint = "elsewhere"
