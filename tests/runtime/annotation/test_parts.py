import numpy as np
import pytest
from diffseg.annotation.parts import label_parts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

ndimage = pytest.importorskip("scipy.ndimage", reason="compares with scipy")


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_parts_are_those_of_scipy(mask):
    parts = label_parts(mask)
    expected, count = ndimage.label(mask)
    assert np.array_equal(parts, expected)
    assert parts.max() == count


def test_a_long_spiral_is_one_part():
    mask = np.zeros((101, 101), bool)
    for i in range(0, 50, 2):
        mask[i, i : 101 - i] = mask[100 - i, i : 101 - i] = mask[i : 101 - i, 100 - i] = True
        mask[i + 2 : 101 - i, i] = True
        mask[i + 2, i : i + 3] = True
    assert label_parts(mask).max() == ndimage.label(mask)[1]
