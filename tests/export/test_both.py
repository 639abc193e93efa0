"""Real exports of small checkpoints for DiffSeg and DiffCut at once: one VAE, one set of weights."""

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import FEATURES, QUERIES_KEYS, UNET
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.machine import Gpus
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt.lookup import verify_plans
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.export import ExportSettings, export_bundle
from diffseg.export.noise import make_noise
from diffseg.export.parity import sample_images

from tests.commands import diffseg
from tests.export.test_diffcut import stock
from tests.networks import attend, encode

pytestmark = pytest.mark.integration
SIZE = (128, 192)
CASES = {"sd15-fp32": ("sd15", "fp32")}  # `sd21` in fp16 passes, too, and takes as long


@pytest.fixture(scope="module", params=CASES)
def case(request, make_checkpoint, tmp_path_factory):
    family, precision = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(family, folder / "checkpoint", small=True)
    settings = ExportSettings(SIZE, precision, max_batch=2, both=True)
    return folder, export_bundle(folder / "checkpoint", folder / "both", settings)


def test_one_vae_and_one_set_of_weights(case):
    folder, bundle = case
    manifest = bundle.manifest
    assert manifest.methods == ("diffseg", "diffcut")
    unet = manifest.graphs[UNET]
    form = unet.forms[FEATURES]
    assert set(unet.forms) == {QUERIES_KEYS, FEATURES}
    assert form.external_data == unet.external_data == ("unet.onnx.data",)
    assert sorted(path.name for path in (folder / "both").glob("vae_encoder*.onnx")) == (
        ["vae_encoder.onnx"] if manifest.precision == "fp32" else ["vae_encoder.cpu.onnx", "vae_encoder.onnx"]
    )
    noise = 4 * 4 * SIZE[0] * SIZE[1] // 64
    assert manifest.files[form.file].bytes < noise + 400_000  # nodes and small constants
    assert manifest.files["unet.onnx.data"].bytes > 2 * manifest.files[form.file].bytes
    assert (form.cpu_file is None) == (manifest.precision == "fp32")
    assert (manifest.timestep, manifest.features.timestep) == (300, 50)
    assert 0 < form.flops < unet.flops
    assert form.parameters_dropped > unet.parameters_dropped
    assert all(problem is None for _, problem in Bundle.open(bundle.folder).verify())
    assert {"features", f"{UNET}.{FEATURES}"} <= set(manifest.parity)


def test_its_networks_are_those_of_bundles_for_one_method(case):
    folder, bundle = case
    images = sample_images(SIZE, 2)
    for method, timestep in (("diffseg", 300), ("diffcut", 50)):
        view = bundle.for_method(method)
        network = OrtNetwork(view)
        found = attend(network, encode(network, images))
        settings = ExportSettings(
            SIZE, bundle.manifest.precision, timestep, 2, MergeSettings(method=method, tau=view.manifest.defaults.tau)
        )
        single = export_bundle(folder / "checkpoint", folder / method, settings)
        alone = OrtNetwork(single)
        for a, b in zip(found, attend(alone, encode(alone, images)), strict=True):
            np.testing.assert_array_equal(a, b)
        assert view.manifest.defaults == single.manifest.defaults
        assert view.manifest.attention == single.manifest.attention
        assert view.manifest.features == single.manifest.features
    if bundle.manifest.precision == "fp32":
        expected = stock(folder / "checkpoint", images, make_noise((1, 4, SIZE[0] // 8, SIZE[1] // 8)))
        np.testing.assert_allclose(found[0], expected, atol=1e-4 * np.abs(expected).max())


def test_plans_of_both(case, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    _, bundle = case
    for view in bundle.views:
        plan = build_plan(view, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=Gpus((), "none"))
        assert set(plan.record.files) == {"vae_encoder", "unet"}
    names = [name for name, problem in verify_plans(bundle) if problem is None]
    assert len(names) == 4
    assert all(problem is None for _, problem in verify_plans(bundle))


def test_the_command(case, tmp_path):
    folder, bundle = case
    if bundle.manifest.precision != "fp32":
        pytest.skip("one case is enough")
    words = ("--method", "diffcut", "--method", "diffseg", "--size", "128x192")
    done = diffseg("export", folder / "checkpoint", "-o", tmp_path / "both", *words)
    assert done.returncode == 0, done.stderr
    assert "unet, form features: " in done.stdout
    manifest = Bundle.open(tmp_path / "both").manifest
    assert manifest.methods == ("diffcut", "diffseg")
    assert (manifest.defaults.method, manifest.defaults.tau) == ("diffcut", 0.5)
    for method in ("diffcut", "diffseg", "cut"):
        result = Segmenter.load(tmp_path / "both", provider="cpu", method=method)(sample_images(SIZE, 2)[1])
        assert result.settings.method == method
