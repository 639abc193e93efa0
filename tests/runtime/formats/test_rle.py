"""Run lengths compared with pycocotools, which defines the format."""

import numpy as np
import pytest
from diffseg.formats.rle import compress, run_lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coco import decode


@st.composite
def label_maps(draw):
    height, width, count = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    labels = np.random.default_rng(draw(st.integers(0, 999))).integers(0, count, (height, width))
    scale = draw(st.sampled_from([1, 1, 7]))
    return labels.repeat(scale, 0).repeat(scale, 1).astype(np.uint16), count


@settings(deadline=None)
@given(label_maps())
def test_as_pycocotools_has_it(case):
    mask = pytest.importorskip("pycocotools.mask")
    labels, count = case
    for label, counts in enumerate(run_lengths(labels, count)):
        expected = mask.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        assert compress(counts).encode() == expected["counts"]
        size = list(labels.shape)
        assert mask.area(mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)) == (labels == label).sum()


@given(label_maps())
def test_counts_cover_the_picture_and_come_back(case):
    labels, count = case
    for label, counts in enumerate(run_lengths(labels, count)):
        assert counts.sum() == labels.size
        assert (counts[1:] > 0).all()
        assert counts[1::2].sum() == (labels == label).sum()
        decoded = decode(list(labels.shape), compress(counts))
        np.testing.assert_array_equal(decoded, labels == label)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
def test_counts_of_any_size(counts):
    mask = pytest.importorskip("pycocotools.mask")
    expected = mask.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, 1)["counts"]
    assert compress(np.array(counts)).encode() == expected
