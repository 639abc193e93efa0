"""The masks of encoder features, and bundles that return them: two graphs of a few nodes."""

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.annotation.segmenters import load_segmenter
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.manifest import UNET, Manifest
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import BundleError
from diffseg.engines.examples import example_images
from diffseg.engines.inspect import inspect_bundle
from diffseg.engines.machine import Gpus
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.features import EncoderFeatures
from diffseg.measure.compare import compare_providers
from diffseg.measure.evaluate import Evaluation
from diffseg.measure.evaluate.methods import Method
from diffseg.measure.evaluate.protocol import Protocol
from diffseg.measure.profile.record import ProfileSettings
from diffseg.measure.profile.session import take_profile
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffseg.placement import Placement
from msgspec.structs import replace

from tests.commands import diffseg
from tests.engines.toy import SIZE, make_features_toy

GRID = (12, 16)
SETTINGS = MergeSettings(method="diffcut", tau=0.5)


@pytest.fixture
def features():
    """Three vertical stripes of features of their own, with some noise, and an image of three colours."""
    stripe = np.repeat([0, 1, 2, 2], 4)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((3, 64))
    values = directions[stripe][None].repeat(12, 0).reshape(-1, 64) + 0.1 * rng.standard_normal((192, 64))
    pixels = np.array([[200, 20, 20], [20, 200, 20], [20, 20, 200]], np.uint8)[stripe].repeat(8, 0)
    placement = Placement((48, 64), (96, 128), 0, 0, 48, 64)
    return EncoderFeatures(values.astype(np.float32), GRID, np.tile(pixels, (96, 1, 1)), placement)


@pytest.mark.parametrize("refine", ["none", "colour", "pamr"])
def test_regions_of_similar_features_become_masks(features, refine):
    timings = {}
    labels, segments = features.masks(SETTINGS.updated(refine=refine), timings)
    assert labels.shape == (48, 64)
    assert [segment.area for segment in segments] == pytest.approx([48 * 32, 48 * 16, 48 * 16], rel=0.15)
    for columns in (slice(3, 13), slice(19, 29), slice(35, 64)):
        assert len(np.unique(labels[:, columns])) == 1
    assert list(timings) == ["cut", "suppress", *(["refine"] if refine != "none" else [])]


def test_the_hierarchy_has_a_node_per_region(features):
    found = features.hierarchy(SETTINGS)
    labels = np.array(found["labels"])
    assert labels.shape == GRID
    np.testing.assert_array_equal(labels, features.regions(0.5))
    whole, *rest = found["nodes"]
    assert 0 <= whole["cost"] < 0.5
    assert whole["parts"] == [1, 2]
    assert sum("label" in node for node in rest) == len(np.unique(labels)) == 3


def test_a_new_tau_solves_no_eigenproblem_again(features, monkeypatch):
    labels, _ = features.masks(SETTINGS, {})
    kept = features.copy()
    assert kept.values is not features.values
    assert kept.nbytes == features.values.nbytes + 8 * 192**2
    monkeypatch.setattr("diffseg.methods.cut.second_eigenvector", None)
    for one in (features, kept):
        assert len(one.masks(SETTINGS.updated(tau=0), {})[1]) == 1
        np.testing.assert_array_equal(one.masks(SETTINGS, {})[0], labels)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_features_without_contrast_give_one_mask(value):
    values = np.full((16, 8), value, np.float32)
    placement = Placement((5, 7), (32, 32), 0, 0, 5, 7)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)  # one colour would be one mask anyway
    labels, segments = EncoderFeatures(values, (4, 4), pixels, placement).masks(SETTINGS, {})
    assert labels.shape == (5, 7)
    assert len(segments) == 1


def test_an_image_of_one_colour_is_one_mask_whatever_its_features(features):
    timings = {}
    plain = EncoderFeatures(features.values, GRID, np.full_like(features.pixels, 90), features.placement)
    labels, segments = plain.masks(SETTINGS.updated(refine="pamr"), timings)
    assert labels.shape == (48, 64)
    assert [segment.area for segment in segments] == [48 * 64]
    assert list(timings) == ["cut"]


def test_settings_keep_to_what_the_network_returns():
    with pytest.raises(ValueError, match="method must be one of diffcut, found 'diffseg'"):
        SETTINGS.updated(method="diffseg")
    with pytest.raises(ValueError, match="method must be one of diffseg, cut, found 'diffcut'"):
        MergeSettings().updated(method="diffcut")
    with pytest.raises(ValueError, match="refine 'kmeans' needs attention"):
        SETTINGS.updated(refine="kmeans")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with features."""
    return make_features_toy(tmp_path_factory.mktemp("features") / "toy")


def test_images_become_masks(bundle, monkeypatch):
    segmenter = Segmenter.load(bundle.folder, provider="cpu", batch=3)
    results = segmenter(example_images()[:3], tau=0.9, keep_attention=True)
    for result in results:
        assert result.labels.shape == result.image.size[::-1]
        assert set(result.timings) == {"decode", "resize", "encode", "attend", "cut", "suppress"}
        assert (result.settings.method, result.to_dict()["settings"]["tau"]) == ("diffcut", 0.9)
        values = result.attention.values
        regions = recursive_normalized_cut(values, 0.9, grid=(8, 8))
        assert len(result.segments) == len(np.unique(assign_concepts(values, regions, SIZE))) > 1
    assert not np.array_equal(results[0].attention.values, results[1].attention.values)
    monkeypatch.setattr(segmenter.network, "session", None)
    monkeypatch.setattr("diffseg.methods.cut.second_eigenvector", None)
    again = results[0].resegment(tau=0.9)
    np.testing.assert_array_equal(again.labels, results[0].labels)
    assert len(again.resegment(tau=0).segments) == 1
    with pytest.raises(ValueError, match="has features in its place"):
        again.kept_attention()


def test_commands_that_look_at_a_bundle_take_it(bundle):
    assert all(problem is None for _, problem in bundle.verify())
    (output,) = inspect_bundle(bundle).graphs[UNET].outputs
    assert output.name == "features"
    comparison = compare_providers(bundle, "cpu", example_images()[:1])
    assert comparison.passed
    assert [output.name for output in comparison.outputs] == ["latent", "features"]


def test_tensorrt_rtx_builds_it(bundle):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    plan = build_plan(bundle, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=Gpus((), "none"))
    assert set(plan.record.files) == {"vae_encoder", "unet"}


def test_it_is_profiled(bundle):
    settings = ProfileSettings(runs=2, warmup=1, starts=0, provider="cpu")
    record, _ = take_profile(str(bundle.folder), example_images()[:1], settings)
    assert {"encode", "attend", "cut", "suppress"} <= set(record.seconds)
    assert not {"aggregate", "merge"} & set(record.seconds)


def test_an_evaluation_of_attention_refuses_it(bundle, tmp_path):
    segmenter = Segmenter.load(bundle.folder, provider="cpu")
    with pytest.raises(BundleError, match="no attention for diffseg: bundle 'toy' was exported for diffcut"):
        Evaluation([], (Method.DIFFSEG,), segmenter, Protocol.FULL, tmp_path)
    with pytest.raises(BundleError, match="annotation tools need attention"):
        load_segmenter(bundle.folder, "cpu")
    done = diffseg("serve", "--model", bundle.folder, "--port", "0", "--label-studio", "http://localhost:8080")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "annotation tools need attention" in done.stderr


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"methods": ("diffseg",)}, "must have the method diffcut alone"),
        ({"defaults": MergeSettings()}, "must have the method diffcut alone"),
        ({"features": None}, "method diffcut needs 'features'"),
        ({"features": specs.FeatureOutput((8, 8), 12)}, "'features' and the output of unet differ"),
        ({"features": specs.FeatureOutput((4, 16), 16, "other")}, "'features' and the output of unet differ"),
        ({"attention": (specs.AttentionOutput("attention_8", (8, 8), 1, 1),)}, "has no attention"),
    ],
)
def test_manifests_that_contradict_themselves(bundle, changed, problem):
    text = replace(bundle.manifest, **changed).to_json()
    with pytest.raises(BundleError, match=problem):
        Manifest.from_json(text)
