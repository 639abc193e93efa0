"""Batches in this process, without Ray: each image once, whatever happened before."""

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from diffseg.engines.errors import ClusterError
from diffseg.scale.batch import RayUnitWorker, find_work, run_local
from diffseg.scale.options import BatchOptions
from diffseg.scale.run import BatchRun

from tests.commands import diffseg


def run_of(model, output, kind="webdataset", **settings):
    return BatchRun(str(output), kind, BatchOptions(model=model, **settings))


def go(run, inputs, **options):
    """Do the whole work; return how many images were segmented and how many units were done before."""
    work = find_work(run, [str(item) for item in inputs], per_file=3, **options)
    reports = list(run_local(run, work.units))
    return sum(report.images for report in reports), work.done


def keys(output, suffix=".tar"):
    found = []
    for path in sorted(output.glob(f"run-*/part-*{suffix}")):
        with tarfile.open(path) as archive:
            found += [json.load(archive.extractfile(name))["key"] for name in archive.getnames()]
    return sorted(found)


def paths(photos):
    return sorted(str(path) for path in photos.rglob("*.jpg"))


def test_each_image_is_there_once_and_a_second_start_does_nothing(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    assert go(run, [photos]) == (11, 0)
    assert keys(tmp_path / "out") == paths(photos)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-*")}
    images, done = go(run, [photos])
    assert (images, done) == (0, len(before))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-*")} == before


def test_it_goes_on_where_it_ended(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    work = find_work(run, [str(photos)], per_file=3)
    reports = run_local(run, work.units)
    first = next(reports).images
    reports.close()
    images, done = go(run, [photos])
    assert (images, done) == (11 - first, 1)
    assert keys(tmp_path / "out") == paths(photos)


def test_images_that_were_added_are_segmented_alone(model, photos, tmp_path, jpeg):
    run = run_of(model, tmp_path / "out")
    go(run, [photos])
    for i in range(4):
        (photos / f"new{i}.jpg").write_bytes(jpeg(70 + i))
    assert go(run, [photos])[0] == 4
    assert keys(tmp_path / "out") == paths(photos)
    (photos / "0.jpg").unlink()
    assert go(run, [photos])[0] == 0


def test_other_sizes_of_files_and_other_shards_leave_what_is_done(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    go(run, [photos], shard=0, shards=2)
    for per_file in (1, 100):
        work = find_work(run, [str(photos)], per_file=per_file)
        list(run_local(run, work.units))
    assert keys(tmp_path / "out") == paths(photos)


def test_shards_do_all_of_the_work_and_two_of_the_same_write_the_same_bytes(model, photos, tmp_path):
    for output in ("out", "twice"):
        run = run_of(model, tmp_path / output)
        assert sum(go(run, [photos], shard=shard, shards=3)[0] for shard in range(3)) == 11
        assert keys(tmp_path / output) == paths(photos)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / output).rglob("part-*")} for output in ("out", "twice")
    )
    assert first == second


def test_other_settings_start_a_new_run_and_say_so(model, photos, tmp_path):
    go(run_of(model, tmp_path / "out"), [photos])
    other = run_of(model, tmp_path / "out", threshold=0.5)
    work = find_work(other, [str(photos)])
    assert work.done == 0
    assert len(work.others) == 1
    assert "thresholds [1.0, 1.0, 1.0], now [0.5, 0.5, 0.5]" in work.others[0]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_another_bundle_starts_a_new_run(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    name = run.name
    file = Path(model) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"timestep": 299}))
    assert run.name != name


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BatchOptions)])
def test_the_run_follows_from_what_decides_the_rows(model, tmp_path, field):
    same = {"model", "provider", "batch", "threads"}
    values = {"method": "cut", "refine": "colour", "fit": "pad", "threshold": 0.1, "tau": 0.3, "anchors": 4}
    if field == "model":
        return
    value = values.get(field, {"provider": "cpu"}.get(field, 2))
    changed = dataclasses.replace(BatchOptions(model=model), **{field: value})
    runs = {BatchRun(str(tmp_path), "coco", options).name for options in (BatchOptions(model=model), changed)}
    assert (len(runs) == 1) == (field in same)


def test_the_results_of_a_run_are_no_inputs(model, photos):
    run = run_of(model, photos / "out", kind="coco", labels=True)
    assert go(run, [photos])[0] == 11
    assert go(run, [photos])[0] == 0


def test_a_damaged_record_is_named(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    go(run, [photos])
    next((tmp_path / "out").glob("run-*/_run.json")).write_text("{")
    with pytest.raises(ClusterError, match="_run.json is damaged"):
        find_work(run, [str(photos)])


def test_a_folder_that_cannot_be_written_is_named(model, photos, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ClusterError, match="cannot write to .*file"):
        find_work(run_of(model, tmp_path / "file"), [str(photos)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process")
def test_a_killed_process_leaves_no_torn_file(model, photos, tmp_path):
    """A process that is killed while it writes; the next one removes what it left."""
    out = tmp_path / "out"
    code = (
        "import time\n"
        "from diffseg.scale.storage import open_folder\n"
        f"with open_folder({run_of(model, out).folder!r}).writing('part-1.tar') as path:\n"
        "    path.write_bytes(b'half'); print('written', flush=True); time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    (left,) = out.glob("run-*/.*")
    assert left.name.startswith(".part-1.tar.")
    # Each process cleans a folder once, and this one has not seen it yet.
    go(run_of(model, out), [photos])
    assert not list(out.glob("run-*/.*"))
    assert keys(out) == paths(photos)


def test_what_a_worker_of_ray_raises_is_returned_in_a_line(model, photos, tmp_path):
    run = run_of(model, tmp_path / "out")
    (unit, *_) = find_work(run, [str(photos)], per_file=100).units
    good = RayUnitWorker(run, 1)({"unit": [unit.encode()]})
    assert (good["images"], good["errors"], good["problem"]) == ([11], [1], [""])
    (tmp_path / "file").write_bytes(b"")
    (problem,) = RayUnitWorker(run_of(model, tmp_path / "file"), 1)({"unit": [unit.encode()]})["problem"]
    assert problem.startswith("cannot write to ")
    assert "\n" not in problem
    (problem,) = RayUnitWorker(run_of(str(tmp_path), tmp_path / "out"), 1)({"unit": [unit.encode()]})["problem"]
    assert "is not a bundle" in problem or "manifest" in problem


class TestCommand:
    """The command line in a process of its own, with the embedded model."""

    def test_a_laptop_without_ray(self, tmp_path, jpeg):
        (tmp_path / "a.jpg").write_bytes(jpeg())
        (tmp_path / "b.jpg").write_bytes(b"no image")
        words = ("batch", tmp_path, "-o", tmp_path / "out", "--local", "--format", "coco", "--anchors", 4)
        first = diffseg(*words)
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("2 images, 1 with errors, in ")
        assert "encode" in first.stdout
        again = diffseg(*words)
        assert "going on with run-" in again.stderr
        assert again.stdout.startswith("nothing is left to do → ")
        other = diffseg(*words[:-1], 5)
        assert "with other settings or another bundle: run-" in other.stderr
        assert "anchors 4, now 5" in other.stderr
        assert "\r" not in other.stderr  # no progress bar without a terminal

    @pytest.mark.parametrize(
        ("words", "environment", "message"),
        [
            (("nothing-here", "--local"), {}, "nothing-here: no images, .tar or .parquet files found"),
            ((".", "--shard", "1"), {}, "say how many parts there are"),
            ((".", "--shards", "2"), {}, "set JOB_COMPLETION_INDEX to its number"),
            ((".", "--shards", "2"), {"JOB_COMPLETION_INDEX": "2"}, "parts are 0 to 1, found 2"),
            ((".", "--local"), {"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX=0; say how many parts"),
            ((".", "--local", "--address", "auto"), {}, "leave one of them out"),
            ((".", "--local", "--method", "diffcut"), {}, "for which the loaded network has no output"),
            ((".", "--local", "--batch", "99"), {}, "batch must be 1 to "),
        ],
    )
    def test_what_cannot_work_is_said_in_a_line(self, words, environment, message, tmp_path, monkeypatch):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = diffseg("batch", *words, "-o", "out", cwd=tmp_path)
        assert done.returncode
        assert message in " ".join(done.stderr.replace("│", " ").split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()

    def test_without_ray_it_says_what_to_do(self, tmp_path, jpeg):
        try:
            import ray  # noqa: F401
        except ImportError:
            (tmp_path / "a.jpg").write_bytes(jpeg())
            done = diffseg("batch", tmp_path, "-o", tmp_path / "out", "--format", "coco")
            assert done.returncode == 1
            assert "Ray is not installed" in done.stderr
            assert "--local" in done.stderr
        else:
            pytest.skip("Ray is installed")


def test_the_help_does_not_load_what_batches_need():
    code = (
        "import sys\n"
        "from diffseg.cli.app import main\n"
        "sys.argv = ['diffseg', 'batch', '--help']\n"
        "try:\n    main()\n"
        "finally:\n"
        "    assert not {name.partition('.')[0] for name in sys.modules} & {'ray', 'pyarrow', 'onnxruntime'}\n"
        "    assert 'diffseg.scale.batch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--images-per-file" in done.stdout
