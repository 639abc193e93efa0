"""Running an evaluation, saving its results and resuming it."""

import json

import numpy as np
import pytest
from diffseg.engines.errors import DatasetError
from diffseg.measure.evaluate import Evaluation, Method, Protocol, make_report, open_datasets, predictions
from diffseg.measure.evaluate.boundary import BoundaryCounts
from diffseg.measure.evaluate.columns import Column
from diffseg.measure.evaluate.methods import kmeans_colour, methods_of
from diffseg.measure.evaluate.results import Record, Store
from diffseg.measure.overlap import Overlap, covering
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression
from PIL import Image

from tests.labelled import draw_sample


class Calls:
    """Colour k-means that counts its calls."""

    def __init__(self):
        self.count = 0

    def __call__(self, picture):
        self.count += 1
        return kmeans_colour(picture)


@pytest.fixture
def calls(monkeypatch):
    counter = Calls()
    monkeypatch.setattr(predictions, "kmeans_colour", counter)
    return counter


def evaluation(folder, labelled, segmenter=None, methods=(Method.COLOUR,), protocol=Protocol.FULL, **options):
    return Evaluation(open_datasets([labelled]), tuple(methods), segmenter, protocol, folder, **options)


def by_attention(folder, labelled, segmenter, protocol=Protocol.FULL, **options):
    """DiffSeg on one image."""
    datasets = [dataset.limited(1) for dataset in open_datasets([labelled])]
    return Evaluation(datasets, (Method.DIFFSEG,), segmenter, protocol, folder, **options)


@pytest.mark.parametrize("protocol", Protocol)
def test_all_methods(labelled, segmenter, tmp_path, protocol):
    datasets = [dataset.limited(1) for dataset in open_datasets([labelled])]
    methods = methods_of(features=False)
    run = Evaluation(datasets, methods, segmenter, protocol, tmp_path / "out", thresholds=(0.3,), workers=2)
    assert [(o.sample.name, o.error) for o in run] == [("photo0", None)]
    pixels = {Protocol.PAPER: 512 * 512, Protocol.DIFFCUT: 128 * 128, Protocol.FULL: 96 * 64}[protocol]
    for column in run.columns:
        records = run.records(run.datasets[0], column)
        assert [record.image for record in records] == ["photo0"]
        for record in records:
            assert record.overlap.classes == (0, 1, 2)
            assert record.overlap.table.sum() == pixels * 62 / 64  # two of 64 rows are void
    superpixels = next(column for column in run.columns if column.method is Method.SUPERPIXELS)
    assert all(covering(r.overlap) > 0.5 for r in run.records(run.datasets[0], superpixels))


def test_masks_are_those_of_segment(labelled, segmenter, tmp_path):
    run = by_attention(tmp_path, labelled, segmenter, threshold=0.4)
    (sample,) = run.datasets[0].samples
    example = run.example(run.datasets[0], sample, run.columns[0])
    np.testing.assert_array_equal(example.labels, segmenter(sample.image, threshold=0.4).labels)


def test_masks_of_the_paper_are_the_bare_proposals(labelled, segmenter, tmp_path):
    run = by_attention(tmp_path, labelled, segmenter, Protocol.PAPER, threshold=0.2)
    example = run.example(run.datasets[0], run.datasets[0].samples[0], run.columns[0])
    assert example.image.size == (512, 512)
    attention = segmenter(example.image, keep_attention=True).attention.values
    proposals = merge_attention(attention, (0.2,) * 3, segmenter.settings.anchors)
    np.testing.assert_array_equal(example.labels, non_max_suppression(proposals, (512, 512)))


def test_a_sweep_takes_one_pass_of_the_network(labelled, segmenter, tmp_path):
    passes = []

    class Counting:
        def __getattr__(self, name):
            return getattr(segmenter, name)

        def __call__(self, *arguments, **options):
            passes.append(arguments)
            return segmenter(*arguments, **options)

    run = by_attention(tmp_path, labelled, Counting(), thresholds=(0.02, 0.4))
    assert [outcome.kept for outcome in run] == [False]
    assert len(run.columns) == 3
    assert len(passes) == 1
    masks = [run.records(run.datasets[0], column)[0].overlap.masks for column in run.columns[1:]]
    assert masks[0] > masks[1]
    assert [o.kept for o in by_attention(tmp_path, labelled, Counting(), thresholds=(0.02,))] == [True]
    assert len(passes) == 1
    assert [o.kept for o in by_attention(tmp_path, labelled, Counting(), Protocol.PAPER)] == [False]
    assert [o.kept for o in by_attention(tmp_path, labelled, Counting(), thresholds=(0.02, 0.3))] == [False]
    assert len(passes) == 3


def test_a_second_run_computes_nothing(labelled, calls, tmp_path):
    first = evaluation(tmp_path, labelled)
    assert not any(outcome.kept for outcome in first)
    assert calls.count == 3
    second = evaluation(tmp_path, labelled)
    assert all(outcome.kept for outcome in second)
    assert calls.count == 3
    assert make_report(first) == make_report(second)


def test_an_interrupted_run_goes_on(labelled, calls, tmp_path):
    run = iter(evaluation(tmp_path, labelled))
    next(run)
    run.close()
    assert [outcome.kept for outcome in evaluation(tmp_path, labelled)] == [True, False, False]
    assert calls.count == 3


def test_a_changed_label_is_evaluated_again(labelled, calls, tmp_path):
    list(evaluation(tmp_path, labelled))
    truth = np.ones((64, 96), np.uint8)
    Image.fromarray(truth).save(labelled / "labels" / "photo1.png")
    run = evaluation(tmp_path, labelled)
    assert [outcome.kept for outcome in run] == [True, False, True]
    assert calls.count == 4
    assert run.records(run.datasets[0], run.columns[0])[1].overlap.classes == (1,)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_fails_leaves_the_others(labelled, tmp_path, workers):
    (labelled / "images" / "photo0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (labelled / "labels" / "photo1.png").unlink()
    picture, truth = draw_sample(9)
    Image.fromarray(picture).save(labelled / "images" / "photo3.png")
    Image.fromarray(truth[:, :50]).save(labelled / "labels" / "photo3.png")
    Image.fromarray(picture).save(labelled / "images" / "photo4.png")
    Image.fromarray(np.full_like(truth, 255)).save(labelled / "labels" / "photo4.png")
    run = evaluation(tmp_path, labelled, workers=workers)
    errors = [str(outcome.error) for outcome in run if outcome.error]
    expected = ("photo0.png", "photo1.png: cannot be read", "50 × 64 pixels, but photo3.png has 96 × 64", "is void")
    assert all(part in error for part, error in zip(expected, errors, strict=True)), errors
    assert not any("\n" in error for error in errors)
    report = make_report(run).datasets[0]
    assert (report.images, report.failed) == (5, 4)
    assert report.scores["colour"].images == 1


def test_methods_on_attention_need_a_segmenter(labelled, tmp_path):
    with pytest.raises(ValueError, match="kmeans-s need a segmenter"):
        evaluation(tmp_path, labelled, None, (Method.KMEANS_S, Method.COLOUR))


COLUMN = Column("diffseg 0.6", Method.DIFFSEG, None, "0123")


def record(image):
    return Record(image, Overlap((0, 7), np.array([[3, 0, 2], [1, 0, 9]])), BoundaryCounts(4, 3, 2, 1), 0.5)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    store = Store(tmp_path, COLUMN)
    store.add("a", record("one"))
    whole = store.path.read_bytes()
    store.add("b", record("two"))
    store.path.write_bytes(store.path.read_bytes()[:-20])
    again = Store(tmp_path, COLUMN)
    assert again.get("b") is None
    assert store.path.read_bytes() == whole
    found = again.get("a")
    assert found.to_dict() == record("one").to_dict()
    assert found.overlap.classes == (0, 7)
    again.add("b", record("two"))
    assert Store(tmp_path, COLUMN).get("b").image == "two"


def test_lines_that_are_no_records_are_made_again(tmp_path):
    store = Store(tmp_path, COLUMN)
    store.path.write_text('not json\n{"content": "a"}\n[]\n' + json.dumps({"content": "b", "image": "x"}) + "\n")
    assert Store(tmp_path, COLUMN).get("a") is None
    assert Store(tmp_path, COLUMN).get("b") is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="results cannot be kept there"):
        Store(tmp_path / "file" / "results", COLUMN)
