"""SDXL-class checkpoints and LCM: what is exported agrees with the parts of diffusers' own pipelines."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffseg import Segmenter
from diffseg.engines.agreement import row_cosines
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import CheckpointError
from diffseg.engines.machine import Gpus
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.export import ExportSettings, export_bundle
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.convert import make_network
from diffseg.export.graphs import Encoder
from diffseg.export.noise import make_noise
from diffseg.export.parity import reference, sample_images
from diffusers import (
    DDPMScheduler,
    EDMEulerScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tests.networks import attend, encode

SIZE = (128, 192)
CUT = MergeSettings(method="diffcut", tau=0.5)
LAYERS = {"sdxl": (6, 8), "ssd-1b": (5, 6), "vega": (3, 6), "playground-v2.5": (6, 8)}


@pytest.fixture(scope="module")
def checkpoints(make_checkpoint, tmp_path_factory):
    """Return the folder of a family's small checkpoint."""
    root = tmp_path_factory.mktemp("sdxl")

    def folder(family):
        if not (root / family).exists():
            make_checkpoint(family, root / family, small=True)
        return root / family

    return folder


@torch.no_grad()
def stock(folder, images, timestep, noise=None):
    """Latent, attention per resolution and features by diffusers alone, with its pipelines' own preparation."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    prompt, _, pooled, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    width = pipeline.text_encoder_2.config.projection_dim
    ids = pipeline._get_add_time_ids(SIZE, (0, 0), SIZE, torch.float32, width)
    image_to_image = StableDiffusionXLImg2ImgPipeline(**pipeline.components)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mean)
        latent = image_to_image.prepare_latents(pixels, None, len(images), 1, torch.float32, "cpu", add_noise=False)
    given, condition = noisy(pipeline.scheduler, latent, timestep, noise)
    count = len(images)
    added = {"text_embeds": pooled.expand(count, -1), "time_ids": ids.expand(count, -1)}
    maps, features = run(pipeline.unet, given, condition, prompt.expand(count, -1, -1), -1, added_cond_kwargs=added)
    return latent.numpy(), maps, features


def noisy(scheduler, latent, timestep, noise):
    """Return the UNet's input and condition, by diffusers' schedulers."""
    if not isinstance(scheduler, EDMEulerScheduler):
        if noise is None:
            return latent, timestep
        return scheduler.add_noise(
            latent, torch.from_numpy(noise).expand_as(latent), torch.tensor([timestep])
        ), timestep
    share = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod[timestep]
    deviation = scheduler.config.sigma_data
    sigma = deviation * ((1 - share) / share).sqrt()
    condition = scheduler.precondition_noise(sigma)
    if noise is None:
        return latent / deviation, condition
    return scheduler.precondition_inputs(latent + sigma * torch.from_numpy(noise), sigma), condition


def run(unet, given, condition, prompt, level, **more):
    """Run a UNet of diffusers → the mean of the recorded probabilities per resolution, and DiffCut's features."""
    recorded, kept = {}, []
    unet.set_attn_processor(AttnProcessor())
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):
            original = module.get_attention_scores

            def record(*arguments, original=original, heads=module.heads):
                scores = original(*arguments)
                layer = scores.unflatten(0, (-1, heads)).mean(1)
                recorded.setdefault(layer.shape[-1], []).append(layer)
                return scores

            module.get_attention_scores = record
    layer = unet.down_blocks[level].attentions[-1].transformer_blocks[-1].attn1
    layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    unet(given, condition, prompt, **more)
    maps = [torch.stack(recorded[n]).mean(0).numpy() for n in sorted(recorded, reverse=True)]
    return maps, kept[0].numpy()


def networks(folder, settings):
    loaded = load_checkpoint(folder)
    return Encoder(loaded.vae, loaded.latents), make_network(loaded, folder, settings, SIZE)


@pytest.mark.parametrize("family", LAYERS)
def test_the_networks_agree_with_diffusers(checkpoints, family):
    folder, images = checkpoints(family), sample_images(SIZE, 2)
    latent, maps, _ = stock(folder, images, 300)
    encoder, unet = networks(folder, ExportSettings(SIZE))
    np.testing.assert_allclose(reference(encoder, images)[0], latent, atol=2e-5)
    found = reference(unet, latent)
    assert [m.shape[1:] for m in maps] == [(96, 96), (24, 24)]
    for result, expected in zip(found, maps, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)
        assert expected.max() * expected.shape[-1] > 1.5  # otherwise every network would agree
    assert [output.grid for output in unet.outputs()] == [(8, 12), (4, 6)]
    assert tuple(output.layers for output in unet.outputs()) == LAYERS[family]
    assert [output.heads for output in unet.outputs()] == [2, 2]
    noise = make_noise((1, 4, SIZE[0] // 8, SIZE[1] // 8))
    _, _, features = stock(folder, images, 50, noise)
    _, _, clean = stock(folder, images, 50, 0 * noise)
    _, unet = networks(folder, ExportSettings(SIZE, timestep=50, defaults=CUT))
    (found,) = reference(unet, latent)
    assert unet.output().grid == (4, 6)
    np.testing.assert_allclose(found, features, atol=1e-4 * np.abs(features).max())
    assert np.abs(clean - features).max() > 100 * np.abs(found - features).max()


@torch.no_grad()
def test_what_conditions_sdxl_matters(checkpoints):
    """Another prompt, pooled embedding or size changes the attention by far more than the comparison allows."""
    folder, images = checkpoints("vega"), sample_images(SIZE, 1)
    latent = stock(folder, images, 300)[0]
    truth = reference(networks(folder, ExportSettings(SIZE))[1], latent)
    for change in ("prompt", "pooled", "size"):
        loaded = load_checkpoint(folder)
        for value in [loaded.prompt] if change == "prompt" else [loaded.pooled] if change == "pooled" else []:
            value.copy_(value.roll(1, -1))
        size = (2 * SIZE[0], SIZE[1]) if change == "size" else SIZE
        unet = make_network(loaded, folder, ExportSettings(SIZE), size)
        assert max(np.abs(a - b).max() for a, b in zip(reference(unet, latent), truth, strict=True)) > 1e-4


@torch.no_grad()
def test_an_lcm_is_told_a_guidance_scale(checkpoints):
    folder, images = checkpoints("lcm"), sample_images(SIZE, 1)
    loaded = load_checkpoint(folder)
    assert loaded.unet.config.time_cond_proj_dim == 256
    encoder, unet = networks(folder, ExportSettings(SIZE))
    latent = reference(encoder, images)[0]
    found = reference(unet, latent)
    guidance = StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor([8.5 - 1]), 256)
    given = torch.from_numpy(latent), 300, loaded.prompt, -2
    maps, _ = run(loaded.unet, *given, timestep_cond=guidance)
    for result, expected in zip(found, maps, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    without, _ = run(UNet2DConditionModel.from_pretrained(folder / "unet"), *given)
    assert max(np.abs(a - b).max() for a, b in zip(without, maps, strict=True)) > 1e-4


@pytest.fixture(scope="module")
def attention_bundle(checkpoints, tmp_path_factory):
    folder = checkpoints("vega")
    settings = ExportSettings(SIZE, "fp16", max_batch=2)
    return export_bundle(folder, tmp_path_factory.mktemp("attention") / "bundle", settings)


@pytest.mark.integration
def test_an_export_for_attention(checkpoints, attention_bundle, photo):
    images = sample_images(SIZE, 2)
    latent, maps, _ = stock(checkpoints("vega"), images, 300)
    network = OrtNetwork(attention_bundle)
    np.testing.assert_allclose(encode(network, images), latent, atol=1e-4)  # in float32
    for found, expected in zip(attend(network, latent), maps, strict=True):
        assert np.percentile(row_cosines(found, expected), 1) > 0.999
    result = Segmenter.load(attention_bundle.folder, provider="cpu")(photo, threshold=0.2)
    assert result.labels.shape == photo.shape[:2]


@pytest.mark.integration
def test_the_vae_of_sdxl_stays_in_float32(attention_bundle):
    manifest = attention_bundle.manifest
    encoder, unet = manifest.graphs["vae_encoder"], manifest.graphs["unet"]
    assert (encoder.precision("fp16"), unet.precision("fp16")) == ("fp32", "fp16")
    assert {*encoder.layers["Conv"], *encoder.layers["MatMul"]} == {"float32"}
    assert encoder.cpu_file is None
    assert unet.cpu_file is not None
    assert "latent_cpu" not in manifest.parity
    assert manifest.parity["latent"]["latent_max_error"] < 1e-4
    assert all(problem is None for _, problem in attention_bundle.verify())


@pytest.mark.integration
def test_tensorrt_rtx_builds_both_precisions(attention_bundle, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    plan = build_plan(attention_bundle, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=Gpus((), "in this test"))
    assert set(plan.record.layers["vae_encoder"].counts["convolution"]) == {"float32"}
    assert set(plan.record.layers["unet"].counts["convolution"]) == {"float16"}


@pytest.mark.integration
@pytest.mark.parametrize("family", ["ssd-1b", "playground-v2.5"])
def test_an_export_for_features(checkpoints, family, tmp_path):
    folder, images = checkpoints(family), sample_images(SIZE, 2)
    bundle = export_bundle(folder, tmp_path / "bundle", ExportSettings(SIZE, timestep=50, max_batch=2, defaults=CUT))
    latent, _, features = stock(folder, images, 50, make_noise((1, 4, SIZE[0] // 8, SIZE[1] // 8)))
    network = OrtNetwork(bundle)
    np.testing.assert_allclose(encode(network, images), latent, atol=1e-4)
    (found,) = attend(network, latent)
    np.testing.assert_allclose(found, features, atol=1e-4 * np.abs(features).max())
    assert len(Segmenter.load(bundle.folder, provider="cpu")(images[1], tau=0.9).segments) >= 1


@torch.no_grad()
def test_taesdxl_gives_playground_its_own_latents(checkpoints, make_checkpoint, tmp_path):
    """TAESDXL returns SDXL's latents, scaled by 0.13025; Playground expects others of the same autoencoder."""
    folder = checkpoints("playground-v2.5")
    make_checkpoint("sdxl", tmp_path / "other", small=True, vae="tiny")
    loaded = load_checkpoint(folder, vae=tmp_path / "other" / "vae")
    images = sample_images(SIZE, 1)
    found = reference(Encoder(loaded.vae, loaded.latents), images)[0]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    unscaled = load_checkpoint(tmp_path / "other").vae.encode(pixels).latents / 0.13025
    config = load_checkpoint(folder).vae.config
    mean, std = (torch.tensor(config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    expected = (unscaled - mean) * config.scaling_factor / std
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    plain = load_checkpoint(checkpoints("sdxl"), vae=tmp_path / "other" / "vae")
    assert (plain.latents.scale, plain.latents.mean) == (1.0, ())


def test_weights_in_shards_and_in_a_variant(checkpoints, tmp_path):
    copy = shutil.copytree(checkpoints("vega"), tmp_path / "copy")
    truth = load_checkpoint(copy)
    for part, model in (("unet", truth.unet), ("vae", truth.vae)):
        (copy / part / "diffusion_pytorch_model.safetensors").unlink()
        model.half().save_pretrained(copy / part, variant="fp16", max_shard_size="4MB")
    assert len(list((copy / "unet").glob("*fp16*.safetensors"))) > 1
    second = StableDiffusionXLPipeline.from_pretrained(checkpoints("vega")).text_encoder_2
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    second.half().save_pretrained(copy / "text_encoder_2", variant="fp16", max_shard_size="20KB")
    found = load_checkpoint(copy)
    assert {p.dtype for p in found.unet.parameters()} == {torch.float32}
    for (name, value), expected in zip(found.unet.state_dict().items(), truth.unet.state_dict().values(), strict=True):
        assert torch.equal(value, expected.float()), name
    np.testing.assert_allclose(found.pooled, truth.pooled, atol=2e-2)


def test_parts_of_two_checkpoints(checkpoints, tmp_path):
    copy = shutil.copytree(checkpoints("vega"), tmp_path / "copy")
    config = json.loads((copy / "unet" / "config.json").read_text())
    config["projection_class_embeddings_input_dim"] = 70
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(CheckpointError, match="give 80 features and the UNet expects 70; use parts of one checkpoint"):
        load_checkpoint(copy)


def test_the_usual_size_is_that_of_the_checkpoint():
    cut = ExportSettings(defaults=CUT)
    for settings, sdxl, native, expected in (
        (ExportSettings(), False, 768, 512),
        (ExportSettings(), True, 1024, 1024),
        (ExportSettings(), True, 512, 512),
        (ExportSettings((64, 64)), True, 1024, 64),
        (cut, False, 512, 1024),
        (cut, True, 512, 1024),
    ):
        assert settings.image_size(sdxl=sdxl, native_size=native) == (expected, expected)


def test_a_transformer_is_refused_without_pytorch(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline", "transformer": []}))
    program = (
        "import sys\nfrom diffseg.engines.errors import CheckpointError\nfrom diffseg.export import export_bundle\n"
        f"try:\n export_bundle({str(tmp_path)!r}, {str(tmp_path / 'bundle')!r})\n"
        "except CheckpointError as error:\n print(error)\nassert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "is a PixArtSigmaPipeline, whose network is a diffusion transformer (a DiT)" in done.stdout
