"""Commands that are killed while they write, or whose disk is full: nothing is lost, and the next run is clean.

HOSTILE_ROUNDS sets how many moments are tried per command, 1 by default. From 5 on, it kills `export` and `build`, too.
"""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from diffseg.engines.bundle.bundle import open_bundle
from diffseg.engines.examples import example_images
from diffseg.engines.files import TEMPORARY
from diffseg.image import read_image

from tests.commands import diffseg
from tests.runtime.measure.evaluate.conftest import labelled

__all__ = ["labelled"]
pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")]
ROUNDS = int(os.environ.get("HOSTILE_ROUNDS", "1"))
LONG = pytest.mark.skipif(ROUNDS < 5, reason="takes minutes: set HOSTILE_ROUNDS=5")
DELAYS = (0.0, 0.0, 0.001, 0.02, 0.1)  # seconds


def killed(folder, step, seconds, words):
    run = [sys.executable, "-m", "tests.hostile.killed", folder, step, seconds, *words]
    return subprocess.run([str(word) for word in run], capture_output=True, text=True, check=False)


def files(folder):
    """Paths below a folder → contents."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def temporary(folder):
    return [path.name for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]


def moments(tmp_path, words, seed):
    """Yield after each kill, with the folder of a whole run and the one of this run; then run it again to its end."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    whole = tmp_path / "whole"
    whole.mkdir()
    done = killed(whole, 0, 0, words(whole / "out"))
    assert done.returncode == 0, done.stderr
    steps = int(done.stderr.splitlines()[-1])
    assert steps > 2
    kills = 0
    for turn in range(ROUNDS):
        folder = tmp_path / f"turn{turn}"
        folder.mkdir()
        step = rng.randint(1, steps)
        run = killed(folder, step, rng.choice(DELAYS), words(folder / "out"))
        kills += run.returncode == -9
        assert run.returncode in (-9, 0), run.stderr
        yield whole / "out", folder / "out"
        again = diffseg(*words(folder / "out"))
        assert again.returncode == 0, again.stderr
        assert temporary(folder) == []
        assert set(files(folder / "out")) == set(files(whole / "out"))
    assert kills


def test_segment(tmp_path):
    images = [tmp_path / f"photo{i}.png" for i in range(2)]
    for number, path in enumerate(images):
        read_image(example_images()[number]).resize((90, 60)).save(path)
    for whole, out in moments(tmp_path, lambda out: ["segment", *images, "-o", out, "--provider", "cpu"], 1):
        expected = files(whole)
        for name, data in files(out).items() if out.exists() else ():
            if TEMPORARY.fullmatch(name):
                continue
            if name.endswith(".json"):
                assert json.loads(data)["segments"] == json.loads(expected[name])["segments"]
            else:
                assert data == expected[name], name
    for path in images:
        assert read_image(path).size == (90, 60)


def test_triton(tmp_path):
    before = files(open_bundle("tiny").folder)
    for whole, out in moments(tmp_path, lambda out: ["triton", "tiny", "-o", out], 2):
        if out.exists():
            assert set(files(out)) == set(files(whole))
    assert files(open_bundle("tiny").folder) == before


def test_evaluate(labelled, tmp_path):
    before = files(labelled)
    words = ["evaluate", labelled, "--methods", "colour"]
    for _, out in moments(tmp_path, lambda out: [*words, "-o", out], 3):
        for path in out.rglob("*.jsonl"):
            *whole, _ = path.read_text(encoding="utf-8").split("\n")  # the last one may be cut off
            assert all(json.loads(line) for line in whole)
    for report in tmp_path.rglob("report.json"):
        assert json.loads(report.read_text(encoding="utf-8"))["datasets"][0]["scores"]["colour"]["images"] == 3
    assert files(labelled) == before


@pytest.mark.parametrize("kind", ["webdataset", "coco"])
def test_batch(kind, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        read_image(example_images()[number % 2]).resize((60 + number, 40)).save(photos / f"{number}.png")
    before = files(photos)
    words = ["batch", photos, "--local", "--format", kind, "--images-per-file", "1", "--labels", "--provider", "cpu"]
    expected = {}
    for whole, out in moments(tmp_path, lambda out: [*words, "-o", out], 6):
        expected = files(whole)
        assert len([name for name in expected if "/part-" in name]) >= 2
        for name, data in files(out).items() if out.exists() else ():
            assert TEMPORARY.fullmatch(name.rpartition("/")[2]) or data == expected[name], name
    for turn in range(ROUNDS):  # each image once, whatever was done before the kill
        assert files(tmp_path / f"turn{turn}" / "out") == expected
    assert files(photos) == before


@LONG
def test_export(tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'export'")
    checkpoint = tmp_path / "checkpoint"
    make = [sys.executable, "scripts/make_checkpoint.py", "bk-sdm-tiny", str(checkpoint), "--small"]
    subprocess.run(make, check=True, capture_output=True)
    words = ["export", checkpoint, "--size", "64", "--max-batch", "1"]
    for _, out in moments(tmp_path, lambda out: [*words, "-o", out], 4):
        if out.exists():
            assert diffseg("verify", out).returncode == 0


@LONG
def test_build(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
    from tests.engines.toy import make_toy

    toy = make_toy(tmp_path / "toy").folder
    os.environ["DIFFSEG_CACHE"] = str(tmp_path / "cache")

    def words(out):
        if not out.exists():
            shutil.copytree(toy, out)
        return ["build", out, "--engine", "tensorrt-rtx", "--compute-capability", "8.9", "--force"]

    for _, out in moments(tmp_path, words, 5):
        assert {name: data for name, data in files(out).items() if "plans" not in name} == files(toy)
        assert diffseg("verify", out).returncode == 0


@pytest.mark.parametrize(
    ("command", "limit"), [("segment", 3000), ("triton", 20_000), ("evaluate", 0), ("evaluate", 3000)]
)
def test_a_full_disk(command, limit, labelled, tmp_path):
    """Files can't grow beyond a limit, as on a full disk: one line, no traceback, and nothing half-written."""
    photo = shutil.copy(example_images()[0], tmp_path / "photo.jpg")
    out = tmp_path / "out"
    words = {
        "segment": ["segment", photo, "-o", out, "--provider", "cpu"],
        "triton": ["triton", "tiny", "-o", out],
        "evaluate": ["evaluate", labelled, "--methods", "colour", "-o", out],
    }[command]
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from diffseg.cli.app import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "Traceback" not in run.stderr
    if run.returncode == 0:
        assert limit
        return
    assert run.returncode == 1
    assert any(line.startswith("error: ") for line in run.stderr.splitlines()), run.stderr
    assert temporary(tmp_path) == []
    if command == "triton":
        assert not out.exists()
    for name, data in files(out).items() if out.exists() else ():
        if name.endswith((".json", ".jsonl")):
            assert all(json.loads(line) for line in data.decode().splitlines() if name.endswith("l"))
        if name.endswith(".png"):
            read_image(out / name)
