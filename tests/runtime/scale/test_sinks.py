"""Files of rows: what they hold, and that equal rows give equal bytes."""

import json
import tarfile
from typing import get_args

import numpy as np
import pytest
from diffseg.scale import SegmentWorker
from diffseg.scale.join_coco import join_coco
from diffseg.scale.sinks import BatchFormat, open_sink
from diffseg.scale.storage import LocalFolder


@pytest.fixture
def rows(model, jpeg):
    worker = SegmentWorker(model, labels=True)
    items = [("a", jpeg()), ("b", b"no image"), ("c", jpeg(20)), ("same as a", jpeg())]
    return list(worker.rows(items))


@pytest.mark.parametrize("kind", get_args(BatchFormat))
def test_keys_are_read_back_and_bytes_are_equal(kind, rows, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    sink = open_sink(kind, LocalFolder(tmp_path), labels=True)
    for name in ("first", "second"):
        sink.write(tmp_path / name, iter(rows))
    assert sorted(sink.keys(tmp_path / "first")) == sorted(row["key"] for row in rows)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_webdataset_names_samples_after_the_bytes_of_their_images(rows, tmp_path):
    open_sink("webdataset", LocalFolder(tmp_path)).write(tmp_path / "x.tar", rows)
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
        samples = {name.partition(".")[0] for name in names}
        first = json.load(archive.extractfile(f"{rows[0]['sha256']}.json"))
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}
    assert len(samples) == 4
    assert f"{rows[0]['sha256']}-2.json" in names
    assert [name for name in names if name.endswith(".labels.png")] == [
        f"{rows[i]['sha256']}{'-2' * (i == 3)}.labels.png" for i in (0, 2, 3)
    ]
    assert first == {key: value for key, value in rows[0].items() if key != "labels_png"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_files_are_joined_with_ids_that_count_through(rows, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    folder = LocalFolder(tmp_path)
    sink = open_sink("coco", folder)
    for name, part in (("part-000000-1", rows[:2]), ("part-000001-2", rows[2:])):
        with folder.writing(f"{name}{sink.suffix}") as path:
            sink.write(path, part)
    assert join_coco(folder) == "annotations.json"
    found = coco.COCO(tmp_path / "annotations.json")
    assert sorted(found.imgs) == [1, 2, 3]
    assert sorted(found.anns) == list(range(1, len(found.anns) + 1))
    for number, row in zip((1, 2, 3), (rows[0], rows[2], rows[3]), strict=True):
        assert found.imgs[number]["file_name"] == row["key"]
        masks = [found.annToMask(item) for item in found.loadAnns(found.getAnnIds(imgIds=number))]
        assert [int(mask.sum()) for mask in masks] == [segment["area"] for segment in row["segments"]]
        assert (np.sum(masks, axis=0) == 1).all()
    assert json.loads((tmp_path / "annotations.json").read_text())["errors"] == [
        {"file_name": "b", "error": rows[1]["error"]}
    ]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        f"{row['sha256']}.labels.png" for row in rows if row["error"] is None
    }


def test_there_may_be_nothing_to_join(tmp_path):
    assert join_coco(LocalFolder(tmp_path)) is None
