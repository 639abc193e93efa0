"""The tables of the papers, from miniatures of all data sets and bundles that are not Stable Diffusion."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from diffseg.engines.errors import BundleError
from diffseg.measure.evaluate import Evaluation

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from reproduce.bundles import check_source, find_or_export
from reproduce.command import main, parse
from reproduce.plan import BUNDLES, DATASETS, OPTIONS, make_plan
from reproduce.published import DIFFCUT, DIFFSEG

from tests.engines.toy import make_features_toy, make_toy
from tests.layouts import make_ade20k, make_cityscapes, make_coco, make_coco_instances, make_context, make_voc

DIFFSEG_ROWS = ["DiffSeg-320", "DiffSeg-512", "K-Means-C", "K-Means-S"]
DIFFCUT_ROWS = ["DiffCut", "DiffCut + PAMR", "DiffSeg-512", "DiffSeg-512 + PAMR"]


# The attention of the toy has fewer distinct maps than k-means has clusters.
pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a miniature of each data set, and two bundles of a few nodes."""
    folder = tmp_path_factory.mktemp("data")
    for make in (make_coco, make_cityscapes, make_voc, make_context, make_ade20k):
        make(folder / make.__name__.removeprefix("make_"))
    make_toy(folder / "attention")
    make_features_toy(folder / "features")
    return folder


def sets(place, *names):
    """Options for the folders of data sets."""
    return [word for name in names for word in (f"--{name}", str(place / name))]


def bundles(place, large="attention"):
    """Options for the bundles."""
    found = {"diffseg-512": large if large == "tiny" else place / large, "diffseg-320": place / "attention"}
    found["diffcut"] = place / "features"
    return ["--provider", "cpu", *(word for key, path in found.items() for word in ("--bundle", f"{key}={path}"))]


def rows_by_table(folder):
    found = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    tables = {}
    for row in found["rows"]:
        tables.setdefault((row["table"], row["dataset"]), {})[row["method"]] = row
    return tables


def check_rows(tables):
    for (table, _), rows in tables.items():
        assert sorted(rows) == (DIFFSEG_ROWS if table == "diffseg" else DIFFCUT_ROWS)
        for row in rows.values():
            assert (row["images"], row["failed"]) == (1, 0)
            assert 0 < row["accuracy"] <= 1
            assert 0 < row["miou"] <= 1


def test_all_tables(place, tmp_path, capsys):
    words = [*sets(place, *OPTIONS), *bundles(place), "--limit", "1", "-o", str(tmp_path)]
    assert main(words) == 0
    tables = rows_by_table(tmp_path)
    expected = [*(("diffcut", name) for name in DATASETS), ("diffseg", "coco-stuff"), ("diffseg", "cityscapes")]
    assert sorted(tables) == sorted(expected)
    check_rows(tables)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    assert "must not be compared with the published ones" in text
    assert "| DiffSeg-512 | 1 |" in text
    assert "| 72.5 | 43.6 |  |" in text  # no difference from a part of the set


def test_tables_with_tiny(place, tmp_path):
    words = [*sets(place, *OPTIONS), *bundles(place, "tiny"), "--limit", "1", "-o", str(tmp_path)]
    assert main(words) == 0
    tables = rows_by_table(tmp_path)
    assert len(tables) == len(DATASETS) + 2
    check_rows(tables)
    found = tables["diffseg", "cityscapes"]["DiffSeg-512"]
    report = json.loads((tmp_path / "reports" / "diffseg-cityscapes-diffseg-512.json").read_text(encoding="utf-8"))
    assert report["model"]["name"] == "tiny"
    assert report["datasets"][0]["scores"]["diffseg 0.9 none"]["miou"] == found["miou"]


def test_an_interrupted_run_is_continued(place, tmp_path, capsys, monkeypatch):
    words = [*sets(place, "coco", "cityscapes"), *bundles(place), "-o", str(tmp_path)]
    evaluated = []
    original = Evaluation._evaluate

    def counted(self, job):
        outcome = original(self, job)
        evaluated.append(outcome.kept)
        if len(evaluated) == 5:
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(Evaluation, "_evaluate", counted)
    assert main(words) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert evaluated == [False] * 5
    assert main(words) == 0
    assert evaluated[5:10] == [True] * 5
    assert evaluated[10:15] == [False] * 5  # the rest of the first bundle; the second is the same one here
    again = (tmp_path / "tables.md").read_bytes()
    evaluated[:] = []
    monkeypatch.setattr(Evaluation, "_evaluate", original)
    assert main(words) == 0
    assert (tmp_path / "tables.md").read_bytes() == again
    assert b"must not be compared" not in again


def test_coco_without_label_maps_is_coco_object_alone(place, tmp_path, capsys):
    coco = make_coco_instances(tmp_path / "coco")
    assert main(["--coco", str(coco), *bundles(place), "-o", str(tmp_path / "out")]) == 0
    assert "has no label maps of COCO-Stuff, so COCO-Stuff-27 is left out" in capsys.readouterr().err
    tables = rows_by_table(tmp_path / "out")
    assert list(tables) == [("diffcut", "coco-object")]
    assert {row["images"] for row in tables["diffcut", "coco-object"].values()} == {2}
    assert main(["--coco", str(coco), "--tables", "diffseg", *bundles(place), "-o", str(tmp_path / "out")]) == 2


def test_failed_images_are_counted(place, tmp_path, capsys):
    voc = make_voc(tmp_path / "VOC2012")
    (voc / "JPEGImages" / "2007_000001.jpg").write_bytes(b"")
    words = ["--voc", str(voc), *bundles(place), "--tables", "diffcut", "-o", str(tmp_path / "out")]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "2007_000001.jpg: an empty file" in shown.err
    assert "| 1 (1 failed) |" in shown.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--tables", "diffseg", "--voc", "voc"], 2, "the table of DiffSeg needs --coco or --cityscapes"),
        (["--voc", "missing"], 1, "missing: no such folder"),
        (["--voc", "ade20k"], 1, "VOCtrainval_11-May-2012.tar"),
        (
            ["--voc", "voc"],
            1,
            "no bundle diffseg-512: name a checkpoint to export, or pass --bundle",
        ),
        (["other", "--voc", "voc", "--tables", "diffcut"], 1, "error: other could not be exported"),
        (["--voc", "voc", "--bundle", "diffcut=features", "--bundle", "diffseg-512=features"], 1, "no attention for"),
    ],
)
def test_what_is_wrong_is_one_line(place, tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(place)
    assert main([*words, "-o", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data set: pass the folder of at least one"),
        (["--voc", "x", "--tables", "magic"], "--tables must be some of diffseg, diffcut"),
        (["--voc", "x", "--bundle", "other=x"], "--bundle must be NAME=BUNDLE"),
        (["--voc", "x", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_wrong_options(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_published_rows_are_those_of_the_plan():
    runs = make_plan(("diffseg", "diffcut"), tuple(DATASETS))
    planned = {(run.table, run.dataset, row) for run in runs for row in run.rows}
    assert {("diffseg", *row) for row in DIFFSEG} | {("diffcut", *row) for row in DIFFCUT} <= planned
    assert [run.bundle for run in runs] == sorted((run.bundle for run in runs), key=list(BUNDLES).index)
    thresholds = {(run.table, run.dataset): run.threshold for run in runs}
    assert {key: t for key, t in thresholds.items() if key[0] == "diffseg"} == {
        ("diffseg", "coco-stuff"): 1.1,
        ("diffseg", "cityscapes"): 0.9,
    }
    assert {t for key, t in thresholds.items() if key[0] == "diffcut"} == {1.0}


@pytest.mark.parametrize("key", BUNDLES)
def test_the_export_knows_its_options(tmp_path, capfd, key):
    """The command gets as far as the checkpoint, which does not exist."""
    with pytest.raises(BundleError, match=f"could not be exported to .*{key}"):
        find_or_export(key, {}, str(tmp_path / "none"), tmp_path, "fp32")
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "none") in error
    assert "--help" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_not_exported_again(place, tmp_path, capsys):
    folder = tmp_path / "bundles"
    shutil.copytree(place / "attention", folder / "diffseg-320")
    assert find_or_export("diffseg-320", {}, "sd14", folder, "fp32").folder == folder / "diffseg-320"
    check_source(folder, "sd14", "fp32")
    check_source(folder, "sd14", "fp32")
    assert "export" not in capsys.readouterr().out
    words = ["--voc", str(place / "voc"), "-o", str(tmp_path)]
    for changed in (["other", *words], ["sd14", *words, "--precision", "fp16"]):
        assert main(changed) == 1
        error = capsys.readouterr().err
        assert "its bundles are from sd14, fp32, not" in error
        assert error.count("\n") == 1
