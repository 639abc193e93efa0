"""Every command and every line of Python in the README and the pages of docs/ runs as it is written."""

import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from diffseg.engines.examples import example_images
from PIL import Image

from tests.models import copy_models

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
CHECKED_ELSEWHERE = {
    "docs/containers.md": "test_containers.py checks its commands, which need an engine of containers",
    "docs/cvat.md": "integrations/cvat runs its functions in CVAT's agent",
    "docs/fiftyone.md": "integrations/fiftyone loads its model and its source",
    "docs/label-studio.md": "integrations/label_studio connects the server to a Label Studio",
    "docs/edge.md": "test_containers.py checks its commands, which need a device",
    "docs/triton.md": "runtime/serving/triton/test_docs.py runs its commands",
}
ELSEWHERE = {
    "scripts/demo": "CI runs it",
    "scripts/test": "is this run",  # and scripts/test_integrations
    "pip install": "needs the network; scripts/demo installs",
    "trtexec": "comes with TensorRT, and needs a GPU",
    "diffseg batch photos -o masks --workers": "needs Ray; tests/integrations/ray/test_batch.py runs it",
    "diffseg batch 's3://": "needs an object store; tests/integrations/ray/test_object_store.py plays one",
    "serve run": "needs Ray Serve; tests/integrations/ray/test_serve.py deploys the file",
    "docker": "needs an engine of containers; scripts/release/container_check builds and runs the image without one",
}

BUILD_IN_A_COPY = """
from pathlib import Path
from diffseg.engines.bundle import bundle
bundle.MODELS = Path("models").resolve()
from diffseg.cli.app import main
main()
"""
PORT = "8000"
PATIENCE = 120


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


COMMANDS = [
    (page, line.partition("#")[0].strip())
    for page in PAGES
    if page not in CHECKED_ELSEWHERE
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.partition("#")[0].strip()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that the pages mention: photo.jpg, photos/, labelled/, and a checkpoint to export."""
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photo.jpg").write_bytes(example_images()[0].read_bytes())
    (tmp_path / "photos" / "other.jpg").write_bytes(example_images()[1].read_bytes())
    for kind in ("images", "labels"):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
    (tmp_path / "labelled" / "images" / "photo.jpg").write_bytes(example_images()[0].read_bytes())
    with Image.open(example_images()[0]) as image:
        truth = np.arange(image.width * image.height, dtype=np.int64).reshape(image.height, image.width)
    Image.fromarray((truth > truth.size // 2).astype(np.uint8)).save(tmp_path / "labelled" / "labels" / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def serving(arguments, place):
    """The server of a page, on a free port. It must stop without an error."""
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    run = [sys.executable, "-m", "diffseg", *(word.replace(PORT, "0") for word in arguments)]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            yield next(m[1] for line in process.stderr if (m := re.search(r"running on http://\S+:(\d+)", line)))
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        finally:
            timer.cancel()
            process.kill()
    assert process.returncode == 0


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in COMMANDS if c.startswith("diffseg serve")])
def test_the_server_and_what_it_is_asked(page, command, place):
    asked = [c for p, c in COMMANDS if p == page and c.startswith("curl")]
    assert asked
    with serving(shlex.split(command)[1:], place) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/")
        assert b"Choose images" in connection.getresponse().read()
        connection.close()
        for line in asked if shutil.which("curl") else ():
            words = ["curl", "--fail", "--silent", *shlex.split(line.replace(PORT, port))[1:]]
            subprocess.run(words, check=True, cwd=place)
            assert (place / words[words.index("-o") + 1]).stat().st_size > 100


SERVER = ("diffseg serve", "curl")


def test_every_request_has_a_server_on_its_page():
    pages = {kind: {p for p, c in COMMANDS if c.startswith(kind)} for kind in SERVER}
    assert pages["curl"]
    assert pages["curl"] <= pages["diffseg serve"]


def exports(page):
    """The bundles that a page exports, with the arguments of the command."""
    lines = [shlex.split(c)[1:] for p, c in COMMANDS if p == page and c.startswith("diffseg export") and " -o " in c]
    return {words[words.index("-o") + 1]: words for words in lines}


def export(arguments, place):
    """Make the checkpoint that `diffseg export` is given, and return the command with a size that takes seconds."""
    pytest.importorskip("torch", reason="needs the extra 'export'")
    maker = [sys.executable, ROOT / "scripts" / "make_checkpoint.py", "bk-sdm-tiny", arguments[1], "--small"]
    subprocess.run(maker, check=True, capture_output=True, cwd=place)
    return [sys.executable, "-m", "diffseg", *arguments, "--size", "64"]


@pytest.mark.parametrize(
    ("page", "command"),
    [
        pytest.param(page, command, marks=[] if page == "README.md" else pytest.mark.integration)
        for page, command in COMMANDS
        if not command.startswith((*ELSEWHERE, *SERVER))
    ],
)
def test_command(page, command, place):
    words = shlex.split(command)
    settings = dict(words.pop(0).split("=") for _ in takewhile(lambda word: "=" in word, list(words)))
    program, *arguments = words
    if program == "diffseg":
        run = [sys.executable, "-m", "diffseg", *arguments]
        if arguments[0] == "build":
            pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
            copy_models(place / "models")  # the plan goes into the bundle
            run = [sys.executable, "-c", BUILD_IN_A_COPY, *arguments]
        exported = exports(page).get(arguments[arguments.index("--model") + 1]) if "--model" in arguments else None
        if exported:  # the page exports the bundle that this command takes
            subprocess.run(export(exported, place), check=True, capture_output=True, cwd=place)
        if arguments[0] == "export":
            run = export(arguments, place)
        elif arguments[0] == "profile":
            run += ["--runs", "1", "--warmup", "0", "--starts", "0"]
    elif program == "polygraphy":
        pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
        copy_models(place / "models")
        (place / "models" / "tiny").rename(place / "bundle")
        run = [Path(sys.executable).with_name(program), *arguments]
    else:
        assert program == "python", f"nothing runs {command!r}"
        script, *rest = arguments
        assert (ROOT / script).is_file()
        run = [sys.executable, ROOT / script, *rest]
        if script != "scripts/make_checkpoint.py":
            run = [sys.executable, ROOT / script, "--help"]  # a measurement: that it starts is all that is checked
        else:
            run.append("--small")
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, cwd=place, env=os.environ | {"COLUMNS": "200"} | settings
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if p not in CHECKED_ELSEWHERE and blocks(p, "python")])
def test_python(page, place):
    names = {}  # later blocks use what earlier ones made, as a reader would
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)  # noqa: S102 - our own page
    assert (place / "masks.png").is_file()


def test_the_readme_shows_python():
    assert blocks("README.md", "python")


def test_the_set_up_is_two_commands():
    assert {"scripts/demo", "scripts/test"} <= {command for page, command in COMMANDS if page == "README.md"}


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) <= 800


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target
