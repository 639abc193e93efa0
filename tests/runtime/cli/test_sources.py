"""Images from standard input and the web, what is printed where, and the completion of the shell."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import typer
from diffseg.cli import download as download_module
from diffseg.cli.app import app
from diffseg.cli.download import download, read_bounded
from diffseg.cli.sources import Download, StandardInput, sources
from diffseg.engines.errors import ImageError
from diffseg.image import read_image
from diffseg.segmenter import Segmenter
from PIL import Image
from typer.testing import CliRunner

from tests.runtime.doubles import LendingNetwork


def png(photo):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def web(photo):
    """Base URL of a server that has an image, and every trouble."""
    body = png(photo)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            match self.path.split("/")[1:]:
                case ["photo.png"]:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(body)
                case ["page"]:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(b"<html>no image</html>")
                case ["moved"]:
                    self.to("/photo.png")
                case ["around"]:
                    self.to("/around")
                case ["ftp"]:
                    self.to("ftp://127.0.0.1/a.png")
                case ["silent"]:
                    released.wait(10)
                case _:
                    self.send_error(404, "Not Here")

        def to(self, where):
            self.send_response(302)
            self.send_header("Location", where)
            self.end_headers()

        def log_message(self, *_):
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fake(fake_bundle, monkeypatch):
    """The command line on a network without weights."""
    made = []

    def load(*_, **options):
        made.append(options)
        return Segmenter(fake_bundle, LendingNetwork())

    monkeypatch.setattr(Segmenter, "load", load)
    return made


def test_an_image_on_the_web_is_read(web, photo):
    for url in (f"{web}/photo.png", f"{web}/moved"):
        np.testing.assert_array_equal(np.asarray(read_image(Download(url))), photo)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone", "cannot be downloaded (the server answered 404 Not Here)"),
        ("/around", "cannot be downloaded (the server answered 302"),
        ("/ftp", "cannot be downloaded (redirected to ftp://127.0.0.1/a.png, which is neither http nor https)"),
        ("/page", "not an image ("),
        ("/silent", "cannot be downloaded (timed out)"),
    ],
)
def test_each_trouble_of_the_web_is_one_line(web, path, message, monkeypatch):
    monkeypatch.setattr(download_module, "SILENCE", 0.3)
    with pytest.raises(ImageError) as caught:
        read_image(Download(web + path))
    assert str(caught.value).startswith(f"{web}{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://[bad/a.png", "http://a b/c.png", "file:///etc/passwd"]
)
def test_what_cannot_be_reached(url):
    with pytest.raises(ImageError, match="cannot be downloaded") as caught:
        download(url)
    assert "\n" not in str(caught.value)


def test_downloads_are_bounded(web, monkeypatch):
    monkeypatch.setattr(download_module, "MOST_BYTES", 100)
    with pytest.raises(ImageError, match=r"photo\.png: more than 0 MiB; scale the image down first"):
        download(f"{web}/photo.png")
    with pytest.raises(ImageError, match="x: not downloaded within -1 s"):
        read_bounded(io.BytesIO(b"x"), "x", seconds=-1)
    assert read_bounded(io.BytesIO(b"x" * 100), "x") == b"x" * 100


def test_arguments_are_files_the_web_and_standard_input(tmp_path):
    (tmp_path / "a.png").touch()
    found = sources(["-", "HTTPS://example.org/b.jpg", str(tmp_path), str(tmp_path / "a.png"), "https://example.org/"])
    assert [type(source) for source, _ in found] == [StandardInput, Download, type(tmp_path), Download]
    assert [name for _, name in found] == ["stdin", "b.jpg", "a.png", "example.org"]
    with pytest.raises(typer.BadParameter, match="http or https, found ftp://a"):
        sources(["ftp://a/b.png"])


@pytest.mark.parametrize("path", ["%2e%2e%2fup.png", "a%00b.png", "a%5Cb.png", "x" * 500 + ".png", ".."])
def test_a_url_never_names_a_file_elsewhere(path):
    name = Download(f"https://example.org/{path}").file_name
    assert Path(name).name == name
    assert len(name) <= 100
    assert not set(name) & set("/\\\0")


def test_results_go_to_standard_output_and_the_rest_to_standard_error(fake, web, photo, tmp_path):
    (tmp_path / "a.png").write_bytes(png(photo))
    arguments = ["segment", "-", f"{web}/photo.png", str(tmp_path / "a.png"), "none.png", "-o", str(tmp_path / "out")]
    plain = CliRunner().invoke(app, arguments, input=png(photo))
    assert plain.exit_code == 1
    assert [line.partition(" ")[0] for line in plain.stdout.splitlines()] == [
        "-",
        f"{web}/photo.png",
        str(tmp_path / "a.png"),
    ]
    assert plain.stderr.splitlines() == [
        "model fake, provider double",
        "error: none.png: no such file",
        "1 of 4 images failed",
    ]
    assert {p.name for p in (tmp_path / "out").glob("*.json")} == {"stdin.json", "photo.png.json", "a.png.json"}
    written = json.loads((tmp_path / "out" / "photo.png.json").read_text())
    assert written["origin"]["source"] == f"{web}/photo.png"

    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet"], input=png(photo))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["origin"]["source"] for line in lines] == [
        "-",
        f"{web}/photo.png",
        str(tmp_path / "a.png"),
        "none.png",
    ]
    assert lines[1]["segments"] == written["segments"]
    assert lines[-1]["error"] == "none.png: no such file"
    assert "model fake" not in done.stderr
    assert "none.png: no such file" in done.stderr

    quiet = CliRunner().invoke(app, ["segment", "-q", "-m", "mine", "-", "-o", str(tmp_path / "out")], input=png(photo))
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_verbose_tells_of_stages_and_of_the_choice_of_the_provider(fake, photo, tmp_path):
    logger = logging.getLogger("diffseg")
    before, level = list(logger.handlers), logger.level
    try:
        done = CliRunner().invoke(app, ["segment", "-", "-v", "-o", str(tmp_path)], input=png(photo))
        assert logger.level == logging.INFO
        assert len(logger.handlers) == len(before) + 1
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)
    assert "decode " in done.stderr
    assert " ms" in done.stderr


def test_videos_and_documents_are_one_line_each(fake, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(99))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7 " + bytes(99))
    done = CliRunner().invoke(app, ["segment", str(tmp_path / "a.mp4"), str(tmp_path / "b.pdf"), "-o", str(tmp_path)])
    assert done.stderr.splitlines()[1:3] == [
        f"error: {tmp_path / 'a.mp4'}: a video; extract its frames as images first",
        f"error: {tmp_path / 'b.pdf'}: a PDF; convert its pages to images first",
    ]


def test_the_json_names_where_masks_come_from(fake_bundle, photo, tmp_path):
    (tmp_path / "a.png").write_bytes(png(photo))
    segmenter = Segmenter(fake_bundle, LendingNetwork())
    result = segmenter(tmp_path / "a.png", fit="pad", keep_attention=True)
    origin = result.to_dict()["origin"]
    assert origin["source"] == str(tmp_path / "a.png")
    assert (origin["bundle"], origin["provider"], origin["fit"]) == ("fake", "double", "pad")
    manifest = (fake_bundle.folder / "manifest.json").read_bytes()
    assert origin["bundle_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert result.resegment(2.0).origin == result.origin
    assert segmenter(photo).origin.source is None


@pytest.mark.parametrize(("words", "completed"), [("diffseg seg", "segment"), ("diffseg segment --thr", "--threshold")])
def test_the_shell_completes(words, completed):
    environment = os.environ | {
        "_DIFFSEG_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "from diffseg.cli.app import app; app(prog_name='diffseg')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment, encoding="utf-8"
    )
    assert completed in done.stdout.split(), done.stderr
