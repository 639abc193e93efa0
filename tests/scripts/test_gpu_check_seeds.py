"""Graphs that travel without weights, and weights from a seed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from diffseg.engines import Bundle
from diffseg.engines.bundle.bundle import MODELS

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check.seeds import EXACT_BYTES, Recipe, describe, fill


def test_seeded_weights_resemble_the_real_ones(tmp_path):
    random = np.random.default_rng(0)
    large = (3 + 0.5 * random.standard_normal(50_000)).astype(np.float16)
    whole, small = np.arange(10_000), np.float32([1, 2, 3])
    parts, offsets = [large, whole, small], [0, 100_352, 180_480]
    data = bytearray(180_544)
    for part, offset in zip(parts, offsets, strict=True):
        data[offset : offset + part.nbytes] = part.tobytes()
    (tmp_path / "w.data").write_bytes(data)
    places = zip(["w.data"] * 3, offsets, [p.nbytes for p in parts], ["float16", "int64", "float32"], strict=True)
    recipe, exact = describe(tmp_path, places)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert len(exact) == whole.nbytes + small.nbytes
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, recipe, exact, seed)
        found[name] = (tmp_path / name / "w.data").read_bytes()
    assert found["a"] == found["b"] != found["c"]
    assert len(found["a"]) == len(data)
    drawn = np.frombuffer(found["a"], np.float16, 50_000).astype(np.float32)
    assert drawn.mean() == pytest.approx(3, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, abs=0.02)
    assert not np.array_equal(drawn, large)
    assert found["a"][100_352:] == data[100_352:]  # kept exactly


def test_bfloat16_is_drawn_too(tmp_path):
    bits = (np.random.default_rng(0).standard_normal(EXACT_BYTES, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "w.data").write_bytes(bits.tobytes())
    recipe, exact = describe(tmp_path, [("w.data", 0, bits.nbytes, "bfloat16")])
    assert exact == b""
    fill(tmp_path, recipe, exact, 0)
    drawn = (np.fromfile(tmp_path / "w.data", np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert drawn.std() == pytest.approx(1, abs=0.05)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    np.full(EXACT_BYTES, np.inf, np.float32).tofile(tmp_path / "w.data")
    with pytest.raises(ValueError, match="NaN or infinite"):
        describe(tmp_path, [("w.data", 0, 4 * EXACT_BYTES, "float32")])


def test_an_archive_has_no_weights_and_gives_a_whole_bundle(seeded):
    context, outcome = seeded
    assert outcome["status"] == "done", outcome
    real, made = Bundle.open(MODELS / "tiny"), Bundle.open(context.bundle)
    weights = [name for name in real.manifest.files if name.endswith(".data")]
    assert context.archive.stat().st_size < 0.1 * sum(real.manifest.files[name].bytes for name in weights)
    for name in weights:
        assert made.manifest.files[name].bytes == real.manifest.files[name].bytes
        assert made.manifest.files[name].sha256 != real.manifest.files[name].sha256
    assert [name for name, problem in made.verify() if problem] == []
    assert made.manifest.parity == {}
    assert "seed 0" in made.manifest.source.checkpoint


def test_seeded_graphs_load_in_onnxruntime_and_give_finite_outputs(seeded):
    ort = pytest.importorskip("onnxruntime")
    context, _ = seeded
    bundle = Bundle.open(context.bundle)
    images = np.random.default_rng(0).integers(0, 256, (1, *bundle.manifest.image_size, 3), np.uint8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, unet = (
        ort.InferenceSession(bundle.graph_path(name), options, providers=["CPUExecutionProvider"])
        for name in ("vae_encoder", "unet")
    )
    (latent,) = encoder.run(None, {encoder.get_inputs()[0].name: images})
    outputs = unet.run(None, {unet.get_inputs()[0].name: latent})
    for output in (latent, *outputs):
        assert np.isfinite(output).all()
    for output in outputs:
        np.testing.assert_allclose(output.sum(-1), 1, atol=2e-3)
        assert (
            output.std(axis=-1).max() > 0.01 / output.shape[-1]
        )  # attention that is even everywhere would prove nothing
