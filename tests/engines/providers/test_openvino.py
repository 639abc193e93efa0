"""OpenVINO on the CPU, compared with ONNX Runtime."""

import re
import shutil
import sys

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines import open_bundle
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.errors import BundleError, MissingPackageError, ProviderError
from diffseg.engines.examples import example_images
from diffseg.engines.packages import install_command
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.providers.select import load_network

from tests.networks import attend, encode
from tests.pictures import pixels


@pytest.fixture(scope="module")
def bundle():
    pytest.importorskip("openvino")
    return open_bundle("tiny")


@pytest.fixture(scope="module")
def network(bundle):
    return load_network(bundle, "openvino", threads=2)


@pytest.fixture(scope="module")
def images(bundle):
    height, width = bundle.manifest.image_size
    return np.stack([pixels(path, "RGB", (width, height)) for path in example_images()[:2]])


@pytest.fixture(scope="module")
def exact():
    """Whether this CPU computes the float16 of `tiny` in float32, as ONNX Runtime does."""
    openvino = pytest.importorskip("openvino")
    return "FP16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_it_agrees_with_onnx_runtime(bundle, network, images, exact):
    other = OrtNetwork(bundle)
    latent = encode(other, images)
    with network.session() as session:
        np.testing.assert_allclose(session.encode(images), latent, atol=1e-3 if exact else 0.1)
        for found, expected in zip(session.attend(latent), attend(other, latent), strict=True):
            assert found.dtype == np.float32
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < (1e-4 if exact else 3e-2)


def test_results_hold_until_the_next_pass_and_may_be_written_into(network, images):
    with network.session() as one, network.session() as other:
        first = one.encode(images[:1])
        kept = first.copy()
        assert np.abs(other.encode(images[1:]) - kept).max() > 0.1
        np.testing.assert_array_equal(first, kept)
        maps = one.attend(first)
        maps[0][:] = 0
        again = one.attend(first)
        assert again[0].min() >= 0
        np.testing.assert_allclose(again[0].sum(-1), 1, atol=1e-2)


def test_masks_are_those_of_the_cpu_provider(exact):
    image = example_images()[0]
    found, expected = (Segmenter.load("tiny", provider=name)(image).labels for name in ("openvino", "cpu"))
    assert (found == expected).mean() > (0.99 if exact else 0.9)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=re.escape(install_command("openvino"))):
        load_network(open_bundle("tiny"), "openvino")


def test_an_unknown_device_is_named_beside_those_that_are_there(bundle, monkeypatch):
    monkeypatch.setenv("DIFFSEG_OPENVINO_DEVICE", "TPU")
    with pytest.raises(ProviderError, match="no device 'TPU' here, only CPU"):
        load_network(bundle, "openvino")


def test_a_device_that_is_not_there_is_an_error_on_one_line(bundle, monkeypatch):
    monkeypatch.setenv("DIFFSEG_OPENVINO_DEVICE", "GPU.7")
    with pytest.raises(ProviderError) as caught:
        load_network(bundle, "openvino")
    assert "\n" not in str(caught.value)
    assert "GPU.7" in str(caught.value)


def test_graphs_with_other_tensors_are_refused(bundle, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(bundle.folder, folder)
    shutil.copy(bundle.cpu_path("vae_encoder"), folder / bundle.cpu_path("unet").name)
    with pytest.raises(BundleError, match="the manifest says"):
        load_network(Bundle(folder, bundle.manifest), "openvino")


def test_a_damaged_graph_is_an_error_on_one_line(bundle, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(bundle.folder, folder)
    path = folder / bundle.cpu_path("unet").name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ProviderError, match="OpenVINO cannot run") as caught:
        load_network(Bundle(folder, bundle.manifest), "openvino")
    assert "\n" not in str(caught.value)
