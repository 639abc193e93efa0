"""Labelled images and label maps, for tests of measures."""

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


def draw_sample(number, size=(96, 64)):
    """An image (W, H) of sky, ground and a box, and its classes 0, 1, 2 with a void frame."""
    width, height = size
    rng = np.random.default_rng(number)
    truth = np.zeros((height, width), np.uint8)
    truth[height // 2 :] = 1
    left = int(rng.integers(10, width // 2))
    truth[height // 4 : height * 3 // 4, left : left + width // 3] = 2
    colours = np.array([(90, 150, 230), (60, 140, 50), (200, 60, 40)], np.uint8)
    picture = colours[truth] + rng.integers(0, 12, (height, width, 3)).astype(np.uint8)
    truth[:2] = 255
    return picture, truth
