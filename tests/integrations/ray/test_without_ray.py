"""`diffseg batch --local` and shards: processes killed in mid-job, without Ray."""

import os

import pyarrow.parquet as pq

from tests.integrations.ray.samples import check_rows, command, finish, kill, until


def start(bundle, images, out, *options, **environment):
    words = ("-o", out, "--model", bundle, "--provider", "cpu", "--threads", 1, "--images-per-file", 1, *options)
    return command("batch", images[0].parent, *words, env=os.environ | environment)


def parts(out):
    return sorted(out.glob("run-*/part-*"))


def check(out, expected):
    check_rows([row for path in parts(out) for row in pq.read_table(path).to_pylist()], expected)
    assert not list(out.glob("run-*/.*"))


def test_a_killed_process_is_started_again_and_goes_on(bundle, images, expected, tmp_path):
    process = start(bundle, images, tmp_path / "out", "--local")
    until(lambda: len(parts(tmp_path / "out")) >= 3, "some files")
    kill(process.pid)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in parts(tmp_path / "out")}
    assert len(done) < 20, "the job was over before the kill"
    assert f"files done: {len(done)}, " in finish(start(bundle, images, tmp_path / "out", "--local"))
    check(tmp_path / "out", expected)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_pods_of_an_indexed_job_one_of_which_is_killed(bundle, images, expected, tmp_path):
    """Two pods of one index at once, too, which Kubernetes does not rule out."""
    pods = [
        (index, start(bundle, images, tmp_path / "out", "--shards", 2, JOB_COMPLETION_INDEX=index)) for index in "001"
    ]
    until(lambda: len(parts(tmp_path / "out")) >= 3, "some files")
    kill(pods[0][1].pid)
    pods[0][1].communicate()
    for _, pod in pods[1:]:
        finish(pod)
    assert "left: 0" in finish(start(bundle, images, tmp_path / "out", "--shards", 2, JOB_COMPLETION_INDEX="0"))
    assert "left: 0" in finish(start(bundle, images, tmp_path / "out", "--local"))
    check(tmp_path / "out", expected)
