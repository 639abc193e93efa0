"""The life of a segmenter: closing, pickling, and its name."""

import os
import pickle
import shutil

import pytest
from diffseg import Segmenter
from diffseg.engines.bundle.bundle import MODELS
from diffseg.engines.examples import example_images

from tests.runtime.doubles import LendingNetwork


def test_a_segmenter_is_closed_at_the_end_of_its_block(photo):
    with Segmenter.load("tiny", provider="cpu", threads=1) as segmenter:
        assert repr(segmenter) == "<Segmenter tiny, provider cpu, batch 1>"
        kept = segmenter(photo, keep_attention=True)
    segmenter.close()  # again: nothing happens
    assert segmenter.closed
    assert repr(segmenter) == "<Segmenter tiny, provider cpu, batch 1, closed>"
    assert segmenter.provider == "cpu"
    assert len(kept.resegment(2.0).segments) >= 1  # results outlive it
    with pytest.raises(ValueError, match="the segmenter is closed; load it again"):
        segmenter(photo)
    with pytest.raises(TypeError, match="a closed segmenter cannot be pickled"):
        pickle.dumps(segmenter)


def test_a_failed_block_closes_too():
    with pytest.raises(RuntimeError, match="ours"), Segmenter.load("tiny", provider="cpu") as segmenter:
        raise RuntimeError("ours")
    assert segmenter.closed


def test_pickling_keeps_the_arguments_and_loads_again(segmenter):
    data = pickle.dumps(segmenter)
    assert len(data) < 1000  # no weights
    copy = pickle.loads(data)  # noqa: S301
    assert copy.network is not segmenter.network
    assert (repr(copy), copy.batch) == (repr(segmenter), 2)
    path = example_images()[0]
    assert copy(path) == segmenter(path)


def test_a_pickled_folder_is_found_from_another_folder(tmp_path, monkeypatch):
    shutil.copytree(MODELS / "tiny", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Segmenter.load("mine", provider="cpu"))
    monkeypatch.chdir(os.sep)
    assert pickle.loads(data).bundle.folder == tmp_path / "mine"  # noqa: S301


def test_a_segmenter_of_a_network_cannot_be_pickled(fake_bundle):
    segmenter = Segmenter(fake_bundle, LendingNetwork())
    with pytest.raises(TypeError, match=r"made from a network cannot be pickled; make it with Segmenter\.load"):
        pickle.dumps(segmenter)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"anchors": 8.5}, "anchors must be a whole number of at least 1 per side, found 8.5"),
        ({"anchors": True}, "anchors must be a whole number of at least 1 per side, found True"),
        ({"anchors": "8"}, "anchors must be a whole number of at least 1 per side, found '8'"),
        ({"threshold": "low"}, "threshold must be a number, or one per round, found 'low'"),
    ],
)
def test_settings_of_a_wrong_type_get_our_line(segmenter, photo, options, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        segmenter(photo, **options)
