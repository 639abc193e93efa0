"""Small label maps with their labels, for tests of measures."""

import numpy as np
from diffseg.measure.overlap import VOID
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

CLASSES = 5


@st.composite
def labelled(draw, masks=4, classes=CLASSES - 1):
    """Truth with some void, not all of it, and labels, of the same small shape."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9))
    truth = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(classes), VOID])))
    labels = draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, masks - 1)))
    assume((truth != VOID).any())
    return truth, labels
