"""Polygons and run lengths compared with pycocotools, which defines the format."""

import numpy as np
import pytest
from diffseg.formats.filling import decompress, fill_polygon, fill_runs
from diffseg.formats.rle import compress, run_lengths
from hypothesis import given
from hypothesis import strategies as st

from tests.coco import decode


@st.composite
def polygons(draw):
    """Corners inside and around an image; some lie on pixels, on its border, or twice in the same place."""
    height, width, count = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(3, 12))
    corners = np.random.default_rng(draw(st.integers(0, 9999))).uniform(-0.1, 1.1, (count, 2)) * (width, height)
    form = draw(st.sampled_from(["any", "whole", "inside", "repeated"]))
    if form == "whole":
        corners = np.rint(corners)
    if form == "inside":
        corners = np.clip(corners, 0, (width, height))
    if form == "repeated":
        corners = np.concatenate([corners, corners[-1:], corners[:1]])
    return np.round(corners, 2), (height, width)


@given(polygons())
def test_polygons_are_those_of_pycocotools(case):
    mask = pytest.importorskip("pycocotools.mask")
    corners, size = case
    runs = mask.frPyObjects([corners.ravel().tolist()], *size)[0]
    expected = decode(runs["size"], runs["counts"])
    np.testing.assert_array_equal(fill_polygon(corners, size), expected)
    np.testing.assert_array_equal(fill_runs(decompress(runs["counts"].decode()), size), expected)


def test_a_box_and_a_point():
    box = np.array([(2, 1), (5, 1), (5, 4), (2, 4)], float)
    expected = np.zeros((6, 7), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(fill_polygon(box, (6, 7)), expected)
    assert not fill_polygon(np.ones((4, 2)), (6, 7)).any()


def test_run_lengths_are_read_as_they_are_written():
    labels = np.random.default_rng(0).integers(0, 4, (23, 31)).astype(np.uint16)
    for label, counts in enumerate(run_lengths(labels, 4)):
        assert decompress(compress(counts)).tolist() == counts.tolist()
        np.testing.assert_array_equal(fill_runs(counts, labels.shape), labels == label)


@pytest.mark.parametrize(
    ("text", "message"), [(" ", "cannot be"), ("é", "cannot be"), ("P" * 20, "cannot"), ("P", "end")]
)
def test_damaged_strings(text, message):
    with pytest.raises(ValueError, match=message):
        decompress(text)


@pytest.mark.parametrize("counts", [[1, 2], [-1, 5], [1, 2, 3]])
def test_runs_that_do_not_fit(counts):
    with pytest.raises(ValueError, match="must sum to 2 × 2 pixels"):
        fill_runs(counts, (2, 2))
