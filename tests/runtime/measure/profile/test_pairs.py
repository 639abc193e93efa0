"""Comparison of two profiles."""

import copy
import json
from pathlib import Path

import pytest
from diffseg.engines.errors import ProfileError
from diffseg.measure.profile.pairs import compare_profiles
from diffseg.measure.profile.record import parse_profile, read_profile
from diffseg.measure.profile.statistics import LEAST_PAIRS, paired_ratio

from tests.commands import diffseg


def scaled(record, factor, runs):
    """A profile that took `factor` times as long, of as many runs."""
    other = copy.deepcopy(record)
    other["runs"] = (record["runs"] * runs)[:runs]
    for stage, values in record["seconds"].items():
        other["seconds"][stage] = [value * factor for value in (values * runs)[:runs]]
        other["statistics"][stage]["median"] *= factor
    return other


def compare_records(a, b):
    return compare_profiles(parse_profile(json.dumps(a), "a.json"), parse_profile(json.dumps(b), "b.json"))


def test_a_record_read_back_equals_itself(profiled):
    profile = read_profile(profiled.folder / "a.json")
    assert json.loads(profile.to_json()) == profiled.record
    record = profiled.record
    comparison = compare_profiles(profile, profile)
    assert all("busy" in warning for warning in comparison.warnings)
    assert comparison.pairs == 2
    for stage, (before, after, ratio) in comparison.stages.items():
        assert before == after == record["statistics"][stage]["median"]
        assert (ratio.median, ratio.low) == (1, None)
    assert comparison.slower_than(0.99)
    assert not comparison.slower_than(1)


def test_ratios_by_stage_and_the_limit(profiled):
    a, b = scaled(profiled.record, 1, 8), scaled(profiled.record, 1.2, 10)
    comparison = compare_records(a, b)
    assert comparison.pairs == 8
    for _, _, ratio in comparison.stages.values():
        assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.2, 1.2, 1.2))
    assert comparison.slower_than(1.1)
    assert not comparison.slower_than(1.3)
    b["seconds"]["total"][:4] = a["seconds"]["total"][:4]  # half of the runs are as fast: not certain any more
    assert not compare_records(a, b).slower_than(1.1)


def test_what_else_differs_is_said(profiled):
    a, b = copy.deepcopy(profiled.record), copy.deepcopy(profiled.record)
    for record, load in ((a, 0.0), (b, 99.0)):
        record["environment"]["cpu"]["load_average"] = load
    b["environment"]["cpu"]["model"] = "Another"
    b["environment"]["packages"]["numpy"] = "0.1"
    b["settings"]["threads"] = 1
    b["drift"]["drifting"] = True
    warnings = compare_records(a, b).warnings
    for words in ("CPU differ: ", "and Another", "packages differ", "numpy 0.1", "threads differ: None and 1"):
        assert any(words in warning for warning in warnings), words
    assert "the runs of b drift" in warnings
    assert any(warning.startswith("b: the machine was busy") for warning in warnings)
    assert len(warnings) == 5


def test_a_stage_that_only_one_has_is_left_out(profiled):
    a, b = copy.deepcopy(profiled.record), copy.deepcopy(profiled.record)
    del a["seconds"]["refine"]
    del b["seconds"]["write"]
    assert not {"write", "refine"} & set(compare_records(a, b).stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["images"].pop(), "different images"),
        (lambda r: r["settings"].update(batch=2), "different batches"),
        (lambda r: r.update(environment=None), "damaged"),
        (lambda r: r["seconds"].pop("total"), "no whole runs"),
        (lambda r: r.update(seconds=3), "damaged"),
        (lambda r: r["seconds"].update(encode=["x", "y"]), "damaged"),
    ],
)
def test_profiles_that_cannot_be_compared(profiled, change, message):
    b = copy.deepcopy(profiled.record)
    change(b)
    with pytest.raises(ProfileError, match=message):
        compare_records(profiled.record, b)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a profile"),
        ('{"schema": 1}', "is not a profile"),
        ('{"schema": 99, "seconds": {}}', "schema 99, expected 1"),
    ],
)
def test_files_that_are_no_profiles(tmp_path, text, message):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        read_profile(path)


def test_a_record_of_an_earlier_version_is_read_whole():
    """The file was written before the records had types; nothing of it is lost or renamed."""
    path = Path(__file__).with_name("earlier.json")
    profile = read_profile(path)
    written = json.loads(profile.to_json())
    assert written["settings"].pop("method") is None  # is younger
    assert written == json.loads(path.read_text())
    assert list(written) == list(json.loads(path.read_text()))
    assert compare_profiles(profile, profile).warnings == []


DAMAGED = {
    "b.json is damaged: environment must be an object, found null": lambda r: r.update(environment=None),
    "environment.cpu.model must be text, found 3": lambda r: r["environment"]["cpu"].update(model=3),
    r"seconds.encode\[0\] must be a number, found \"x\"": lambda r: r["seconds"].update(encode=["x"]),
    "settings: runs must be at least 1, found 0": lambda r: r["settings"].update(runs=0),
    "'statistics.total.p99' is missing": lambda r: r["statistics"]["total"].pop("p99"),
    "'fresh_processes.import' is missing": lambda r: r["fresh_processes"].pop("import"),
    "a record is damaged: its stages and runs do not match": lambda r: r["statistics"].pop("merge"),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_what_is_damaged_is_said(message):
    good = json.loads(Path(__file__).with_name("earlier.json").read_text())
    bad = copy.deepcopy(good)
    DAMAGED[message](bad)
    with pytest.raises(ProfileError, match=message) as caught:
        compare_records(good, bad)
    assert "\n" not in str(caught.value)


def test_fields_of_later_versions_are_ignored():
    value = json.loads(Path(__file__).with_name("earlier.json").read_text())
    more = value | {"novelty": 1, "environment": value["environment"] | {"weather": "fair"}}
    assert parse_profile(json.dumps(more), "x") == parse_profile(json.dumps(value), "x")


def test_the_command(profiled, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(scaled(profiled.record, 1, 8)))
    (tmp_path / "b.json").write_text(json.dumps(scaled(profiled.record, 1.2, 8)))
    done = diffseg("profile", "--compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all("busy" in line for line in done.stderr.splitlines())
    assert "1.200 to 1.200" in done.stdout
    done = diffseg("profile", "--compare", "a.json", "b.json", "--fail-above", 1.1, cwd=tmp_path)
    assert done.returncode == 1
    assert "b.json takes more than 1.1 times as long as a.json" in done.stderr
    assert diffseg("profile", "--compare", "b.json", "a.json", "--fail-above", 1.1, cwd=tmp_path).returncode == 0
    done = diffseg("profile", "--compare", "a.json", "none.json", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "error: cannot read none.json" in done.stderr


@pytest.mark.parametrize("factor", [1, 1.2])  # whatever the medians say
def test_too_few_runs_decide_nothing(profiled, tmp_path, factor):
    (tmp_path / "a.json").write_text(json.dumps(scaled(profiled.record, 1, 8)))
    (tmp_path / "b.json").write_text(json.dumps(scaled(profiled.record, factor, 5)))
    done = diffseg("profile", "--compare", "a.json", "b.json", "--fail-above", 1.1, cwd=tmp_path)
    assert done.returncode == 2
    line = "error: --fail-above needs at least 6 runs of each profile, found 5; take both again with --runs 6 or more"
    assert done.stderr.splitlines()[-1] == line
    assert "takes more than" not in done.stderr
    done = diffseg("profile", "--compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "no intervals: they need 6 pairs" in done.stdout


def test_the_fewest_pairs_that_have_an_interval():
    assert paired_ratio([1] * LEAST_PAIRS, [1] * LEAST_PAIRS).low == 1
    assert paired_ratio([1] * (LEAST_PAIRS - 1), [1] * (LEAST_PAIRS - 1)).low is None
