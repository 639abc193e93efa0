"""Paths, names and values that were made to break a command: each gets one line, and the others are not affected."""

import os
import shutil
import sys

import pytest
from diffseg.cli import app as cli
from diffseg.cli.sources import expand
from diffseg.cli.terminal import consoles
from diffseg.engines.bundle.bundle import write_manifest
from diffseg.engines.errors import ImageError
from diffseg.engines.examples import example_images
from diffseg.image import FORMATS, only_formats, read_image
from PIL import Image
from rich.table import Table

LONG = "x" * 300
NO_USER = "~nosuchuser/x"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
BAD_PATHS = [LONG, NO_USER, f"{LONG}/x", "/dev/null/x"]


def run(monkeypatch, capsys, *words):
    """Run a command in this process → exit status, output, errors."""
    monkeypatch.setattr(sys, "argv", ["diffseg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    streams = capsys.readouterr()
    return ended.value.code, streams.out, streams.err


@pytest.fixture
def hostile(tmp_path):
    """A pipe, an EPS and a file with a forged line in its name."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "eps.jpg").write_bytes(EPS)
    (folder / "a\nerror: forged\x1b[2J.png").write_bytes(b"no image")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders, and no such names")
def test_bad_images_do_not_end_the_batch(hostile, tmp_path, monkeypatch, capsys):
    good = shutil.copy(example_images()[0], hostile / "good.jpg")
    images = [*BAD_PATHS, hostile / "pipe.jpg", hostile, good]
    status, out, err = run(monkeypatch, capsys, "segment", *images, "-o", tmp_path / "out")
    assert status == 1
    model, *lines = err.splitlines()
    assert model == "model tiny, provider cpu"
    assert len(lines) == 4 + 1 + 2 + 1
    assert all(line.startswith("error: ") for line in lines[:-1])
    assert [line for line in lines if "pipe.jpg" in line] == [f"error: {hostile}/pipe.jpg: not a regular file"]
    assert any("eps.jpg: not an image" in line for line in lines)
    assert any(r"a\nerror: forged\x1b[2J.png: " in line for line in lines)
    assert lines[-1] == "7 of 8 images failed"
    assert "good.jpg →" in out
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders, and no such names")
def test_bad_images_do_not_end_a_run_of_many(hostile, tmp_path, monkeypatch, capsys):
    good = shutil.copy(example_images()[0], hostile / "good.jpg")
    words = ["batch", hostile, "-o", tmp_path / "out", "--local", "--format", "coco", "--anchors", 4]
    status, out, err = run(monkeypatch, capsys, *words)
    assert status == 0
    assert out.startswith("4 images, 3 with errors, in ")
    assert "Traceback" not in err
    for line in (*out.splitlines(), *err.splitlines()):
        assert not line.startswith("error: forged")
        assert "\x1b[2J" not in line
    (part,) = (tmp_path / "out").glob("run-*/part-*.json")
    assert good.name in part.read_text()


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize(
    "words",
    [
        ["segment", example_images()[0], "-o", "{out}", "--model", "{}"],
        ["verify", "{}"],
        ["inspect", "{}"],
        ["info", "{}"],
        ["profile", "{}"],
        ["profile", "tiny", "--html", "{}/report.html"],
        ["triton", "{}", "-o", "{out}"],
        ["triton", "tiny", "-o", "{}"],
        ["evaluate", "{}"],
        ["serve", "--model", "{}", "--port", "0"],
        ["batch", "{}", "-o", "{out}", "--local", "--format", "coco"],
        ["batch", example_images()[0], "-o", "{}", "--local", "--format", "coco"],
        ["batch", example_images()[0], "-o", "{out}", "--model", "{}", "--local", "--format", "coco"],
    ],
    ids=lambda words: " ".join(map(str, words[:1])) + str(words.index("{}") if "{}" in words else 0),
)
def test_a_bad_path_is_one_line(words, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(word).replace("{out}", str(tmp_path / "out")).replace("{}", path) for word in words]
    if path == NO_USER and words[2:4] == ["-o", NO_USER]:
        words[3] = "/dev/null/~x"  # else it is a folder like others
    status, _, err = run(monkeypatch, capsys, *words)
    assert status in {1, 2}
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_listed_fails_alone(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    assert expand([str(tmp_path / "closed"), "x.jpg"]) == [tmp_path / "closed", type(tmp_path)("x.jpg")]


def test_an_error_of_the_system_is_one_line(monkeypatch, capsys):
    def fail():
        raise PermissionError(13, "Permission denied", "a\nb")

    monkeypatch.setattr(cli, "command_line", lambda _: fail)
    assert run(monkeypatch, capsys) == (1, "", "error: a\\nb: Permission denied\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
def test_a_pipe_is_no_image(hostile):
    with pytest.raises(ImageError, match="pipe.jpg: not a regular file"):
        read_image(hostile / "pipe.jpg")


def test_the_command_line_decodes_what_the_server_decodes(photo, tmp_path, monkeypatch, capsys):
    Image.fromarray(photo).save(tmp_path / "x.jpg", "PCX")
    assert read_image(tmp_path / "x.jpg").size == (200, 120)
    with only_formats(FORMATS), pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").size == (200, 120)
    status, _, err = run(monkeypatch, capsys, "segment", tmp_path / "x.jpg", "-o", tmp_path)
    assert (status, "x.jpg: not an image" in err) == (1, True)


def test_a_name_stays_on_one_line(capsys):
    name = "a\nb\x1b[31m\u202e\u2028\udc80 \u3000é👩\u200d🔧"
    shown = "a\\nb\\x1b[31m\\u202e\\u2028\\udc80 \u3000é👩\u200d🔧"
    console, errors = consoles()
    table = Table("name", box=None)
    table.add_row(name)
    console.print(table)
    console.print(name)
    errors.print(f"error: {name}", style="red")
    out, err = capsys.readouterr()
    assert [line.strip() for line in out.splitlines()] == ["name", shown, shown]
    assert err == f"error: {shown}\n"


def test_a_name_in_wrong_usage_stays_on_one_line(monkeypatch, capsys):
    for words in (["x\nerror: forged"], ["segment", "x", "--provider", "a\x1b[2Jb"], ["verify", "no\nbundle"]):
        _, _, err = run(monkeypatch, capsys, *words)
        assert err.count("\n") == 1
        assert "\x1b" not in err


def test_verify_shows_foreign_names_on_one_line(fake_bundle, monkeypatch, capsys):
    write_manifest(fake_bundle.folder, fake_bundle.manifest)
    (fake_bundle.folder / "a\nok      b").touch()
    status, out, err = run(monkeypatch, capsys, "verify", fake_bundle.folder)
    assert status == 1
    assert "ok      b" not in out.splitlines() + err.splitlines()
    assert r"failed  a\nok      b: not in the manifest" in err.splitlines()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["segment", "x", "--threads", "99999"], "--threads must be a whole number from 1 to 1024, found '99999'"),
        (["profile", "tiny", "--threads", "99999"], "--threads must be a whole number from 1 to 1024, found '99999'"),
        (["serve", "--threads", "99999"], "--threads must be a whole number from 1 to 1024, found '99999'"),
        (["evaluate", "x", "--workers", "99999"], "--workers must be a whole number from 1 to 1024, found '99999'"),
        (["profile", "tiny", "--concurrency", "9999"], "--concurrency: at most 1024 threads are possible, found 9999"),
        (["serve", "--deadline", "inf"], "--deadline must be a number from 0.1 to 86400, found 'inf'"),
        (["serve", "--deadline", "nan"], "--deadline must be a number from 0.1 to 86400, found 'nan'"),
        (["serve", "--keep-seconds", "inf"], "--keep-seconds must be a number from 1 to 86400, found 'inf'"),
        (["serve", "--max-body", "inf"], "--max-body must be a number from 0.001 to 1024, found 'inf'"),
        (["serve", "--max-pixels", "inf"], "--max-pixels must be a number from 0.001 to 178, found 'inf'"),
    ],
)  # fmt: skip
def test_absurd_values_are_refused(words, line, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, *words)
    assert (status, err) == (2, f"error: {line}; see diffseg {words[0]} --help\n")
