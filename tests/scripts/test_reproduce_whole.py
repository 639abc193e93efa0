"""The tables of the papers from a checkpoint to the end, interrupted once, with a small random checkpoint."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="needs the extra 'export'")

from diffseg.engines.bundle.bundle import Bundle
from diffseg.measure.evaluate.results import Record

from tests.layouts import make_ade20k, make_cityscapes, make_coco, make_context, make_voc

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process"),
]

SCRIPTS = Path(__file__).parents[2] / "scripts"
PATIENCE = 3600
FIRST = "diffseg-coco-stuff-diffseg-512"
ROWS = {
    "diffseg": ["DiffSeg-320", "DiffSeg-512", "K-Means-C", "K-Means-S"],
    "diffcut": ["DiffCut", "DiffCut + PAMR", "DiffSeg-512", "DiffSeg-512 + PAMR"],
}


def run(words, watch=None):
    """Run the command and return its exit status and output; `watch` is called with the process and each line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it, and so its child
    command = [sys.executable, SCRIPTS / "reproduce", *words]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                lines.append(line)
                if watch is not None:
                    watch(process, line)
        finally:
            timer.cancel()
    return process.returncode, "".join(lines)


def stored(folder):
    """Lines of the stored results, by file."""
    return {path.name: path.read_text().splitlines() for path in (folder / "results").glob("*.jsonl")}


def test_from_a_checkpoint_to_the_tables(tmp_path):
    checkpoint, out = tmp_path / "sd", tmp_path / "out"
    subprocess.run([sys.executable, SCRIPTS / "make_checkpoint.py", "sd15", checkpoint, "--small"], check=True)
    words = [checkpoint, "--provider", "cpu", "-o", out]
    for make in (make_coco, make_cityscapes, make_voc, make_context, make_ade20k):
        name = make.__name__.removeprefix("make_")
        words += [f"--{name}", make(tmp_path / "data" / name)]

    def interrupt(process, line):
        if line.startswith("diffseg-cityscapes-diffseg-512"):  # the one after the first
            process.send_signal(signal.SIGINT)

    status, text = run(words, interrupt)
    assert status == 130, text
    assert "run the same command again to continue" in text
    assert FIRST in text
    before = stored(out)
    assert sum(map(len, before.values())) >= 6  # two images with three methods
    exported = {path: path.stat().st_mtime_ns for path in (out / "bundles").glob("*/manifest.json")}
    assert [path.parent.name for path in exported] == ["diffseg-512"]

    status, text = run(words)
    assert status == 0, text
    assert "bundles/diffseg-512" not in text.replace(str(out), "")  # it was not exported again
    assert all(path.stat().st_mtime_ns == time for path, time in exported.items())
    after = stored(out)
    for name, lines in before.items():
        assert after[name][: len(lines)] == lines
        images = [Record.from_dict(json.loads(line)).image for line in after[name]]
        contents = [json.loads(line)["content"] for line in after[name]]
        assert len(contents) == len(set(contents)), images  # no image was evaluated twice

    found = json.loads((out / "tables.json").read_text())
    assert not found["limited"]
    tables = {}
    for row in found["rows"]:
        tables.setdefault((row["table"], row["dataset"]), []).append(row)
    assert len(tables) == 8
    for (table, _), rows in tables.items():
        assert sorted(row["method"] for row in rows) == ROWS[table]
        assert all((row["images"], row["failed"]) == (2, 0) for row in rows)
        assert all(0 < row["miou"] <= 1 for row in rows)
    for name, size in (("diffseg-512", 512), ("diffseg-320", 320), ("diffcut", 1024)):
        manifest = Bundle.open(out / "bundles" / name).manifest
        assert manifest.image_size == (size, size)
    assert manifest.timestep == 50
    assert (out / "tables.md").read_text().count("| DiffSeg-512 |") == 8
    again = (out / "tables.md").read_bytes()
    assert run(words)[0] == 0
    assert (out / "tables.md").read_bytes() == again
