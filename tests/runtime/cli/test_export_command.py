"""Errors that `diffseg export` reports at once, without importing PyTorch and diffusers (replaced by dummies)."""

import json

import pytest
from diffseg.engines.packages import install_command

from tests.commands import diffseg


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a checkpoint whose configurations are right, and a bundle."""
    heavy = tmp_path / "heavy"
    heavy.mkdir()
    for name in ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime"):
        (heavy / f"{name}.py").write_text("raise ImportError('HEAVY', name='heavy')\n")
    monkeypatch.setenv("PYTHONPATH", str(heavy))
    configs = {
        "unet": {"_class_name": "UNet2DConditionModel"},
        "vae": {"_class_name": "AutoencoderKL"},
        "text_encoder": {},
        "tokenizer": {},
    }
    work = tmp_path / "work"
    for part, config in configs.items():
        (work / "sd" / part).mkdir(parents=True)
        (work / "sd" / part / "config.json").write_text(json.dumps(config))
    (work / "bundle").mkdir()
    (work / "bundle" / "manifest.json").touch()
    (work / "photos").mkdir()
    (work / "photos" / "photo.jpg").touch()
    (work / "model.safetensors").touch()
    return work


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sd", "-o", "bundle"], 1, "bundle exists; choose another folder with -o, or overwrite it with --force"),
        (["sd", "-o", "photos", "--force"], 1, "photos exists and is not a bundle"),
        (["sd", "-o", "photos/photo.jpg/new"], 1, "photo.jpg is not a folder; choose another folder with -o"),
        (["sd", "-o", "/proc/diffseg/new"], 1, "error: cannot write /proc/diffseg/new: No such file or directory"),
        (["sd", "-o", "new", "--size", "500"], 2, "multiples of 64"),
        (["sd", "-o", "new", "--size", "big"], 2, "HEIGHTxWIDTH"),
        (["sd", "-o", "new", "--method", "magic"], 2, "--method must be one of diffseg, diffcut, found 'magic'"),
        (["sd", "-o", "new", "--method", "diffseg", "--method", "diffcut"], 2, "needs a size for both"),
        (
            ["sd", "-o", "new", "--method", "diffseg", "--method", "diffcut", "--size", "512", "--timestep", "9"],
            2,
            "two have their usual timesteps",
        ),
        (["sd", "-o", "new", "--threshold", "inf"], 2, "finite thresholds"),
        (["nope", "-o", "new"], 1, "error: no checkpoint 'nope'"),
        (["model.safetensors", "-o", "new"], 1, "single-file"),
        (["photos", "-o", "new"], 1, "has no unet/, vae/, text_encoder/, tokenizer/"),
        (["sd", "-o", "new", "--vae", "nope"], 1, "error: no checkpoint 'nope'"),
        (["sd", "-o", "new", "--vae", "sd/unet"], 1, "is a UNet2DConditionModel, expected AutoencoderKL or"),
    ],
)
def test_what_is_refused_before_the_heavy_imports(place, arguments, code, message):
    before = sorted(place.rglob("*"))
    done = diffseg("export", *arguments, cwd=place)
    assert message in done.stderr
    assert (done.returncode, "Traceback" in done.stderr, "heavy" in done.stderr) == (code, False, False)
    assert sorted(place.rglob("*")) == before


def test_what_is_right_gets_to_them(place):
    """Shows that an import of the dummies would have been noticed."""
    done = diffseg("export", "sd", "-o", "new", cwd=place)
    assert (done.returncode, done.stderr) == (1, f"error: export needs heavy: {install_command('export')}\n")
    assert not (place / "new").exists()
