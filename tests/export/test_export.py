"""Input that export rejects. A failed export leaves no files behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffseg.engines import agreement
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.engines.errors import BundleError, CheckpointError, ParityError
from diffseg.engines.providers.onnxruntime import import_onnxruntime
from diffseg.export import ExportSettings, export_bundle, parity, parse_size
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.device import move
from diffseg.export.graphs import AttentionUNet, Encoder
from diffseg.export.latents import LatentScale
from diffseg.export.magnitudes import LargestMagnitude
from diffseg.export.pipeline import default_name
from diffseg.export.time_embedding import embed_time
from safetensors.torch import load_file, save_file

SMALL = ExportSettings((64, 64), max_batch=1)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "bk"
    make_checkpoint("bk-sdm-tiny", folder, small=True)
    return folder


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy to damage."""
    return shutil.copytree(checkpoint, tmp_path / "damaged")


def edit(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(value))


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


DAMAGE = {
    "has no vae/, tokenizer/": lambda f: [shutil.rmtree(f / part) for part in ("vae", "tokenizer")],
    "is a KolorsPipeline, which is not supported": lambda f: edit(f / "model_index.json", _class_name="KolorsPipeline"),
    "is the refiner of SDXL": lambda f: edit(f / "model_index.json", requires_aesthetics_score=True),
    "is a FluxPipeline, .* diffusion transformer \\(a DiT\\)": lambda f: edit(
        f / "model_index.json", _class_name="FluxPipeline"
    ),
    "a DiT": lambda f: (f / "transformer").mkdir(),
    "a single resolution and no UNet": lambda f: edit(
        f / "model_index.json", transformer=["diffusers", "SD3Transformer2DModel"]
    ),
    "is a UNet3DConditionModel": lambda f: edit(f / "unet" / "config.json", _class_name="UNet3DConditionModel"),
    "addition_embed_type=image": lambda f: edit(f / "unet" / "config.json", addition_embed_type="image"),
    "has no text_encoder_2/, tokenizer_2/": lambda f: edit(f / "unet" / "config.json", addition_embed_type="text_time"),
    "blocks=\\['AttnDownBlock2D'\\]": lambda f: edit(
        f / "unet" / "config.json", down_block_types=["AttnDownBlock2D"] * 3
    ),
    "is a VQModel, expected AutoencoderKL or": lambda f: edit(f / "vae" / "config.json", _class_name="VQModel"),
    "cannot load .*unet": lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"),
    "cannot load .*text_encoder": lambda f: cut(f / "text_encoder" / "model.safetensors"),
    "holds no weights": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
    "cannot read .*config.json": lambda f: (f / "vae" / "config.json").write_text("{"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_an_unusable_checkpoint_is_one_clear_line(damaged, tmp_path, message):
    DAMAGE[message](damaged)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(damaged, tmp_path / "bundle", SMALL)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        load_checkpoint(tmp_path / "nope")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="single-file"):
        load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 65, "a\nb", "."])
def test_a_name_that_no_bundle_can_have_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(BundleError, match="a bundle's name must be 1 to 64 letters"):
        export_bundle(tmp_path / "nowhere", tmp_path / "bundle", SMALL, name=name)


def test_a_bundle_is_named_after_its_folder():
    names = ("sd15-fp32", "my models v1.5", "modèle", "x" * 80)
    assert [default_name(Path("some", n)) for n in names] == ["sd15-fp32", "my-models-v1.5", "mod-le", "x" * 64]


def test_an_inpainting_unet_is_refused(damaged):
    from diffusers import UNet2DConditionModel

    config = json.loads((damaged / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(damaged / "unet")
    with pytest.raises(CheckpointError, match="takes 9 channels"):
        load_checkpoint(damaged)


def test_half_precision_weights_by_their_variant_name(damaged):
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert next(load_checkpoint(damaged).unet.parameters()).dtype == torch.float32


def test_another_vae_can_be_named(checkpoint, make_checkpoint, tmp_path):
    make_checkpoint("bk-sdm-tiny", tmp_path / "other", small=True, vae="tiny")
    for folder in (tmp_path / "other", tmp_path / "other" / "vae"):
        assert type(load_checkpoint(checkpoint, vae=folder).vae).__name__ == "AutoencoderTiny"


def test_the_licence_of_a_model_card_is_kept(damaged):
    assert load_checkpoint(damaged).source.licence is None
    (damaged / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# Card\n")
    loaded = load_checkpoint(damaged)
    assert loaded.source.licence == "creativeml-openrail-m"
    assert loaded.card == damaged / "README.md"


def test_an_export_that_fails_its_tolerance_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    """The check must fail if the weights differ from those that were traced."""
    honest = parity.reference

    def other(module, value, device=None):
        for parameter in module.parameters():
            parameter.data.mul_(1.02)
        result = honest(module, value, device)
        for parameter in module.parameters():
            parameter.data.div_(1.02)
        return result

    monkeypatch.setattr(parity, "reference", other)
    with pytest.raises(ParityError, match="disagrees with PyTorch: .*fp32 allows .*nothing was written"):
        export_bundle(checkpoint, tmp_path / "bundle", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_values_that_half_precision_cannot_hold_are_refused_before_anything_is_traced(damaged, tmp_path):
    path = damaged / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name in ("encoder.conv_in.weight", "encoder.conv_in.bias"):
        weights[name] *= 1e6  # the normalisations that follow hide it from the latent
    save_file(weights, path, {"format": "pt"})
    steps = []
    with pytest.raises(ParityError, match=r"^vae_encoder computes values of magnitude .* fp16 holds at most 65504;"):
        export_bundle(damaged, tmp_path / "bundle", replace(SMALL, precision="fp16"), progress=steps.append)
    assert not any(step.startswith("trace") for step in steps)
    assert not (tmp_path / "bundle").exists()
    bundle = export_bundle(damaged, tmp_path / "bundle", SMALL)
    assert bundle.manifest.parity["vae_encoder"]["largest_magnitude"] > 65504


def test_an_overflow_on_the_gpu_fails_the_export():
    latent = np.ones((1, 4, 8, 8), np.float32)
    figures = {"latent_gpu": parity.measure_latent(latent, np.full_like(latent, np.inf))}
    with pytest.raises(ParityError, match="the exported latent_gpu disagrees with PyTorch: latent_cosine_distance"):
        parity.check(figures, "fp16", (64, 64))


def test_without_a_gpu_or_in_float32_nothing_is_compared_there(monkeypatch):
    half, whole = torch.nn.Linear(2, 2).half(), torch.nn.Linear(2, 2)
    value = np.zeros((1, 2), np.float16)
    monkeypatch.setattr(parity, "find_gpu", lambda: None)
    assert parity.reference_on_gpu(half, value) is None
    monkeypatch.setattr(parity, "find_gpu", lambda: torch.device("cpu"))
    assert parity.reference_on_gpu(whole, value.astype(np.float32)) is None
    assert parity.reference_on_gpu(half, value)[0].dtype == np.float32

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(parity, "reference", full)
    assert parity.reference_on_gpu(half, value) is None


def test_a_module_moves_with_all_of_its_tensors(checkpoint):
    """The device `meta` refuses tensors of the host, as a GPU does."""
    loaded = load_checkpoint(checkpoint)
    meta = torch.device("meta")
    encoder = Encoder(loaded.vae, LatentScale(0.5, (0.0,) * 4, (1.0,) * 4))
    unet = AttentionUNet(loaded.unet, loaded.prompt, embed_time(loaded.unet, 300, (64, 64), None), (64, 64))
    move(encoder, meta)
    move(unet, meta)
    with torch.no_grad(), meta:
        latent = encoder(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))
        outputs = unet(latent)
    assert {tensor.device for tensor in (latent, *outputs)} == {meta}


def test_the_largest_magnitude_counts_every_tensor_that_is_computed():
    values = torch.tensor([[3.0, -40.0], [1.0, 2.0]])
    with LargestMagnitude() as found:
        (values * 2).sum()
        torch.split(values * -3, 1)
        values.T.abs()
    assert (found.value, found.operator) == (120.0, "aten.mul.Tensor")
    with LargestMagnitude((torch.ops.aten.bmm.default,)) as found:
        torch.bmm(values[None] * 100, values[None])
    assert (found.value, found.operator) == (4000.0, "aten.mul.Tensor")
    with LargestMagnitude() as found:
        torch.log(values)
        torch.exp(values)
    assert not found.value <= 1e9  # NaN stays


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_bad_figure_never_passes(value):
    with pytest.raises(ParityError):
        parity.check({"latent": {"latent_max_error": value}}, "fp32", (512, 512))
    parity.check({"latent": {"latent_max_error": 1e-5}}, "fp32", (512, 512))


def test_a_larger_image_may_round_more():
    figures = {"latent": {"latent_max_error": 3e-4}}
    parity.check(figures, "fp32", (1024, 1024))
    with pytest.raises(ParityError, match="0.0003, fp32 allows 0.0002"):
        parity.check(figures, "fp32", (512, 1024))


def test_attention_is_compared_block_by_block_as_a_whole(monkeypatch):
    rng = np.random.default_rng(0)
    good, bad = (rng.dirichlet(np.ones(16), (2, 16)).astype(np.float32) for _ in range(2))
    whole = parity.measure_attention(good, bad)
    monkeypatch.setattr(agreement, "BLOCK", 16 * 5)
    assert parity.measure_attention(good, bad) == pytest.approx(whole)
    assert whole["attention_max_error"] == np.abs(good - bad).max()


def test_every_export_is_checked_on_noise_and_on_a_photograph(checkpoint, tmp_path, monkeypatch):
    seen = []
    honest = parity.execute
    monkeypatch.setattr(parity, "execute", lambda path, value, *rest: seen.append(value) or honest(path, value, *rest))
    export_bundle(checkpoint, tmp_path / "bundle", SMALL)
    images = seen[0]
    assert len(images) == 2
    roughness = np.abs(np.diff(images.astype(float), axis=1)).mean((1, 2, 3))
    assert roughness[0] > 3 * roughness[1]


def test_nan_in_an_output_shows_in_its_figures():
    good = np.full((1, 4, 4), 0.25, np.float32)
    bad = good.copy()
    bad[0, 2, 1] = np.nan
    for precision in ("fp32", "fp16", "bf16"):
        with pytest.raises(ParityError):
            parity.check({"attention_2": parity.measure_attention(good, bad)}, precision, (64, 64))


def test_queries_that_are_not_numbers_fail_the_form(monkeypatch):
    rng = np.random.default_rng(0)
    queries, keys = rng.standard_normal((2, 1, 2, 4, 8)).astype(np.float32)
    monkeypatch.setattr(parity, "execute", lambda *_: [queries, keys])
    good = parity.execute_form(None, None, "fp16")[0]
    parity.check({"attention_2_queries_keys": parity.measure_attention(good, good)}, "fp16", (64, 64))
    for value in (np.nan, np.inf):
        queries[0, 1, 2, 3] = value
        with np.errstate(invalid="ignore"):
            found = parity.execute_form(None, None, "fp16")[0]
        with pytest.raises(ParityError):
            parity.check({"attention_2_queries_keys": parity.measure_attention(good, found)}, "fp16", (64, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (500, 512)}, "multiples of 64"),
        ({"size": (0, 0)}, "multiples of 64"),
        ({"timestep": 1000}, "timestep"),
        ({"max_batch": 0}, "max_batch"),
        ({"precision": "fp8"}, "precision"),
        ({"defaults": MergeSettings((float("inf"),))}, "finite thresholds"),
    ],
)
def test_settings_that_no_unet_takes(settings, message):
    with pytest.raises(ValueError, match=message):
        ExportSettings(**settings)


def test_default_settings_need_an_anchor():
    with pytest.raises(ValueError, match="anchors must be at least 1"):
        ExportSettings(defaults=MergeSettings(anchors=0))


def test_sizes():
    assert parse_size("512") == (512, 512)
    assert parse_size("512x768") == (512, 768)
    for text in ("", "axb", "1x2x3", "-64"):
        with pytest.raises(ValueError, match="size must be"):
            parse_size(text)


def test_external_data_cannot_point_out_of_the_bundle(tmp_path):
    """ONNX Runtime itself rejects this. The test fails if that changes."""
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "bundle").mkdir()
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="secret", size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    (tmp_path / "bundle" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="escapes"):
        import_onnxruntime().InferenceSession(str(tmp_path / "bundle" / "m.onnx"))
