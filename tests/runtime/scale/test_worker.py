"""The worker and its rows, without Ray."""

import hashlib
import io
import json

import numpy as np
import pytest
from diffseg.engines.errors import ImageError, ProviderError
from diffseg.formats.rle import compress, run_lengths
from diffseg.scale import SegmentWorker
from diffseg.scale.rows import LABELS, OVERLAY
from PIL import Image


def test_rows_are_what_the_segmenter_gives(model, double, jpeg):
    worker = SegmentWorker(model, batch=3, threshold=0.7, labels=True, overlays=True)
    data = [jpeg(i) for i in range(7)]
    rows = list(worker.rows((str(i), item) for i, item in enumerate(data)))
    assert [row["key"] for row in rows] == [str(i) for i in range(7)]
    for row, item in zip(rows, data, strict=True):
        result = double(item, threshold=0.7)
        assert len(result.segments) > 1
        assert row["sha256"] == hashlib.sha256(item).hexdigest()
        assert (row["height"], row["width"]) == result.labels.shape
        runs = run_lengths(result.labels, len(result.segments))
        assert [(s["label"], s["area"], tuple(s["bbox"]), s["counts"]) for s in row["segments"]] == [
            (s.label, s.area, s.bbox, compress(runs[s.label])) for s in result.segments
        ]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row[LABELS]))), result.labels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row[OVERLAY]))), np.asarray(result.overlay()))
        assert json.loads(row["settings"])["thresholds"] == [0.7] * 3
        assert (row["bundle"], row["provider"], row["error"]) == ("fake", "double", None)
        assert row["bundle_sha256"] == result.origin.bundle_sha256


def test_what_cannot_be_segmented_is_a_row_with_its_error(model, jpeg):
    worker = SegmentWorker(model, batch=2, pixels=30_000)
    large = io.BytesIO()
    Image.new("RGB", (400, 400)).save(large, "PNG")
    items = [
        ("good", jpeg()),
        ("empty", b""),
        ("text", b"no image"),
        ("cut", jpeg()[:300]),
        ("large", large.getvalue()),
        ("lost", ImageError("no such file")),
        ("again", jpeg()),
    ]
    rows = {row["key"]: row for row in worker.rows(items)}
    assert list(rows) == [key for key, _ in items]
    assert [key for key, row in rows.items() if row["error"] is None] == ["good", "again"]
    assert rows["empty"]["error"] == "the file is empty"
    assert "30,000 pixels, found 400 × 400" in rows["large"]["error"]
    assert rows["lost"]["error"] == "no such file"
    assert rows["lost"]["sha256"] is None
    for row in rows.values():
        assert set(row) == set(rows["good"])
        assert row["error"] is None or (row["segments"] is None and "\n" not in row["error"])


def test_no_more_images_are_held_than_a_batch(model, jpeg):
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield str(i), jpeg()

    rows = SegmentWorker(model, batch=2).rows(items())
    next(rows)
    assert len(taken) <= 4


def test_it_is_given_columns_and_returns_a_table(model, jpeg):
    pa = pytest.importorskip("pyarrow")
    worker = SegmentWorker(model)
    table = worker({"bytes": np.array([jpeg(), None, 3], dtype=object), "path": ["a", "b", "c"]})
    assert isinstance(table, pa.Table)
    assert table["key"].to_pylist() == ["a", "b", "c"]
    assert table["error"].to_pylist()[1:] == [f"an encoded image must be bytes, found {t}" for t in ("nothing", "int")]
    assert worker({"bytes": [{"bytes": jpeg(), "path": None}]})["error"].to_pylist() == [None]  # as in Hugging Face's
    assert worker({"bytes": [b"x"]}).schema == table.schema  # of a batch without masks, too
    assert worker({"bytes": [b"x"]})["key"].to_pylist() == [hashlib.sha256(b"x").hexdigest()]


def test_a_missing_column_is_named(model):
    with pytest.raises(ValueError, match="no column 'bytes' with encoded images, found 'image', 'path'"):
        SegmentWorker(model)({"image": [b""], "path": [""]})


def test_it_counts_the_seconds_of_stages(model, jpeg):
    worker = SegmentWorker(model)
    list(worker.rows([("a", jpeg()), ("b", b"")]))
    assert {"decode", "encode", "attend", "merge", "write"} <= set(worker.seconds)
    assert all(taken > 0 for taken in worker.seconds.values())


def test_settings_are_checked_when_it_is_made(model):
    with pytest.raises(ValueError, match="anchors must be at least 1"):
        SegmentWorker(model, anchors=0)


def test_a_provider_that_cannot_run_is_an_error():
    with pytest.raises(ProviderError):
        SegmentWorker("tiny", provider="openvina")
