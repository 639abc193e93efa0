import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.bundle import bundle as bundle_module
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.bundle import Bundle, write_manifest
from diffseg.engines.bundle.manifest import ENCODER, QUERIES_KEYS, UNET, Graph, Manifest, Source
from hypothesis import settings
from msgspec import structs

from tests.models import copy_models

settings.register_profile("any-machine", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def segmenter():
    return Segmenter.load("tiny", provider="cpu", batch=2)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Folder of the embedded models, which is a copy without plans during the test."""
    monkeypatch.setattr(bundle_module, "MODELS", copy_models(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def photo():
    """An image with three plain regions, uint8 (120, 200, 3)."""
    array = np.zeros((120, 200, 3), np.uint8)
    array[:60] = (90, 150, 230)
    array[60:] = (60, 140, 50)
    array[30:100, 70:130] = (200, 60, 40)
    return array


@pytest.fixture
def fake_bundle(tmp_path):
    """A bundle whose graphs are meaningless bytes, for checks that do not run them."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("vae_encoder.onnx", "unet.onnx", "unet.onnx.data"):
        (folder / name).write_bytes(name.encode() * 100)
    attention = (specs.AttentionOutput("attention_8", (8, 8), 5, 8), specs.AttentionOutput("attention_4", (4, 4), 1, 8))
    manifest = Manifest(
        name="fake",
        source=Source("nowhere"),
        image_size=(64, 64),
        latent_scale=0.18215,
        timestep=300,
        precision="fp32",
        graphs={
            ENCODER: Graph("vae_encoder.onnx", (), specs.encoder_tensors((64, 64), 4, 4), 18, 10, 20),
            UNET: Graph("unet.onnx", ("unet.onnx.data",), specs.unet_tensors((64, 64), 4, attention, 4), 18, 10, 20),
        },
        attention=attention,
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


@pytest.fixture
def formed_bundle(fake_bundle):
    """The bundle without meaning, with the queries and keys of its UNet."""
    manifest = fake_bundle.manifest
    (fake_bundle.folder / "unet.queries_keys.onnx").write_bytes(b"form" * 100)
    tensors = specs.queries_keys_tensors((64, 64), 4, manifest.attention, (40, 80), "float16", 4)
    form = Graph("unet.queries_keys.onnx", ("unet.onnx.data",), tensors, 18, 10, 20)
    unet = structs.replace(manifest.graphs[UNET], forms={QUERIES_KEYS: form})
    write_manifest(fake_bundle.folder, structs.replace(manifest, graphs=manifest.graphs | {UNET: unet}))
    return Bundle.open(fake_bundle.folder)
