"""Several nodes, played on one machine."""

import io
import json
import os
import tarfile

import pytest
from diffseg.engines.errors import ClusterError
from diffseg.scale import SegmentWorker, segment_dataset
from diffseg.scale.batch import plan_on_ray, run_on_ray
from diffseg.scale.cluster import nodes_of
from diffseg.scale.resources import plan_workers
from diffseg.scale.run import BatchRun
from diffseg.scale.units import file_units
from pycocotools.coco import COCO

from tests.integrations.ray.samples import PATIENCE, check_rows, command, finish


def test_a_data_set_is_segmented_by_two_workers_on_two_nodes(cluster, bundle, images, expected):
    import ray

    dataset = ray.data.read_binary_files([str(path) for path in images], include_paths=True)
    rows = segment_dataset(dataset, str(bundle), provider="cpu", workers=2, rows_per_call=4).take_all()
    check_rows([row | {"key": os.path.abspath(row["key"])} for row in rows], expected)  # noqa: PTH100


def test_the_worker_is_used_by_itself(cluster, bundle, images, expected):
    import ray

    dataset = ray.data.read_binary_files([str(path) for path in images[:5]], include_paths=True)
    arguments = {"model": str(bundle), "provider": "cpu", "threads": 1, "labels": True}
    compute = ray.data.ActorPoolStrategy(size=1)
    rows = dataset.map_batches(SegmentWorker, fn_constructor_kwargs=arguments, compute=compute, num_cpus=0.5).take_all()
    check_rows(rows, {path: expected[path] for path in images[:5]})
    assert all((row["labels_png"] is None) == (row["error"] is not None) for row in rows)


def test_a_plan_that_cannot_run_is_refused(cluster):
    import ray

    assert sum(node.cpus for node in nodes_of(ray)) == 2
    with pytest.raises(ClusterError, match="the cluster has 0 GPUs in 2 machines, room for 0"):
        plan_on_ray(ray, [], 2, 1.0)
    with pytest.raises(ClusterError, match="100 workers are too many for 2 CPUs"):
        plan_workers(nodes_of(ray), 100)


def test_a_job_that_fails_says_so_in_a_line(cluster, images, tmp_path, bundle):
    import ray
    from diffseg.scale.options import BatchOptions

    (tmp_path / "out").write_bytes(b"")  # no folder can be made here
    run = BatchRun(str(tmp_path / "out"), "coco", BatchOptions(model=str(bundle), provider="cpu"))
    units = file_units([str(images[0])], 1)
    with pytest.raises(ClusterError, match="cannot write to") as caught:
        list(run_on_ray(ray, run, units, plan_on_ray(ray, units, 1, None)))
    assert "\n" not in str(caught.value)


def test_the_command_on_a_cluster_reads_webdataset_and_writes_coco(cluster, bundle, images, expected, tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for path in images[number::2]:
                member = tarfile.TarInfo(f"{path.stem}.jpg")
                member.size = path.stat().st_size
                archive.addfile(member, io.BytesIO(path.read_bytes()))
    words = ("--model", bundle, "--provider", "cpu", "--format", "coco", "--workers", 2)
    finish(command("batch", tmp_path / "*.tar", "-o", tmp_path / "out", *words, "--address", cluster.address))
    (merged,) = (tmp_path / "out").glob("run-*/annotations.json")
    errors = json.loads(merged.read_text())["errors"]
    assert len(errors) == len([path for path in images if expected[path] is None])
    coco = COCO(merged)
    assert len(coco.imgs) + len(errors) == len(images)
    for image in coco.imgs.values():
        stem = image["file_name"].rpartition("#")[2]
        result = expected[images[0].with_name(f"{stem}.jpg")]
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for annotation, segment in zip(found, result.segments, strict=True):
            assert (coco.annToMask(annotation).astype(bool) == (result.labels == segment.label)).all()


def test_another_token_is_refused_in_a_line(cluster, bundle, images, tmp_path):
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
    words = ("-o", tmp_path / "out", "--model", bundle, "--address", cluster.address)
    process = command("batch", images[0], *words, env=environment)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")]
