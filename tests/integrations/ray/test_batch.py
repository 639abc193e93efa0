"""`diffseg batch` with a Ray of its own: whole, with a worker killed, and with the driver killed."""

import re

import pyarrow.parquet as pq
import pytest

from tests.integrations.ray.samples import alive, check_rows, command, descendants, finish, kill, until


@pytest.fixture
def start(bundle, images, tmp_path):
    """Start the command; one image per file, so that a kill in mid-job finds some done and some not."""

    def begin(*options):
        words = ("-o", tmp_path / "out", "--model", bundle, "--provider", "cpu", "--images-per-file", 1)
        return command("batch", images[0].parent, *words, "--workers", 2, *options)

    return begin


def parts(folder):
    return sorted(folder.glob("run-*/part-*"))


def rows_of(folder):
    """All rows. Reading them fails if a file is torn; nothing else may be left beside them."""
    (run,) = folder.iterdir()
    names = {path.name for path in run.iterdir()}
    assert {name for name in names if not name.startswith("part-")} == {"_run.json"}
    return [row for path in parts(folder) for row in pq.read_table(path).to_pylist()]


def test_rows_equal_the_segmenters_and_a_second_start_does_nothing(start, expected, tmp_path):
    process = start()
    ray = until(lambda: [pid for pid, line in descendants(process.pid).items() if "raylet" in line], "a raylet")
    printed = finish(process)
    assert re.search(r"40 images, 4 with errors, in [\d.]+ s \([\d.]+ images/s with 2 workers\)", printed)
    assert "2 workers with 1 thread each" in printed
    check_rows(rows_of(tmp_path / "out"), expected)
    until(lambda: not alive(ray), "the end of Ray")
    before = {path: path.stat().st_mtime_ns for path in parts(tmp_path / "out")}
    assert f"files done: {len(before)}, left: 0" in finish(start())
    assert {path: path.stat().st_mtime_ns for path in parts(tmp_path / "out")} == before


def test_a_killed_worker_loses_nothing(start, expected, tmp_path):
    process = start()
    until(lambda: len(parts(tmp_path / "out")) >= 3, "some files")
    workers = [pid for pid, line in descendants(process.pid).items() if "ray::MapWorker" in line]
    assert workers
    assert len(parts(tmp_path / "out")) < 20, "the job was over before the kill"
    kill(workers[0])
    finish(process)
    check_rows(rows_of(tmp_path / "out"), expected)


def test_a_killed_driver_is_started_again_and_goes_on(start, expected, tmp_path):
    process = start()
    until(lambda: len(parts(tmp_path / "out")) >= 3, "some files")
    below = list(descendants(process.pid))
    kill(process.pid)
    process.communicate()
    until(lambda: not alive(below), "the end of the processes below the driver")
    done = {path: path.stat().st_mtime_ns for path in parts(tmp_path / "out")}
    printed = finish(start())
    assert f"files done: {len(done)}, " in printed
    check_rows(rows_of(tmp_path / "out"), expected)
    assert {path: path.stat().st_mtime_ns for path in done} == done
