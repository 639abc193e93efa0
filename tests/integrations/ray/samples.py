"""Forty images, some of them broken, and what a segmenter gives for each."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask

IMAGES = 40
BROKEN = (3, 13, 23, 33)
PATIENCE = 240  # seconds: only a test that fails waits for so long


def make_images(folder):
    """Large images, which take a worker some time, of few kilobytes. Returns their paths."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for i in range(IMAGES):
        paths.append(folder / f"{i:02d}.jpg")
        if i in BROKEN:
            paths[-1].write_bytes(b"" if i == BROKEN[0] else b"no image %d" % i)
            continue
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((1600 + i, 1200), Image.Resampling.NEAREST).save(paths[-1], quality=60)
    return paths


def labels_of(row):
    """The label map that a row describes; each pixel must be in exactly one segment."""
    size = [row["height"], row["width"]]
    labels = np.full(size, -1)
    for segment in row["segments"]:
        inside = mask.decode({"size": size, "counts": segment["counts"].encode()}).astype(bool)
        assert inside.sum() == segment["area"]
        assert (labels[inside] == -1).all()
        labels[inside] = segment["label"]
    assert (labels >= 0).all()
    return labels


def check_rows(rows, expected):
    """Each image exactly once; the rows equal what the segmenter gives, pixel for pixel."""
    assert sorted(row["key"] for row in rows) == sorted(map(str, expected))
    for row in rows:
        result = expected[Path(row["key"])]
        if result is None:
            assert row["error"]
            assert "\n" not in row["error"]
            assert row["segments"] is None
        else:
            assert row["error"] is None
            assert np.array_equal(labels_of(row), result.labels)
            boxes = [(s["label"], s["area"], tuple(s["bbox"])) for s in row["segments"]]
            assert boxes == [(s.label, s.area, s.bbox) for s in result.segments]
            assert json.loads(row["settings"])["anchors"] == result.settings.anchors


def command(*arguments, **options):
    """The command line in a process and session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffseg", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    """Wait for a command; return what it printed. It must succeed."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out + err


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.01)
    return found


def descendants(root):
    """Processes below `root`, as `{pid: command line}`."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, level = {}, {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found |= {pid: lines[pid] for pid in level}
    return found


def alive(pids):
    """Those of the processes that still run and are not merely waiting to be reaped."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.append(pid)
    return running


def kill(pid):
    os.kill(pid, 9)
