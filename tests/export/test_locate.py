"""What is downloaded of a checkpoint on the hub, and in which order."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from diffseg.engines.bundle.hub import Snapshot
from diffseg.engines.errors import CheckpointError
from diffseg.export import locate
from diffseg.export.card import read_licence
from diffseg.export.locate import find_checkpoint

SD = {"_class_name": "UNet2DConditionModel"}
SDXL = SD | {"addition_embed_type": "text_time", "sample_size": 128}


class Hub:
    """Repositories, and the folder of files that were downloaded from each."""

    def __init__(self, root, repositories):
        self.root, self.repositories, self.asked = root, repositories, []

    def snapshot(self, name, patterns, *, required=(), ignored=()):
        repository, _, revision = name.partition("@")
        folder = self.root / repository
        if not (folder.is_dir() and all(any(folder.glob(pattern)) for pattern in required)):
            self.asked.append((name, patterns))
            for path, text in self.repositories[repository].items():
                wanted = any(fnmatch(path, p) for p in patterns) and not any(fnmatch(path, p) for p in ignored)
                if wanted:
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_text(text)
        return Snapshot(folder, revision or "abc")

    def files(self, repository):
        folder = self.root / repository
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    def make(**repositories):
        made = Hub(tmp_path, {f"someone/{name}": files for name, files in repositories.items()})
        monkeypatch.setattr(locate, "snapshot", made.snapshot)
        return made

    return make


def repository(unet, parts, *, endings=("safetensors",), pipeline="StableDiffusionXLPipeline"):
    files = {"model_index.json": json.dumps({"_class_name": pipeline}), "README.md": "x", "big.ckpt": ""}
    for part in parts:
        config = unet if part == "unet" else {"_class_name": "AutoencoderKL"}
        files[f"{part}/config.json"] = json.dumps(config)
        if not part.startswith("tokenizer"):
            files |= {f"{part}/model.{ending}": "" for ending in endings}
    return files


PARTS = ["unet", "vae", "text_encoder", "tokenizer"]
SDXL_PARTS = [*PARTS, "text_encoder_2", "tokenizer_2"]
BOTH = ("safetensors", "fp16.safetensors", "bin", "onnx")


def test_sdxl_in_full_precision(hub):
    made = hub(sdxl=repository(SDXL, SDXL_PARTS, endings=BOTH))
    found = find_checkpoint("someone/sdxl")
    assert (found.name, found.revision, found.sdxl, found.native_size) == ("someone/sdxl", "abc", True, 1024)
    weights = {file for file in made.files("someone/sdxl") if "model." in file}
    assert weights == {f"{part}/model.safetensors" for part in ("unet", "vae", "text_encoder", "text_encoder_2")}
    before = len(made.asked)
    find_checkpoint("someone/sdxl")
    assert len(made.asked) == before  # everything is there


@pytest.mark.parametrize("ending", ["fp16.safetensors", "bin"])
def test_other_weights_are_taken_where_there_are_no_better_ones(hub, ending):
    made = hub(sd=repository(SD, PARTS, endings=(ending,), pipeline="StableDiffusionPipeline"))
    assert not find_checkpoint("someone/sd").sdxl
    assert f"unet/model.{ending}" in made.files("someone/sd")


def test_cached_weights_of_a_variant_are_enough(hub):
    made = hub(sd=repository(SD, PARTS, endings=BOTH))
    for part in ("unet", "vae", "text_encoder"):
        path = Path(made.root, "someone/sd", part, "model.fp16.safetensors")
        path.parent.mkdir(parents=True)
        path.touch()
    find_checkpoint("someone/sd")
    assert "unet/model.safetensors" not in made.files("someone/sd")


def test_no_weights_of_what_is_refused(hub):
    dit = {"model_index.json": json.dumps({"_class_name": "FluxPipeline", "transformer": []})}
    made = hub(flux=dit | {"vae/config.json": "{}", "vae/model.safetensors": ""})
    with pytest.raises(CheckpointError, match="a DiT"):
        find_checkpoint("someone/flux")
    assert made.files("someone/flux") == {"model_index.json", "vae/config.json"}


def test_another_vae_is_downloaded_in_place_of_the_first(hub):
    tiny = {"config.json": '{"_class_name": "AutoencoderTiny"}', "taesdxl_decoder.safetensors": ""}
    tiny |= {f"diffusion_pytorch_model.{ending}": "" for ending in ("safetensors", "bin")}
    made = hub(sdxl=repository(SDXL, SDXL_PARTS), tiny=tiny)
    found = find_checkpoint("someone/sdxl", vae="someone/tiny")
    assert (found.vae, found.vae_kind) == (made.root / "someone/tiny", "AutoencoderTiny")
    assert made.files("someone/tiny") == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert "vae/model.safetensors" not in made.files("someone/sdxl")


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ("---\nlicense: openrail++\n---\n", "openrail++"),
        ("---\nlicense: other\nlicense_name: sai-nc-community\nlicense_link: x\n---\n", "other (sai-nc-community)"),
        ("---\ntags:\n- x\n---\nlicense: mit\n", None),
        ('---\nlicense: "apache-2.0"\n---\n', "apache-2.0"),
        ("# no front matter\n", None),
    ],
)
def test_the_licence_of_a_card(tmp_path, lines, licence):
    (tmp_path / "README.md").write_text(lines)
    assert read_licence(tmp_path / "README.md") == licence
