"""Comparison of two bundles. Their networks are test doubles, of which one is altered."""

from types import SimpleNamespace

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import ENCODER, UNET, Graph
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import BundleError
from diffseg.measure import differences
from diffseg.measure.differences import compare_bundles
from msgspec.structs import replace
from PIL import Image

from tests.runtime.doubles import AlteredNetwork, LendingNetwork

pytest.importorskip("scipy", reason="needs the extra 'eval'")


@pytest.fixture
def compare(fake_bundle, tmp_path, monkeypatch):
    """Compare the bundle with itself, executed by a correct network and by another one."""
    rng = np.random.default_rng(1)
    path = tmp_path / "0.png"
    Image.fromarray(np.kron(rng.integers(0, 256, (2, 2, 3), np.uint8), np.ones((40, 50, 1), np.uint8))).save(path)

    def run(network, second=fake_bundle):
        both = [network, LendingNetwork(device="cpu")]
        monkeypatch.setattr(differences, "load_network", lambda *_: both.pop())
        return compare_bundles(fake_bundle, second, [path])

    return run


def test_equal_networks(compare):
    found = compare(LendingNetwork(device="cpu"))
    (image,) = found.images
    assert (image.image, image.mask_iou, image.adjusted_rand) == ("0.png", 1, 1)
    assert image.segments[0] == image.segments[1] > 1
    assert [output.name for output in image.outputs] == ["latent", "attention_8", "attention_4"]
    assert all(output.cosine == pytest.approx(1) for output in image.outputs)
    assert [output.kl for output in image.outputs] == [None, pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6)]
    assert found.left_out == ()


def test_a_changed_latent_changes_what_follows(compare):
    (image,) = compare(AlteredNetwork(lambda latent: np.roll(latent, 1, -1))).images
    latent, fine, _ = image.outputs
    assert latent.cosine < 0.99
    assert fine.cosine_p1 < fine.cosine < 1 - 1e-7
    assert fine.kl > 1e-4
    assert image.mask_iou < 1
    assert image.adjusted_rand < 1


def test_numbers_that_are_not_finite_are_counted(compare):
    def poison(latent):
        latent[0, 0, 0, :2] = np.nan
        return latent

    latent = compare(AlteredNetwork(poison)).images[0].outputs[0]
    assert (latent.bad, latent.cosine) == (2, None)


def test_an_output_of_one_bundle_alone_is_named(compare, fake_bundle, monkeypatch):
    attention = fake_bundle.manifest.attention[1:]
    tensors = specs.unet_tensors((64, 64), 4, attention, 4)
    unet = Graph("unet.onnx", ("unet.onnx.data",), tensors, 18, 10, 20)
    manifest = replace(
        fake_bundle.manifest, graphs=fake_bundle.manifest.graphs | {UNET: unet}, attention=attention, name="other"
    )
    monkeypatch.setattr(Segmenter, "__call__", lambda *_, **__: SimpleNamespace(labels=np.zeros((4, 4), np.uint16)))
    found = compare(AlteredNetwork(attend=lambda outputs: outputs[1:]), Bundle(fake_bundle.folder, manifest))
    assert found.bundles == ("fake", "other")
    assert found.left_out == ("attention_8",)
    assert [output.name for output in found.images[0].outputs] == ["latent", "attention_4"]


def test_bundles_without_a_common_output(fake_bundle):
    features = specs.FeatureOutput((4, 4), 8)
    size = 128, 128
    graphs = {
        ENCODER: Graph("vae_encoder.onnx", (), specs.encoder_tensors(size, 4, 4), 18, 10, 20),
        UNET: Graph("unet.onnx", ("unet.onnx.data",), specs.features_tensors(size, 4, features, 4), 18, 10, 20),
    }
    manifest = replace(
        fake_bundle.manifest,
        name="other",
        image_size=size,
        graphs=graphs,
        attention=(),
        methods=("diffcut",),
        features=features,
        defaults=MergeSettings(method="diffcut"),
    )
    with pytest.raises(BundleError, match=r"'fake' \(diffseg, 64x64 pixels\) and 'other' \(diffcut, 128x128 pixels\)"):
        compare_bundles(fake_bundle, Bundle(fake_bundle.folder, manifest), [])
