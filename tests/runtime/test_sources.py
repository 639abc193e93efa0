"""Images from memory: bytes, open files, and arrays of every library."""

import array
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffseg import Segmenter
from diffseg.engines.errors import ImageError
from diffseg.engines.examples import example_images
from diffseg.image import read_image
from PIL import Image

from tests.runtime.doubles import LendingNetwork


def encoded(photo, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, kind)
    return stream


def read(source, **options):
    return np.asarray(read_image(source, **options))


class OnlyDlpack:
    """An array of a library that NumPy does not know."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def test_bytes_and_open_files_are_read_as_paths_are(photo, tmp_path):
    stream = encoded(photo)  # at its end, as after writing
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    with path.open("rb") as file:
        for source in (stream.getvalue(), bytearray(stream.getvalue()), memoryview(stream.getvalue()), stream, file):
            np.testing.assert_array_equal(read(source), photo)
        assert not file.closed
    assert not stream.closed
    np.testing.assert_array_equal(read(os.fspath(path)), photo)


def test_a_stream_that_cannot_seek(photo, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(photo).getvalue())
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        os.write(writer, encoded(photo).getvalue())
        os.close(writer)
        np.testing.assert_array_equal(read(stream), photo)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays_of_every_depth_and_shape(dtype, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if shape[-1] == 4:
        values[..., 3] = 255
    scale = {"u": 1 if np.dtype(dtype).itemsize == 1 else 257, "f": 1 / 255}[np.dtype(dtype).kind]
    found = read((values.astype(np.float64) * scale).astype(dtype))
    colours = values[..., :3] if values.ndim == 3 else values[..., None]
    np.testing.assert_array_equal(found, np.broadcast_to(colours, (4, 6, 3)))


def test_the_fourth_channel_is_opacity(photo):
    clear = np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    assert (read(clear) == 255).all()


def test_arrays_of_opencv_have_blue_first(photo, tmp_path):
    np.testing.assert_array_equal(read(photo[..., ::-1], channel_order="bgr"), photo)
    opaque = np.full((*photo.shape[:2], 1), 255, np.uint8)
    np.testing.assert_array_equal(read(np.dstack([photo[..., ::-1], opaque]), channel_order="bgr"), photo)
    np.testing.assert_array_equal(read(photo[..., 0], channel_order="bgr")[..., 2], photo[..., 0])
    np.testing.assert_array_equal(read(encoded(photo).getvalue(), channel_order="bgr"), photo)
    with pytest.raises(ValueError, match="channel_order must be rgb or bgr, found 'gbr'"):
        read(photo, channel_order="gbr")


def test_tensors_and_arrays_of_other_libraries(photo):
    tensor = torch.from_numpy(photo)
    sources = [tensor, tensor.float().div(255).requires_grad_(), OnlyDlpack(tensor), np.ma.masked_array(photo)]
    for source in sources:
        np.testing.assert_array_equal(read(source), photo)


def test_an_array_on_a_gpu_is_copied_to_the_host(photo):
    class Elsewhere:
        """As CuPy's arrays: `get` copies, and an implicit conversion is an error."""

        __cuda_array_interface__ = {"version": 3}  # noqa: RUF012

        def __array__(self, *_, **__):
            raise TypeError("implicit conversion is not allowed")

        def get(self):
            return photo

    np.testing.assert_array_equal(read(Elsewhere()), photo)


SHAPES = r"\(H, W\), \(H, W, 1\), \(H, W, 3\) or \(H, W, 4\) of uint8, uint16 or float \(0 to 1\)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), f"an array must be {SHAPES}, found uint8 \\(4, 4, 2\\)$"),
        (np.zeros((3, 480, 640), np.float32), r"found float32 \(3, 480, 640\); move the channels to the last axis$"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"found uint8 \(2, 4, 4, 3\); pass the images of a batch as a list$"),
        (np.zeros((0, 4, 3), np.uint8), r"found uint8 \(0, 4, 3\), which has no pixels$"),
        (np.zeros((4, 4, 3), np.int64), r"found int64 \(4, 4, 3\); convert its values$"),
        (np.zeros((4, 4, 3), bool), "found bool"),
        (np.full((4, 4, 3), 200.0), "floats must be from 0 to 1, found 200 to 200; divide by 255$"),
        (np.full((4, 4, 3), -1.0), "floats must be from 0 to 1, found -1 to -1$"),
        (np.full((4, 4, 3), np.nan), "floats must be from 0 to 1, found nan to nan$"),
        (torch.zeros((4, 4, 3), dtype=torch.bfloat16), r"a torch.Tensor could not be converted to a NumPy array \(Got"),
        (7, "an image must be a path, bytes, an open file, a PIL image or an array, found int$"),
        ({"image": 1}, "found dict$"),
        (io.StringIO("text"), "image: the file must be open in binary mode"),
        (b"", "image: an empty file$"),
        (io.BytesIO(b"hello"), r"image: not an image \(AVIF, BMP"),
        ("https://example.org/a.jpg", "no such file; download it first, and pass its bytes$"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_wrong_source_gets_one_line_that_says_what_was_found(wrong, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(wrong)
    assert "\n" not in str(caught.value)


def test_a_closed_file(photo):
    stream = encoded(photo)
    stream.close()
    with pytest.raises(ImageError, match="image: cannot be read .*closed"):
        read_image(stream)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7\n", "a PDF; convert its pages to images first"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video; extract its frames"),
        (b"\x1a\x45\xdf\xa3\x9f", "a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video"),
        (b"\0\0\1\xba\x44", "a video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF image"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "a vector drawing"),
    ],
)
def test_videos_and_documents_are_named(head, what, tmp_path):
    path = tmp_path / "file.jpg"
    path.write_bytes(head + bytes(99))
    for source, name in ((path, str(path)), (path.read_bytes(), "image")):
        with pytest.raises(ImageError, match=f"^{name}: {what}"):
            read_image(source)


def test_bytes_are_not_given_to_decoders_that_start_programs(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not an image"):
        read_image(postscript)


def test_a_generator_gives_a_list_and_every_kind_the_same_masks(fake_bundle):
    segmenter = Segmenter(fake_bundle, LendingNetwork(), batch=2)
    path = example_images()[0]
    expected = segmenter(path)
    pixels = np.asarray(read_image(path))
    sources = [path.read_bytes(), torch.from_numpy(pixels.copy()), pixels[..., ::-1]]
    assert segmenter(io.BytesIO(sources[0])) == expected
    assert segmenter(sources[2], channel_order="bgr") == expected
    for many in (sources[:2], tuple(sources[:2]), (source for source in sources[:2]), iter(sources[:2])):
        found = segmenter(many)
        assert isinstance(found, list)
        assert found == [expected, expected]
    assert segmenter(Path("x") for _ in ()) == []
    assert [result for _, result in segmenter.stream([pixels[..., ::-1]], channel_order="bgr")] == [expected]
    with pytest.raises(ImageError, match="found array"):
        segmenter(array.array("B", [1, 2]))
