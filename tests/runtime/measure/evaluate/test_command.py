"""The command `diffseg evaluate`."""

import json
import signal
import subprocess
import sys
import time

import pytest
from diffseg.measure.evaluate.results import locked

from tests.commands import diffseg


def test_a_table_and_two_reports(labelled, tmp_path):
    out = tmp_path / "out"
    arguments = ["evaluate", labelled, "--limit", 2, "--methods", "diffseg,colour", "-o", out, "--html", out / "a.html"]
    done = diffseg(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "labelled (2)" in done.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["protocol"] == "paper"
    for score in report["datasets"][0]["scores"].values():
        assert score["images"] == 2
        assert f"{score['covering']:.3f}" in done.stdout
    assert "<!doctype html>" in (out / "a.html").read_text(encoding="utf-8")
    assert not (out / "report.html").exists()


def test_failed_images_are_listed_and_the_others_evaluated(labelled, tmp_path):
    (labelled / "images" / "photo0.png").write_bytes(b"")
    done = diffseg("evaluate", labelled, "--methods", "colour", "--protocol", "full", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "photo0.png: an empty file" in done.stderr
    assert "1 of 3 images failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "labelled (2)" in done.stdout


def test_ctrl_c_leaves_a_run_that_goes_on(labelled, tmp_path):
    for number in range(3, 20):
        for kind in ("images", "labels"):
            (labelled / kind / f"photo{number}.png").write_bytes((labelled / kind / "photo0.png").read_bytes())
            # contents differ, else they would be found as done
            with (labelled / kind / f"photo{number}.png").open("ab") as stream:
                stream.write(str(number).encode())
    out = tmp_path / "out"
    # a job in a shell's background starts with Ctrl-C ignored, and so would the test
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); from diffseg.cli.app import main; main()"
    run = [sys.executable, "-c", code, "evaluate", labelled, "--methods", "superpixels", "-o", out]
    with subprocess.Popen([str(a) for a in run], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(p.stat().st_size for p in (out / "results").glob("*.jsonl")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    (kept,) = (out / "results").glob("*.jsonl")
    lines = kept.read_text().splitlines()
    assert 0 < len(lines) < 20
    done = diffseg("evaluate", labelled, "--methods", "superpixels", "-o", out)
    assert done.returncode == 0, done.stderr
    after = kept.read_text().splitlines()
    assert after[: len(lines)] == lines
    assert len(after) == 20


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate"], 2, "error: missing argument DATASET; see diffseg evaluate --help\n"),
        (["evaluate", "none"], 1, "error: none: no such folder"),
        (["evaluate", "."], 1, "unknown layout"),
        (["evaluate", ".", "--layout", "coco-stuff"], 1, "val2017.zip"),
        (["evaluate", ".", "--layout", "cityscapes"], 1, "leftImg8bit_trainvaltest.zip"),
        (["evaluate", ".", "--methods", "magic"], 2, "methods must be some of"),
        (["evaluate", ".", "--thresholds", "1:0"], 2, "FIRST:LAST:STEP"),
        (["evaluate", ".", "--protocol", "half"], 2, "--protocol"),
        (["evaluate", ".", "--limit", "0"], 2, "--limit"),
    ],
)
def test_how_wrong_usage_ends(arguments, code, message, tmp_path):
    done = diffseg(*arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written(labelled, tmp_path):
    (tmp_path / "file").touch()
    options = ["--methods", "colour", "--limit", 1, "-o", tmp_path / "out", "--json", tmp_path / "file" / "x.json"]
    done = diffseg("evaluate", labelled, *options)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_do_not_share_a_folder_of_results(labelled, tmp_path):
    run = ["evaluate", labelled, "--methods", "colour", "--limit", 1, "-o", tmp_path / "out"]
    with locked(tmp_path / "out" / "results"):
        done = diffseg(*run)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: another run stores its results in {tmp_path / 'out' / 'results'}; wait for it, or choose another "
        "folder with -o\n"
    )
    assert not list((tmp_path / "out" / "results").glob("*.jsonl"))
    assert diffseg(*run).returncode == 0  # the lock is gone with its run
