import base64
import io
import json
import re

import numpy as np
import pytest
from diffseg.measure.evaluate import Evaluation, Method, Protocol, make_report, open_datasets
from diffseg.measure.evaluate.boundary import BoundaryCounts
from diffseg.measure.evaluate.page import make_page
from diffseg.measure.evaluate.report import PUBLISHED, print_report
from diffseg.measure.evaluate.results import Record
from diffseg.measure.evaluate.scores import score
from diffseg.measure.overlap import Overlap
from PIL import Image
from rich.console import Console

from tests.labelled import draw_sample


@pytest.fixture(scope="module")
def report_and_run(segmenter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "<b>set"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        picture, truth = draw_sample(number)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(truth).save(folder / "labels" / f"{number}.png")
    (folder / "classes.txt").write_text("sky\nground\n<script>alert(1)</script>\n")
    methods = (Method.DIFFSEG, Method.COLOUR)
    out = tmp_path_factory.mktemp("out")
    run = Evaluation(open_datasets([folder]), methods, segmenter, Protocol.FULL, out, thresholds=(0.3, 0.9))
    assert all(outcome.error is None for outcome in run)
    return make_report(run), run


@pytest.fixture(scope="module")
def page(report_and_run):
    return make_page(*report_and_run)


def test_scores_by_hand():
    # Image 1: mask 0 is class 0 but for 10 of its 40 pixels; image 2: one mask over both classes.
    records = [
        Record("1", Overlap((0, 1), np.array([[30, 10], [0, 60]])), BoundaryCounts(1, 1, 1, 1), 1.0),
        Record("2", Overlap((0, 1), np.array([[70], [30]])), BoundaryCounts(0, 0, 5, 0), 2.0),
    ]
    found = score(records, 2)
    assert found.accuracy == pytest.approx((30 + 60 + 70) / 200)
    ious = [(30 + 70) / (30 + 70 + 30 + 10), 60 / (60 + 10 + 30)]
    np.testing.assert_allclose(found.class_iou, ious, atol=1e-6)
    assert found.miou == pytest.approx(np.mean(ious), abs=1e-6)
    coverings = [(40 * 30 / 40 + 60 * 60 / 70) / 100, (70 * 0.7 + 30 * 0.3) / 100]
    assert found.covering == pytest.approx(np.mean(coverings), abs=1e-6)
    assert found.boundary == 0.5
    assert found.masks == 1.5
    assert found.seconds == 1.5
    assert score([], 2).covering is None
    assert score([], 2).miou is None


def test_json(report_and_run, tmp_path):
    report, _ = report_and_run
    report.write(tmp_path / "deep" / "report.json")
    value = json.loads((tmp_path / "deep" / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert value["columns"] == ["diffseg 0.6", "colour"]
    assert value["sweep"] == ["diffseg 0.3", "diffseg 0.6", "diffseg 0.9"]
    assert value["datasets"][0]["scores"]["colour"]["images"] == 4
    assert set(value["model"]) == {"name", "vae_encoder", "unet"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_the_page_needs_nothing_else(page):
    assert not re.search(r"https?:|//|@import|url\(|<link|<script|<iframe", re.sub(r"base64,[\w+/=]+", "", page))
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 9  # three images: best, median, worst; each with labels and masks
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
    assert "&lt;b&gt;set" in page
    assert "&lt;script&gt;" in page


def test_the_page_says_what_is_published(page):
    published = page.index("<div class=published>")
    assert "not measured here" in page[published:]
    for name, _, miou in PUBLISHED:
        assert name in page[published:]
        assert name not in page[:published]
        assert f"{miou:.1f}" in page[published:]
    assert "72.5" in page[published:]
    assert "depends on the numbering of the masks" in page


def test_best_median_and_worst(report_and_run):
    report, run = report_and_run
    coverings = {record.image: score([record], 3).covering for record in run.records(run.datasets[0], run.columns[0])}
    ranked = sorted(coverings, key=lambda name: -coverings[name])
    examples = report.datasets[0].examples
    assert examples["best"] == (ranked[0],)
    assert examples["worst"] == (ranked[-1],)
    assert examples["median"][0] in ranked[1:3]


def test_the_table(report_and_run):
    report, _ = report_and_run
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_report(report, console)
    text = console.file.getvalue()
    assert "…" not in text  # it fits a terminal
    for name, found in report.datasets[0].scores.items():
        assert name.removeprefix("diffseg ") in text
        assert f"{found.covering:.3f}" in text
    assert report.best() in report.sweep
    assert f"{report.best().removeprefix('diffseg ')} *" in text
