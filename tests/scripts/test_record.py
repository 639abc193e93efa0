"""The records that benchmarks and release checks write."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from bench.record import environment, percentiles, read_record, write_record


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(count):
    seconds = np.random.default_rng(count).random(count)
    expected = {f"p{p}": np.percentile(seconds, p) * 1e3 for p in (50, 95, 99)}
    assert percentiles(seconds, 1e-3) == pytest.approx(expected, abs=1e-3)


def test_nothing_has_no_percentiles():
    assert percentiles([]) == {}


def test_a_record_says_what_it_was_taken_on(tmp_path):
    record = environment("numpy", "no-such-package")
    assert record["packages"] == {"numpy": np.__version__}
    assert set(record) == {"date", "revision", "machine", "python", "packages"}
    assert set(record["machine"]) == {"platform", "processor", "cores", "load_average", "gpus"}
    path = tmp_path / "deep" / "record.json"
    write_record(record, path)
    assert read_record(path) == record
    assert [child.name for child in path.parent.iterdir()] == ["record.json"]


def test_without_a_file_nothing_is_written_or_read():
    write_record({"a": 1}, None)
    assert read_record(None) == {}
