"""Real exports of a small checkpoint of every family, held against diffusers' own pipeline parts.

The reference here is not our module but diffusers' own attention processor, whose probabilities are recorded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffseg.engines.build import build_plan
from diffseg.engines.errors import ProviderError
from diffseg.engines.gpu import Gpus
from diffseg.engines.layers import PRECISIONS
from diffseg.engines.ort import OrtNetwork
from diffseg.export import ExportSettings, export_bundle
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.parity import execute, sample_images
from diffseg.runtime import Segmenter
from diffusers.models.attention_processor import Attention, AttnProcessor

CASES = {
    "sd15-fp32": ("sd15", "kl", "fp32", (128, 192), 300),
    "sd21-fp16": ("sd21", "kl", "fp16", (128, 128), 100),
    "bk-sdm-small-fp32": ("bk-sdm-small", "kl", "fp32", (192, 192), 300),
    "bk-sdm-tiny-bf16": ("bk-sdm-tiny", "kl", "bf16", (128, 128), 300),
    "taesd-fp16": ("bk-sdm-tiny", "tiny", "fp16", (128, 128), 300),
}
LAYERS = {"sd15": (5, 5, 5, 1), "sd21": (5, 5, 5, 1), "bk-sdm-small": (3, 3, 3), "bk-sdm-tiny": (3, 3, 3)}
HEADS = {"sd15": (2, 2, 2, 2), "sd21": (1, 2, 4, 4), "bk-sdm-small": (2, 2, 2), "bk-sdm-tiny": (2, 2, 2)}


@dataclass
class Case:
    family: str
    precision: str
    size: tuple[int, int]
    bundle: Any
    images: np.ndarray
    latent: np.ndarray
    attention: list[np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def case(request, make_checkpoint, tmp_path_factory):
    family, vae, precision, size, timestep = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(family, folder / "checkpoint", small=True, vae=vae)
    settings = ExportSettings(size, precision, timestep, max_batch=3)
    bundle = export_bundle(folder / "checkpoint", folder / "bundle", settings)
    images = sample_images(size, 3)
    return Case(family, precision, size, bundle, images, *stock(folder / "checkpoint", images, timestep))


@torch.no_grad()
def stock(folder, images, timestep):
    """Latent and attention by diffusers alone: posterior mean × scale, and probabilities of its own processor."""
    loaded = load_checkpoint(folder)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    encoded = loaded.vae.encode(pixels)
    latent = (
        encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    ) * loaded.vae.config.scaling_factor
    recorded = {}
    loaded.unet.set_attn_processor(AttnProcessor())
    for name, module in loaded.unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):
            original = module.get_attention_scores

            def record(*arguments, original=original, heads=module.heads):
                scores = original(*arguments)  # (batch·heads, N, N)
                layer = scores.unflatten(0, (-1, heads)).mean(1)
                recorded.setdefault(layer.shape[-1], []).append(layer)
                return scores

            module.get_attention_scores = record
    loaded.unet(latent, timestep, loaded.prompt.expand(len(images), -1, -1))
    return latent.numpy(), [torch.stack(recorded[n]).mean(0).numpy() for n in sorted(recorded, reverse=True)]


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_the_bundle_agrees_with_diffusers(case):
    if case.precision == "bf16":
        with pytest.raises(ProviderError, match="bf16"):
            OrtNetwork(case.bundle)
        outputs = execute(
            case.bundle.graph_path("unet"), case.latent, "bf16", 3
        )  # rounded as bf16, computed in float32
        for found, expected in zip(outputs, case.attention, strict=True):
            assert np.abs(found.sum(-1) - 1).max() < 1e-3
            assert np.percentile(cosine(found, expected), 1) >= 0.95
            assert np.abs(found - expected).max() > 1e-5  # it was rounded
        return
    network = OrtNetwork(case.bundle)
    latent = network.encode(case.images)
    outputs = network.attend(case.latent)
    assert len(outputs) == len(case.attention)
    if case.precision == "fp32":
        np.testing.assert_allclose(latent, case.latent, atol=1e-4)
        for found, expected in zip(outputs, case.attention, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        assert cosine(latent.reshape(3, -1), case.latent.reshape(3, -1)).min() > 0.999
        for found, expected in zip(outputs, case.attention, strict=True):
            assert np.isfinite(found).all()
            assert np.abs(found.sum(-1) - 1).max() < 1e-3
            assert np.percentile(cosine(found, expected), 1) >= 0.999


def test_the_attention_of_the_case_is_not_trivial(case):
    """Were it even, any export would agree with it."""
    for expected in case.attention:
        assert expected.max() * expected.shape[-1] > 1.5
        assert np.percentile(cosine(expected[0], expected[2]), 50) < 0.9999


def test_the_manifest_describes_the_graphs(case):
    manifest = case.bundle.manifest
    assert (manifest.image_size, manifest.precision, manifest.max_batch) == (case.size, case.precision, 3)
    assert manifest.source.checkpoint == "checkpoint"
    assert tuple(a.layers for a in manifest.attention) == LAYERS[case.family]
    assert tuple(a.heads for a in manifest.attention) == HEADS[case.family]
    assert [a.grid for a in manifest.attention] == [
        (case.size[0] >> s, case.size[1] >> s) for s in range(3, 3 + len(manifest.attention))
    ]
    assert manifest.attention[0].name == ("attention_16" if case.size == (128, 128) else manifest.attention[0].name)
    unet = manifest.graphs["unet"]
    assert unet.parameters_dropped > 0
    assert unet.flops_dropped > 0
    assert set(manifest.parity) == {"latent", *(a.name for a in manifest.attention)}
    for graph in manifest.graphs.values():
        assert set(graph.layers["Conv"]) == {PRECISIONS[case.precision]}
        assert graph.activation_bytes > 0
    assert set(unet.layers["Softmax"]) == {"float32"}  # in every precision
    assert manifest.versions["torch"] == torch.__version__
    assert all(problem is None for _, problem in case.bundle.verify())


def test_a_bundle_says_nothing_of_the_machine_that_made_it(case):
    for path in case.bundle.folder.iterdir():
        data = path.read_bytes()
        assert str(case.bundle.folder.parent).encode() not in data
        assert b"site-packages" not in data


def test_tensorrt_rtx_builds_the_bundle(case, tmp_path, monkeypatch):
    """For three kinds of GPU, without one; the engine's own layers are in the bundle's precision."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    capabilities = ("8.6", "8.9", "12.0")
    plan = build_plan(case.bundle, "tensorrt-rtx", compute_capabilities=capabilities, gpus=Gpus((), "in this test"))
    for name, graph in case.bundle.manifest.graphs.items():
        found = plan.record.layers[name]
        assert found.misfits(case.precision, graph.layers) == {}
        assert found.counts["convolution"] == {PRECISIONS[case.precision]: sum(graph.layers["Conv"].values())}
        assert found.activation_bytes > 0
    products = plan.record.layers["unet"].counts["matmul"]
    assert sum(products.values()) > 50
    # Stable Diffusion 2.1 takes the logits of its attention in float32, for fear of overflow.
    assert set(products) == {PRECISIONS[case.precision]} | ({"float32"} if case.family == "sd21" else set())


def test_a_segmenter_runs_the_bundle(case, photo):
    if case.precision == "bf16":
        pytest.skip("ONNX Runtime has no bfloat16 kernels for the CPU")
    results = Segmenter.load(case.bundle.folder, batch=3)(
        [photo, photo[:, :77], photo[:31]], threshold=0.2, keep_attention=True
    )
    for result, shape in zip(results, ((120, 200), (120, 77), (31, 200)), strict=True):
        assert result.labels.shape == shape
        grid = case.bundle.manifest.attention[0].grid
        assert result.attention.shape == grid * 2
        np.testing.assert_allclose(result.attention.sum((2, 3)), 1, atol=1e-3)
