"""The base image's digest, asked of a registry that stands in for Docker's, with its tokens."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
INDEX = "application/vnd.oci.image.index.v1+json"
BODY = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def registry():
    """A registry of one image, which gives tokens and asks for them; `facts` says how it answers."""
    facts = SimpleNamespace(body=BODY, kind=INDEX, digest=DIGEST, tokens=True, seen=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            facts.seen.append(self.path)
            if url.path == "/token":
                asked = parse_qs(url.query)
                good = asked == {"service": ["stand-in"], "scope": ["repository:library/python:pull"]}
                self.answer(200 if good else 400, json.dumps({"token": "open sesame"}).encode())
            elif facts.tokens and self.headers.get("Authorization") != "Bearer open sesame":
                challenge = (
                    f'Bearer realm="{facts.url}/token",service="stand-in",scope="repository:library/python:pull"'
                )
                self.answer(401, b"{}", **{"WWW-Authenticate": challenge})
            elif url.path != "/v2/library/python/manifests/3.13-slim-trixie" or INDEX not in self.headers["Accept"]:
                self.answer(404, b"{}")
            else:
                self.answer(200, facts.body, **{"Content-Type": facts.kind, "Docker-Content-Digest": facts.digest})

        def answer(self, status, body, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    facts.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    yield facts
    server.shutdown()
    server.server_close()


@pytest.fixture
def pin(registry, tmp_path):
    """Run the script on a copy of the Dockerfile; the copy, and what came of it."""
    copy = tmp_path / "Dockerfile"
    copy.write_text((ROOT / "Dockerfile").read_text())

    def run(*words):
        script = ROOT / "scripts" / "release" / "pin_base.py"
        command = [sys.executable, script, "--registry", registry.url, "--dockerfile", copy, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return SimpleNamespace(run=run, file=copy)


def test_the_digest_is_written_and_nothing_else_changes(pin, registry):
    before = pin.file.read_text()
    done = pin.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"python:3.13-slim-trixie is now {DIGEST}\n"
    after = pin.file.read_text()
    assert f"\nARG BASE=python:3.13-slim-trixie@{DIGEST}\n" in after
    assert [line for line in after.splitlines() if not line.startswith("ARG BASE=")] == [
        line for line in before.splitlines() if not line.startswith("ARG BASE=")
    ]
    assert len(registry.seen) == 3  # refused, the token, and the answer
    again = pin.run("--check")
    assert (again.returncode, again.stdout) == (0, f"python:3.13-slim-trixie is still {DIGEST}\n")


def test_a_registry_without_tokens(pin, registry):
    registry.tokens = False
    assert pin.run().returncode == 0
    assert DIGEST in pin.file.read_text()


def test_a_digest_without_one_before(pin):
    pin.file.write_text(re.sub(r"@sha256:\w+", "", pin.file.read_text()))
    assert pin.run().returncode == 0
    assert f"\nARG BASE=python:3.13-slim-trixie@{DIGEST}\n" in pin.file.read_text()


@pytest.mark.parametrize(
    ("facts", "words", "message"),
    [
        ({}, ["--check"], f"is {DIGEST} now, and sha256:"),
        ({"digest": "sha256:" + "0" * 64}, [], "but what it sent is"),
        ({"kind": "application/vnd.oci.image.manifest.v1+json"}, [], "not a list of images"),
        ({"tokens": False}, ["--registry", "http://127.0.0.1:1"], "does not tell the digest"),
    ],
)
def test_what_is_not_written(pin, registry, facts, words, message):
    vars(registry).update(facts)
    before = pin.file.read_text()
    done = pin.run(*words)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pin.file.read_text() == before


def test_a_tag_that_is_gone(pin):
    pin.file.write_text("ARG BASE=python:0.9-slim\n")
    done = pin.run()
    assert done.returncode == 1
    assert "HTTP Error 404" in done.stderr
    pin.file.write_text("FROM scratch\n")
    assert "has no line ARG BASE" in pin.run().stderr
