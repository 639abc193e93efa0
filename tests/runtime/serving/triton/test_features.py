"""Bundles for DiffCut in Triton: configurations, repositories, and the models in a row."""

import json

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.bundle.manifest import ENCODER, UNET, read_manifest
from diffseg.serving.triton.backend_models import MergeModel, Refused, Request, ResizeModel, SegmentModel
from diffseg.serving.triton.config import RepositoryOptions, model_configs
from diffseg.serving.triton.platforms import Platform
from diffseg.serving.triton.repository import write_repository

pytest.importorskip("onnx", reason="makes a bundle")

from tests.commands import diffseg
from tests.engines.toy import make_both_toy, make_features_toy


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.load(
        make_features_toy(tmp_path_factory.mktemp("features") / "toy").folder, provider="cpu", batch=4
    )


@pytest.fixture(params=["whole", "ensemble"])
def model(request, segmenter):
    """The bundle as one model, and as the head, the network and the tail of an ensemble."""
    if request.param == "whole":
        return SegmentModel(segmenter)
    manifest = segmenter.bundle.manifest
    resize, merge = ResizeModel(manifest, 4), MergeModel(manifest, 4)

    def chain(requests):
        answers = []
        for one, fitted in zip(requests, resize(requests), strict=True):
            if isinstance(fitted, Refused):
                answers.append(fitted)
                continue
            with segmenter.network.session() as session:
                (features,) = session.attend(session.encode(fitted["pixels"]))
                answers += merge([Request(fitted | {"features": features.copy()}, one.parameters, one.wanted)])
        return answers

    return chain


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_masks_are_those_of_the_segmenter(model, segmenter, photo, refine):
    batch = np.stack([np.roll(photo, 40 * i, 1) for i in range(2)])
    expected = segmenter(list(batch), tau=0.9, refine=refine)
    assert len(expected[0].segments) > 1
    (found,) = model([Request({"image": batch}, {"tau": 0.9, "refine": refine})])
    np.testing.assert_array_equal(found["labels"], [result.labels for result in expected])
    settings = json.loads(found["segments"][0, 0])["settings"]
    assert (settings["method"], settings["tau"]) == ("diffcut", 0.9)


def test_what_is_refused(model, photo):
    for parameters, message in (
        ({"method": "cut"}, "method must be one of diffcut"),
        ({"refine": "kmeans"}, "attention"),
    ):
        (answer,) = model([Request({"image": photo[None]}, parameters)])
        assert message in answer.reason


@pytest.mark.parametrize("platform", Platform)
def test_a_repository(segmenter, tmp_path, platform):
    bundle = segmenter.bundle
    models = model_configs(bundle.manifest, RepositoryOptions(platform=platform))
    if platform is not Platform.PYTHON:
        (features,) = models["diffseg_unet"]["output"]
        assert features["name"] == "features"
        assert features in models["diffseg_merge"]["input"]
        assert models["diffseg_vae_encoder"]["output"] == models["diffseg_unet"]["input"]
    if platform is Platform.TENSORRT:
        return  # needs a plan
    write_repository(bundle, tmp_path / "models", RepositoryOptions(platform=platform))
    written = json.loads((tmp_path / "models" / "diffseg.json").read_text(encoding="utf-8"))
    assert written["content"] == {graph: bundle.content_hash(graph) for graph in (ENCODER, UNET)}
    if platform is Platform.ONNXRUNTIME:
        assert read_manifest(tmp_path / "models" / "diffseg_merge" / "1").features == bundle.manifest.features


@pytest.mark.parametrize("platform", ["python", "onnxruntime"])
def test_a_repository_of_a_bundle_for_both(tmp_path, photo, platform):
    folder = make_both_toy(tmp_path / "both").folder
    for method, features in ((None, False), ("cut", False), ("diffcut", True)):
        target = tmp_path / str(method)
        words = [] if method is None else ["--method", method]
        done = diffseg("triton", folder, "-o", target, "--platform", platform, *words)
        assert done.returncode == 0, done.stderr
        if platform == "python":
            served = Segmenter.load(target / "diffseg" / "1" / "bundle", provider="cpu")
            assert served(photo).settings.method == (method or "diffseg")
        else:
            manifest = read_manifest(target / "diffseg_merge" / "1")
            assert (manifest.features is not None) == features
            assert manifest.defaults.method == (method or "diffseg")
    done = diffseg("triton", "tiny", "-o", tmp_path / "none", "--method", "diffcut")
    assert done.returncode == 2
    assert "method must be one of diffseg, cut" in " ".join(done.stderr.split())
