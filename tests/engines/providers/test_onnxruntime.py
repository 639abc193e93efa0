"""The ONNX Runtime session, on the embedded model."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from diffseg.engines import open_bundle
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.specs import encoder_tensors, unet_tensors
from diffseg.engines.errors import BundleError, ProviderError
from diffseg.engines.examples import example_images
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.providers.select import load_network
from msgspec.structs import replace

from tests.networks import attend, encode
from tests.pictures import pixels


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("tiny")


@pytest.fixture(scope="module")
def network(bundle):
    return OrtNetwork(bundle)


@pytest.fixture(scope="module")
def images(bundle):
    height, width = bundle.manifest.image_size
    return np.stack([pixels(path, "RGB", (width, height)) for path in example_images()[:3]])


def test_outputs_are_what_the_manifest_declares(bundle, network, images):
    latent = encode(network, images[:1])
    assert latent.shape == bundle.manifest.graphs["unet"].tensors.inputs[0].shape(1)
    outputs = attend(network, latent)
    assert [o.shape for o in outputs] == [(1, a.queries, a.queries) for a in bundle.manifest.attention]
    for output in outputs:
        assert output.dtype == np.float32
        np.testing.assert_allclose(output.sum(-1), 1, atol=1e-4)
        assert output.min() >= 0


def test_a_batch_gives_what_its_images_give_alone(network, images):
    together = attend(network, encode(network, images))
    for i in range(len(images)):
        alone = attend(network, encode(network, images[i : i + 1]))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[i], atol=1e-5)


def test_threads_change_no_number(bundle, network, images):
    other = load_network(bundle, "cpu", threads=1)
    for a, b in zip(
        attend(network, encode(network, images[:1])), attend(other, encode(other, images[:1])), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_second_run_needs_no_more_memory_than_the_first():
    code = """
import numpy as np
from diffseg.engines import open_bundle
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.measure.profile.memory import peak_resident
network = OrtNetwork(open_bundle("tiny"))
with network.session() as first, network.session() as second:
    for session in (first, second):
        outputs = session.attend(np.zeros((1, 4, 64, 64), np.float32))
        print(peak_resident())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = map(int, done.stdout.split())
    assert second - first < 150e6  # the outputs of the first run are still there: 72 MB


def test_threads_may_share_a_network(network, images):
    expected = [attend(network, encode(network, images[i : i + 1])) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: attend(network, encode(network, images[i % 3 : i % 3 + 1])), range(6)))
    for i, outputs in enumerate(found):
        for a, b in zip(outputs, expected[i % 3], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_auto_says_what_it_took(bundle, caplog):
    with caplog.at_level("INFO", logger="diffseg"):
        assert load_network(bundle, "auto").provider == "cpu"
    assert "took cpu" in caplog.text


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "ort-tensorrt", "tensorrt-rtx"])
def test_a_provider_that_cannot_run_is_an_error(bundle, provider):
    with pytest.raises(ProviderError, match=f"provider '{provider}' needs an NVIDIA GPU"):
        load_network(bundle, provider)


def test_an_unknown_provider_is_an_error(bundle):
    with pytest.raises(ProviderError, match=r"unknown provider 'gpu'.*auto, cpu, cuda"):
        load_network(bundle, "gpu")


def test_bfloat16_without_graphs_for_cpus_is_refused(bundle):
    graphs = {name: replace(graph, cpu_file=None) for name, graph in bundle.manifest.graphs.items()}
    with pytest.raises(ProviderError, match="export it again"):
        OrtNetwork(Bundle(bundle.folder, replace(bundle.manifest, precision="bf16", graphs=graphs)))


def test_graphs_that_are_no_onnx_are_one_clear_line(fake_bundle):
    with pytest.raises(BundleError, match="cannot load .*vae_encoder.onnx") as caught:
        OrtNetwork(fake_bundle)
    assert "\n" not in str(caught.value)


def test_graphs_of_another_size_are_refused(bundle):
    size = (256, 256)
    attention = tuple(replace(a, grid=(a.grid[0] // 2, a.grid[1] // 2)) for a in bundle.manifest.attention)
    tensors = {"vae_encoder": encoder_tensors(size, 4, 4), "unet": unet_tensors(size, 4, attention, 4)}
    graphs = {name: replace(graph, tensors=tensors[name]) for name, graph in bundle.manifest.graphs.items()}
    manifest = replace(bundle.manifest, image_size=size, attention=attention, graphs=graphs)
    with pytest.raises(BundleError, match="the manifest says"):
        OrtNetwork(Bundle(bundle.folder, manifest))


def test_graphs_with_other_tensors_are_refused(bundle, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(bundle.folder, folder)
    shutil.copy(bundle.cpu_path("vae_encoder"), folder / bundle.cpu_path("unet").name)
    with pytest.raises(BundleError, match="the manifest says"):
        OrtNetwork(Bundle(folder, bundle.manifest))


@pytest.mark.skipif(sys.platform == "win32", reason="telemetry of Windows goes through the system")
def test_onnx_runtime_keeps_no_record_of_its_user(tmp_path):
    """ONNX Runtime's telemetry would write a device id below the home folder and send reports; it must be off."""
    code = "from diffseg.engines.providers.onnxruntime import session_options; session_options()"
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []
