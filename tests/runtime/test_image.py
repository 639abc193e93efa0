"""Decoding of all kinds of images, and of files that only look like images."""

import io
import struct
import zlib

import numpy as np
import pytest
from diffseg.engines.errors import ImageError
from diffseg.image import fit_image, read_image
from diffseg.labels import Segment, place_labels
from diffseg.placement import Placement, is_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

GREY = np.linspace(0, 255, 64 * 48).reshape(48, 64)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right: the left edge becomes the top
    upright = read_image(saved(tmp_path, image, "turned.png", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 3)) == (255, 0, 0)
    assert upright.getpixel((10, 30)) == (0, 0, 0)


def test_cmyk(tmp_path):
    image = read_image(saved(tmp_path, Image.new("RGB", (32, 32), (200, 30, 60)).convert("CMYK"), "a.jpg", quality=95))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - (200, 30, 60)).max() < 12


def test_palette_and_its_transparency(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert read_image(saved(tmp_path, image, "a.png")).getpixel((0, 0)) == (0, 0, 255)
    assert read_image(saved(tmp_path, image, "b.png", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(saved(tmp_path, image, "c.gif")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert read_image(saved(tmp_path, image, "a.png")).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["I;16", "I", "F", "F of 0 to 1", "L", "1"])
def test_greys_of_any_depth_keep_their_tones(tmp_path, kind):
    match kind:
        case "I;16":
            path = saved(tmp_path, Image.fromarray((GREY * 257).astype(np.uint16)), "a.png")
        case "I":
            path = saved(tmp_path, Image.fromarray((GREY * 257).astype(np.int32)), "a.tif")
        case "F":
            path = saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "a.tif")
        case "F of 0 to 1":
            path = saved(tmp_path, Image.fromarray((GREY / 255).astype(np.float32)), "a.tif")
        case "L":
            path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint8)), "a.png")
        case "1":
            image = read_image(saved(tmp_path, Image.fromarray(GREY > 127), "a.png"))
            assert set(np.unique(image)) == {0, 255}
            return
    image = np.asarray(read_image(path), float)
    assert image.shape == (48, 64, 3)
    assert np.abs(image - GREY[..., None]).max() <= 1.5


@pytest.mark.parametrize("size", [(1, 1), (2000, 50), (50, 2000), (1, 400)])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_extreme_shapes_fit_and_map_back(size, fit):
    pixels, placement = fit_image(Image.new("RGB", size, (9, 8, 7)), (64, 128), fit)
    assert pixels.shape == (64, 128, 3)
    assert pixels.dtype == np.uint8
    rows, columns = placement.indices()
    assert (len(columns), len(rows)) == size


def test_a_photograph_of_100_megapixels_is_welcome(tmp_path):
    path = saved(tmp_path, Image.new("L", (12_500, 8_000), 50), "huge.png", compress_level=1)
    image = read_image(path)
    assert image.size == (12_500, 8_000)
    assert fit_image(image, (64, 64))[0].max() == 50


def test_a_decompression_bomb_is_an_error_before_it_is_decoded(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match=r"bomb.png: .*3600000000 pixels.*scale it down"):
        read_image(path)


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"hello, world\n" * 9, "not an image"),
        (jpeg()[:3000], "cannot be decoded .*truncated"),
        (jpeg()[:3], "not an image"),
    ],
)
def test_what_only_looks_like_an_image_is_one_clear_line(tmp_path, data, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"photo.jpg: {message}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "nope.jpg")
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.int64), np.zeros((0, 4, 3), np.uint8), 7, None]
)
def test_what_is_no_image_in_memory(wrong):
    with pytest.raises(ImageError, match="found"):
        read_image(wrong)


def test_a_picture_without_pixels():
    with pytest.raises(ImageError, match="must have pixels"):
        read_image(Image.new("RGB", (0, 5)))


def test_a_transparent_colour_is_laid_over_white(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 8), (255, 0, 0)), "key.png", transparency=(255, 0, 0))
    assert read_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_images_and_arrays_in_memory(photo):
    for source in (photo, Image.fromarray(photo), Image.fromarray(photo).convert("RGBA")):
        np.testing.assert_array_equal(np.asarray(read_image(source)), photo)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["stretch", "crop", "pad"]))
def test_every_picture_pixel_reads_the_model_pixel_that_shows_it(height, width, fit):
    """A ramp goes in; read back through the placement, it must come out where it was."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 250, width)[None]
    ramp[..., 1] = np.linspace(0, 250, height)[:, None]
    pixels, placement = fit_image(Image.fromarray(ramp), (256, 192), fit)
    rows, columns = placement.indices()
    back = pixels[rows[:, None], columns[None]].astype(int)
    difference = np.abs(back - ramp)[..., :2]
    if fit == "crop":
        top, left = int(np.ceil(placement.top)), int(np.ceil(placement.left))
        bottom, right = int(placement.top + placement.height), int(placement.left + placement.width)
        difference = difference[top:bottom, left:right]
    tolerance = 4 + 260 / min(height, width) + (260 / 50 if fit == "stretch" else 260 / 20)
    if difference.size and min(height, width) > 20:
        assert difference.max() <= tolerance


def test_an_unknown_fit_is_refused(photo):
    with pytest.raises(ValueError, match="fit must be"):
        fit_image(Image.fromarray(photo), (64, 64), "cover")


def seen_pixels(placement):
    """Whether the centre of each pixel is within the box; the middle one where the box has no centre."""
    inside = []
    spans = (placement.top, placement.height), (placement.left, placement.width)
    for count, (start, length) in zip(placement.image_size, spans, strict=True):
        centres = np.arange(count) + 0.5
        within = (centres >= start) & (centres < start + length)
        if not within.any():
            within[int(start + length / 2)] = True
        inside.append(within)
    return inside[0][:, None] & inside[1][None, :]


def placed_one_mask_at_a_time(labels, placement):
    """The definition: resize, then look at the mask of each label that is left. The last one is what is unseen."""
    rows, columns = placement.indices()
    large = labels[rows[:, None], columns[None, :]].astype(int)
    large[~seen_pixels(placement)] = 70_000
    kept, placed = np.unique(large, return_inverse=True)
    segments = []
    for label in range(len(kept)):
        y, x = np.nonzero(placed.reshape(large.shape) == label)
        box = int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1
        segments.append(Segment(label, len(y), box))
    return placed.reshape(large.shape), tuple(sorted(segments, key=lambda s: (-s.area, s.label)))


@settings(deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["stretch", "crop", "pad"]),
    st.sampled_from([(1, 1), (16, 16), (24, 40)]),
    st.integers(1, 9),
    st.sampled_from([1, 3, 8]),
    st.integers(0, 10_000),
)
def test_placed_labels_are_those_of_one_mask_at_a_time(height, width, fit, size, count, cell, seed):
    """Blocks of labels with gaps in their numbering; in small images some labels are lost."""
    _, placement = fit_image(Image.new("RGB", (width, height)), size, fit)
    coarse = 7 * np.random.default_rng(seed).integers(0, count, (size[0] // cell + 1, size[1] // cell + 1))
    labels = np.kron(coarse, np.ones((cell, cell)))[: size[0], : size[1]].astype(np.uint16)
    placed, segments = place_labels(labels, placement)
    expected, expected_segments = placed_one_mask_at_a_time(labels, placement)
    np.testing.assert_array_equal(placed, expected)
    assert placed.dtype == np.uint16
    assert placed.flags.c_contiguous
    assert segments == expected_segments
    assert all(type(number) is int for s in segments for number in (s.label, s.area, *s.bbox))


def test_the_largest_labels_are_placed():
    labels = np.arange(65_536, dtype=np.uint16)[::-1].reshape(256, 256)
    placed, segments = place_labels(labels, Placement((256, 256), (256, 256), 0, 0, 256, 256))
    np.testing.assert_array_equal(placed, labels)
    assert segments[0] == Segment(0, 1, (255, 255, 1, 1))
    assert len(segments) == 65_536


@pytest.mark.parametrize(("size", "unseen"), [((100, 60), 40 * 60), ((60, 100), 40 * 60), ((80, 80), 0)])
def test_what_a_crop_does_not_see_has_a_label_of_its_own(size, unseen):
    _, placement = fit_image(Image.new("RGB", size), (32, 32), "crop")
    labels = np.zeros((32, 32), np.uint16)
    labels[:, 16:] = 1
    placed, segments = place_labels(labels, placement)
    assert placement.hides == (unseen > 0)
    assert (placed == 2).sum() == unseen
    assert len(segments) == 2 + (unseen > 0)
    if unseen:
        assert Segment(2, unseen, (0, 0, *size)) in segments
        middle = placed[size[1] // 2, size[0] // 2 - 20 : size[0] // 2 + 20]
        assert set(middle.tolist()) == {0, 1}


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_other_fits_see_the_whole_image(fit):
    assert not fit_image(Image.new("RGB", (97, 31)), (32, 32), fit)[1].hides


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["stretch", "crop", "pad"]),
    st.sampled_from([0, 127, 200]),
)
def test_an_image_of_one_colour_is_plain_and_any_other_is_not(height, width, fit, grey):
    image = Image.new("RGB", (width, height), (grey, 90, grey))
    assert is_plain(*fit_image(image, (64, 48), fit))
    if min(height, width) > 20:
        image.paste((255, 0, 0), (width // 2 - 4, height // 2 - 4, width // 2 + 5, height // 2 + 5))
        assert not is_plain(*fit_image(image, (64, 48), fit))
