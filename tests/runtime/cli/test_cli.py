"""The command line: files, output and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffseg import __version__
from diffseg.cli.app import app
from diffseg.cli.sources import expand
from diffseg.cli.tables import machine_tables
from diffseg.engines.examples import example_images
from diffseg.engines.machine import find_gpus
from diffseg.formats.names import FORMATS
from diffseg.measure.capabilities import capabilities
from msgspec.structs import replace
from typer.testing import CliRunner

from tests.commands import diffseg
from tests.models import copy_models
from tests.pictures import pixels


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, path in enumerate(example_images()[:2]):
        (folder / f"photo{i}.jpg").write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("not listed, since no image")
    return folder


def test_segment_writes_three_files_an_image(pictures, tmp_path):
    done = diffseg("segment", pictures, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "model tiny, provider cpu\n"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"photo{i}.jpg{ending}" for i in range(2) for ending in (".labels.png", ".overlay.png", ".json")}
    for i in range(2):
        record = json.loads((tmp_path / "out" / f"photo{i}.jpg.json").read_text())
        labels = pixels(tmp_path / "out" / f"photo{i}.jpg.labels.png")
        assert labels.shape == (record["height"], record["width"])
        assert {s["label"] for s in record["segments"]} == set(np.unique(labels).tolist())
        assert f"{len(record['segments'])} segment" in done.stdout.splitlines()[i]


def test_segment_writes_the_formats_that_were_asked_for(pictures, tmp_path):
    done = diffseg("segment", pictures / "photo0.jpg", "-o", tmp_path / "out", "--format", "coco,labelme,svg")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"photo0.jpg.coco.json", "photo0.jpg.labelme.json", "photo0.jpg.svg"}
    assert json.loads((tmp_path / "out" / "photo0.jpg.coco.json").read_text())["images"][0]["file_name"] == "photo0.jpg"


def test_segment_cuts(pictures, tmp_path):
    done = diffseg(
        "segment", pictures / "photo0.jpg", "-o", tmp_path, "--method", "cut", "--tau", "0.6", "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "photo0.jpg.json").read_text())["settings"]
    assert (settings["method"], settings["tau"]) == ("cut", 0.6)


def test_failed_images_are_listed_and_the_others_written(pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (pictures / "empty.jpg").touch()
    done = diffseg("segment", pictures, tmp_path / "none.jpg", "-o", tmp_path / "out")
    assert done.returncode == 1
    for name in ("broken.png", "empty.jpg: an empty file", "none.jpg: no such file", "3 of 5 images failed"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out").glob("*.overlay.png"))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment"], 2, "error: missing argument IMAGE; see diffseg segment --help\n"),
        (["segment", "x.jpg", "--threshold", "-1"], 2, "--threshold"),
        (["segment", "x.jpg", "--provider", "gpu"], 2, "--provider"),
        (["segment", "x.jpg", "--fit", "cover"], 2, "--fit"),
        (["segment", "x.jpg", "--tau", "3"], 2, "--tau"),
        (["segment", "x.jpg", "--method", "diffcut"], 2, "method must be one of diffseg, cut, found 'diffcut'"),
        (["segment", "x.jpg", "--batch", "99"], 2, "batch must be 1 to"),
        (["segment", "*.nothing"], 2, "no images in"),
        (["segment", "x.jpg", "--model", "nope"], 1, "error: no bundle 'nope'"),
        (["segment", "x.jpg", "--provider", "cuda"], 1, "error: provider 'cuda' needs an NVIDIA GPU"),
        (["verify", "nope"], 1, "error: no bundle 'nope'"),
        (["nonsense"], 2, "error: unknown command 'nonsense'; choose one of segment, export"),
    ],
)
def test_how_wrong_usage_ends(arguments, code, message, tmp_path):
    done = diffseg(*arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(pictures, tmp_path):
    (tmp_path / "file").touch()
    done = diffseg("segment", pictures, "-o", tmp_path / "file")
    assert done.returncode == 1
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["segment", "x.jpg", "--silent"], "unknown option --silent; see diffseg segment --help"),
        (["segment", "-", "-"], "IMAGE: standard input (-) can be read only once; see diffseg segment --help"),
        (
            ["segment", "ftp://a/b.jpg"],
            "IMAGE: URLs must be http or https, found ftp://a/b.jpg; see diffseg segment --help",
        ),
        (
            ["segment", "x.jpg", "--ancors=3"],
            "unknown option --ancors; did you mean --anchors; see diffseg segment --help",
        ),
        (["segmnt"], "unknown command 'segmnt'; did you mean segment; see diffseg --help"),
        (["--quiet"], "unknown option --quiet; see diffseg --help"),
        (["info", "a", "b"], "unexpected argument b; see diffseg info --help"),
        (["info", "a", "b", "c"], "unexpected arguments b c; see diffseg info --help"),
        (["info", "--json=1"], "option --json takes no value; see diffseg info --help"),
        (["profile", "--compare", "a"], "option --compare needs 2 values; see diffseg profile --help"),
        (["segment", "x.jpg", "--threshold"], "option --threshold needs a value; see diffseg segment --help"),
        (
            ["segment", "x.jpg", "--threshold", "x"],
            "--threshold must be a number of at least 0, found 'x'; see diffseg segment --help",
        ),
        (
            ["segment", "x.jpg", "--anchors=1.5"],
            "--anchors must be a whole number of at least 1, found '1.5'; see diffseg segment --help",
        ),
        (
            ["segment", "x.jpg", "--fit", "cover"],
            "--fit must be one of stretch, crop, pad, found 'cover'; see diffseg segment --help",
        ),
        (
            ["segment", "x.jpg", "--format", "gif"],
            f"--format: formats must be some of {', '.join(FORMATS)}, found gif; see diffseg segment --help",
        ),
        (
            ["serve", "--port", "99999"],
            "--port must be a whole number from 0 to 65535, found '99999'; see diffseg serve --help",
        ),
        (
            ["verify", "tiny", "x.jpg"],
            "IMAGE: images are for --provider or --against; see diffseg verify --help",
        ),
    ],
)
def test_wrong_usage_is_one_line(arguments, line):
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_version():
    done = diffseg("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"diffseg {__version__}\n", "")


def test_no_command_shows_the_help():
    done = diffseg()
    assert done.returncode == 2
    assert "Usage:" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("file", "file is not a folder"),
        ("file/below/it", "file is not a folder"),
        ("link", "link is not a folder"),
    ],
)
def test_an_output_folder_is_checked_before_the_work(pictures, tmp_path, output, reason):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    done = diffseg("segment", pictures, "-o", output, "--model", "nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: cannot write to {output}: {reason}; choose another folder with -o\n"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "link", "pictures"}


@pytest.mark.parametrize("output", ["", "new", "new/below"])
def test_a_folder_without_permission(tmp_path, output, monkeypatch):
    """The tests may run as root, which ignores permissions, so the system's answer is replaced."""
    (tmp_path / "photo.jpg").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
    done = CliRunner().invoke(app, ["segment", str(tmp_path / "photo.jpg"), "-o", str(tmp_path / output)])
    assert done.exit_code == 1
    assert f"cannot write to {tmp_path / output}: {tmp_path} is not writable" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_console_without_an_arrow(pictures, tmp_path):
    run = [sys.executable, "-m", "diffseg", "segment", pictures, "-o", tmp_path / "out"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(run, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_verify(tmp_path):
    done = diffseg("verify", "tiny")
    assert done.returncode == 0
    assert "every file matches its recorded hash" in done.stdout
    folder = copy_models(tmp_path / "models") / "tiny"
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[1000] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    done = diffseg("verify", folder)
    assert done.returncode == 1
    assert "failed  unet.onnx: sha256" in done.stderr
    assert "ok      vae_encoder.onnx" in done.stdout


def test_verify_against_another_bundle(tmp_path, photo):
    pytest.importorskip("scipy", reason="needs the extra 'eval'")
    from PIL import Image

    image = tmp_path / "photo.png"
    Image.fromarray(photo).save(image)
    done = diffseg("verify", "tiny", image, "--against", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["images"]
    assert (found["image"], found["mask_iou"], found["adjusted_rand"]) == ("photo.png", 1, 1)
    assert found["outputs"][0]["name"] == "latent"
    assert all(output["cosine"] > 0.9999 for output in found["outputs"])
    done = diffseg("verify", "tiny", image, "--against", "tiny")
    assert "tiny and tiny, executed by cpu" in done.stdout
    done = diffseg("verify", "tiny", "--json")
    assert done.returncode == 2
    assert "--json: is for --against" in done.stderr


def test_info():
    done = diffseg("info")
    assert done.returncode == 0, done.stderr
    assert "embedded models: tiny" in done.stdout
    facts = json.loads(diffseg("info", "--json").stdout)
    assert facts["providers"]["cpu"] == ["yes", ""]
    assert facts["packages"]["numpy"][0] == np.__version__
    assert facts["loaded"] is None


def test_info_loads_a_bundle_into_a_provider(monkeypatch, capsys):
    assert "tiny was loaded by cpu on cpu" in diffseg("info", "--provider", "cpu").stdout
    done = diffseg("info", "tiny", "--provider", "cuda")
    if find_gpus().first is None:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: provider 'cuda' needs an NVIDIA GPU")
    facts = capabilities("tiny", "cpu")
    placement = {"unet": {"CUDAExecutionProvider": 5, "CPUExecutionProvider": 1}}
    placed = replace(facts, loaded=replace(facts.loaded, placement=placement))
    assert list(machine_tables(placed))[-1] == "unet: 5 nodes on CUDAExecutionProvider, 1 nodes on CPUExecutionProvider"


def test_every_command_explains_itself():
    commands = "segment export build inspect verify info evaluate profile"
    for command in ([], *([name] for name in commands.split())):
        done = diffseg(*command, "--help")
        assert done.returncode == 0
        assert "Usage: diffseg" in done.stdout or "Usage: python -m diffseg" in done.stdout


def test_help_uses_words_instead_of_the_framework_s_types():
    segment, export = (diffseg(command, "--help").stdout for command in ("segment", "export"))
    assert "[OPTIONS] IMAGE..." in segment
    assert "[OPTIONS] CHECKPOINT " in export
    assert "N (at least 1)" in segment
    assert "N (0 to 999)" in export
    assert "owner/name@revision" in " ".join(export.replace("│", " ").split())
    for text in (segment, export):
        assert not re.search(r"<|\{|range|list\[|x>=", text)


def test_folders_globs_and_files_expand_once_and_without_our_own_output(tmp_path):
    for name in ("b.JPG", "a.png", "a.labels.png", "a.overlay.png", "a.json"):
        (tmp_path / name).touch()
    assert [p.name for p in expand([str(tmp_path)])] == ["a.png", "b.JPG"]
    assert [p.name for p in expand([str(tmp_path / "*.JPG"), str(tmp_path), str(tmp_path / "a.png")])] == [
        "b.JPG",
        "a.png",
    ]
    assert [p.name for p in expand([str(tmp_path / "*.png")])] == ["a.png"]
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in expand([str(tmp_path)])] == ["a.png", "b.JPG"]
    (tmp_path / "odd[1].png").touch()
    assert [p.name for p in expand([str(tmp_path / "odd[1].png")])] == ["odd[1].png"]
    assert expand(["nope.jpg"]) == [Path("nope.jpg")]
