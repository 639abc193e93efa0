"""Real exports of small checkpoints for DiffCut, compared with diffusers' own modules."""

import numpy as np
import pytest
import torch
from diffseg import Segmenter
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import Manifest
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import BundleError, CheckpointError
from diffseg.engines.machine import Gpus
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.export import ExportSettings, export_bundle
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.noise import cuda_noise, make_noise, signal_share
from diffseg.export.parity import sample_images
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor

from tests.networks import attend, encode

CASES = {"sd15-fp32": ("sd15", "fp32", (128, 192)), "sd21-fp16": ("sd21", "fp16", (128, 128))}
DEFAULTS = MergeSettings(method="diffcut", tau=0.5)


@pytest.fixture(scope="module", params=CASES)
def case(request, make_checkpoint, tmp_path_factory):
    family, precision, size = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(family, folder / "checkpoint", small=True)
    settings = ExportSettings(size, precision, 50, 2, DEFAULTS)
    bundle = export_bundle(folder / "checkpoint", folder / "bundle", settings)
    return folder / "checkpoint", bundle


@torch.no_grad()
def stock(folder, images, noise):
    """Features by diffusers alone: its scheduler's noise, its attention, and a hook on the layer."""
    loaded = load_checkpoint(folder)
    encoded = loaded.vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    latent = encoded.latent_dist.mean * loaded.vae.config.scaling_factor
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    noisy = scheduler.add_noise(latent, torch.from_numpy(noise).expand_as(latent), torch.tensor([50]))
    loaded.unet.set_attn_processor(AttnProcessor())
    kept = []
    layer = loaded.unet.down_blocks[-2].attentions[-1].transformer_blocks[-1].attn1
    layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    loaded.unet(noisy, 50, loaded.prompt.expand(len(images), -1, -1))
    return kept[0].numpy()


def test_features_agree_with_diffusers(case):
    folder, bundle = case
    manifest = bundle.manifest
    size = manifest.image_size
    images = sample_images(size, 2)
    noise = make_noise((1, 4, size[0] // 8, size[1] // 8))
    expected = stock(folder, images, noise)
    network = OrtNetwork(bundle)
    (found,) = attend(network, encode(network, images))
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (2, manifest.features.places, manifest.features.channels)
    assert manifest.features.grid == (size[0] // 32, size[1] // 32)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol={"fp32": 1e-4, "fp16": 2e-2}[manifest.precision])
    without = stock(folder, images, 0 * noise)
    assert np.abs(without - expected).max() > 10 * np.abs(found - expected).max()


def test_images_become_masks(case, monkeypatch):
    _, bundle = case
    segmenter = Segmenter.load(bundle.folder, provider="cpu", batch=2)
    size = bundle.manifest.image_size
    image = sample_images(size, 2)[1]
    result = segmenter(image, tau=0.8, keep_attention=True, refine="none")
    assert {"encode", "attend", "cut", "suppress"} <= set(result.timings)
    assert (result.settings.method, result.settings.tau) == ("diffcut", 0.8)
    features = result.attention
    values = features.values
    regions = recursive_normalized_cut(values, 0.8, grid=features.grid)
    expected = assign_concepts(values, regions, size)
    pairs = {*zip(result.labels.ravel().tolist(), expected.ravel().tolist(), strict=True)}
    assert len(pairs) == len(result.segments) == len(np.unique(expected)) > 1
    assert features.nbytes == values.nbytes + 8 * len(values) ** 2
    monkeypatch.setattr(segmenter.network, "session", None)
    monkeypatch.setattr("diffseg.methods.cut.second_eigenvector", None)
    assert len(result.resegment(tau=0).segments) == 1
    np.testing.assert_array_equal(result.resegment(tau=0.8).labels, result.labels)
    for refine in ("colour", "pamr"):
        assert result.resegment(refine=refine).labels.shape == result.labels.shape
    with pytest.raises(ValueError, match="has features in its place"):
        result.kept_attention()
    with pytest.raises(ValueError, match="method must be one of diffcut, found 'cut'"):
        result.resegment(method="cut")
    with pytest.raises(ValueError, match="kmeans"):
        result.resegment(refine="kmeans")


def test_a_batch_of_sizes_gives_each_image_its_masks(case):
    segmenter = Segmenter.load(case[1].folder, provider="cpu", batch=2)
    images = [np.random.default_rng(i).integers(0, 255, (40 + i, 50, 3), np.uint8) for i in range(2)]
    for image, result in zip(images, segmenter(images), strict=True):
        assert result.labels.shape == image.shape[:2]


def test_the_encoder_alone_is_in_the_graph(case):
    manifest = case[1].manifest
    unet = manifest.graphs["unet"]
    assert manifest.methods == ("diffcut",)
    assert manifest.attention == ()
    assert unet.forms == {}
    assert unet.parameters_dropped > unet.parameters
    assert [output.name for output in unet.tensors.outputs] == ["features"]
    assert case[1].folder.joinpath("manifest.json").read_text().count("unet.queries_keys") == 0
    assert all(problem is None for _, problem in Bundle.open(case[1].folder).verify())
    figures = manifest.parity["features"]
    assert figures["place_cosine_distance_p99"] < 1e-3


def test_a_manifest_that_contradicts_itself_is_refused(case):
    manifest = case[1].manifest
    text = manifest.to_json()
    old = '"diffcut"\n ],\n "features"'
    assert old in text
    with pytest.raises(BundleError, match="must have the method diffcut alone"):
        Manifest.from_json(text.replace(old, '"diffseg"\n ],\n "features"'))
    places = manifest.features.places
    with pytest.raises(BundleError, match="'features' and the output of unet differ"):
        Manifest.from_json(
            text.replace(
                f'"min": {places},\n        "opt": {places},\n        "max": {places}',
                '"min": 7,\n        "opt": 7,\n        "max": 7',
            )
        )


def test_tensorrt_rtx_builds_it(case):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    plan = build_plan(case[1], "tensorrt-rtx", compute_capabilities=["8.9"], gpus=Gpus((), "none"))
    assert set(plan.record.files) == {"vae_encoder", "unet"}


def test_noise(tmp_path):
    assert signal_share(tmp_path, 50) == pytest.approx(0.951577, abs=1e-6)
    noise = make_noise((1, 4, 64, 64))
    np.testing.assert_array_equal(noise, make_noise((1, 4, 64, 64)))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    # torch.randn((2, 4), device="cuda") after torch.manual_seed(0)
    known = [[-0.92466259, -0.42534415, -2.64384580, 0.14518388], [-0.12086647, -0.57972564, -0.62285122, -0.32838709]]
    np.testing.assert_allclose(cuda_noise((2, 4), 0), known, atol=1e-6)
    official = make_noise((1, 4, 64, 64), "official")
    assert abs(official.mean()) < 0.02
    assert abs(official.std() - 1) < 0.02
    schedule = tmp_path / "scheduler"
    schedule.mkdir()
    schedule.joinpath("scheduler_config.json").write_text('{"beta_schedule": "squaredcos_cap_v2"}')
    with pytest.raises(CheckpointError, match="squaredcos_cap_v2"):
        signal_share(tmp_path, 50)
