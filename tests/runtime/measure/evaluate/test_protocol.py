import numpy as np
import pytest
from diffseg.measure.evaluate.protocol import Protocol, centre_square, prepare, resize_bilinear, resize_nearest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def test_the_centre_square_rounds_its_corner_down():
    array = np.arange(4 * 7).reshape(4, 7)
    np.testing.assert_array_equal(centre_square(array), array[:, 1:5])
    np.testing.assert_array_equal(centre_square(array.T), array.T[1:5])


@pytest.mark.parametrize("shape", [(30, 30), (333, 333), (640, 640), (512, 512)])
def test_images_are_resized_as_half_pixel_bilinear_without_antialiasing(shape):
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, (512, 512), mode="bilinear", align_corners=False)[0]
    found = resize_bilinear(pixels, (512, 512))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), atol=0.501)  # rounding, and nothing else


@given(st.integers(1, 700), st.integers(1, 700))
def test_labels_take_the_pixel_under_their_centre(size, target):
    labels = np.arange(size, dtype=np.uint16)[:, None]
    found = resize_nearest(labels, (target, 1))[:, 0]
    centre = (np.arange(target) + 0.5) * size / target
    # on the border of two pixels, float32 decides, as in TensorFlow
    assert np.all(np.abs(found + 0.5 - centre) <= 0.5 + 1e-3)


def test_protocols(photo):
    truth = np.tile(np.arange(200, dtype=np.uint8), (120, 1))
    picture, same = prepare(Image.fromarray(photo), truth, Protocol.FULL, (512, 512))
    assert picture.size == (200, 120)
    assert same is truth
    picture, square = prepare(Image.fromarray(photo), truth, Protocol.PAPER, (256, 256))
    assert picture.size == (256, 256)  # the network's
    assert square.shape == (512, 512)
    assert (square.min(), square.max()) == (40, 159)
