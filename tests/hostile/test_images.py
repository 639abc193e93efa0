"""Hostile images, through what opens images for both servers."""

import struct

import pytest
from diffseg.engines.errors import ImageError
from diffseg.image import read_image
from diffseg.serving.protocol import image_structure, untrusted
from diffseg.serving.protocol.errors import RequestError
from diffseg.serving.protocol.image_structure import MOST_SCANS, check_structure
from diffseg.serving.protocol.untrusted import open_encoded
from PIL import Image

from tests.hostile.images import encode, good, mutated, progressive, slow


@pytest.mark.parametrize(("name", "data"), [pytest.param(*case, id=case[0]) for case in slow()])
def test_what_takes_long_is_refused_before_pillow_sees_it(name, data, monkeypatch):
    opened = []
    lazily = untrusted.open_lazily
    monkeypatch.setattr(untrusted, "open_lazily", lambda *a: opened.append(name) or lazily(*a))
    with pytest.raises((ImageError, RequestError)) as error:
        open_encoded(data, 50_000_000)
    assert "\n" not in str(error.value)
    assert not opened or name == "strip"  # its header says all


def test_good_images_are_taken():
    for name, data in good():
        assert read_image(open_encoded(data, 10_000)).size == (24, 24), name
    check_structure(progressive(MOST_SCANS - 20))
    with pytest.raises(ImageError, match="scans"):
        check_structure(progressive(MOST_SCANS))


def test_mutated_images_are_decoded_or_refused_in_one_line():
    outcomes = {"taken": 0, "refused": 0}
    for name, data in mutated(400):
        try:
            assert read_image(open_encoded(data, 1_000_000)).mode == "RGB", name
            outcomes["taken"] += 1
        except (ImageError, RequestError) as error:
            outcomes["refused"] += 1
            lines = str(error).splitlines()
            if len(lines) != 1:
                pytest.fail(f"{name}: {lines}")
    assert outcomes["refused"] > 50
    assert outcomes["taken"] > 50


def test_truncated_structures_are_left_to_pillow():
    for _, data in good():
        for size in range(min(len(data), 400)):
            check_structure(data[:size])


def tiff(order, big, *entries):
    """The head of a TIFF with one directory of entries: tag, kind and number of values."""
    start = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return (
        (b"II" if order == "<" else b"MM")
        + start
        + count
        + b"".join(struct.pack(order + ("HHQQ" if big else "HHII"), *entry, 0) for entry in entries)
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_the_directory_of_a_tiff_is_read_in_every_form(order, big):
    check_structure(tiff(order, big, (273, 4, image_structure.MOST_STRIPS), (700, 1, 100)))
    with pytest.raises(ImageError, match="strips"):
        check_structure(tiff(order, big, (700, 1, 100), (273, 4, image_structure.MOST_STRIPS + 1)))
    check_structure(tiff(order, big, (700, 12, image_structure.MOST_METADATA // 8)))
    with pytest.raises(ImageError, match="metadata"):
        check_structure(tiff(order, big, (700, 12, image_structure.MOST_METADATA // 8), (701, 1, 1)))
    with pytest.raises(ImageError, match="tags"):
        check_structure(tiff(order, big, *[(256, 3, 1)] * (image_structure.MOST_PARTS // 10 + 1)))
    check_structure(tiff(order, big, *[(256, 3, 1)] * (image_structure.MOST_PARTS // 10)))


def test_limits_of_structures_are_exact():
    text = b"P3\n9 9\n255\n"
    check_structure(text + b"1" * (image_structure.MOST_PLAIN - len(text)))
    with pytest.raises(ImageError, match="1,000,000 bytes"):
        check_structure(text + b"1" * (image_structure.MOST_PLAIN - len(text) + 1))
    gif = encode(Image.new("P", (16, 16)), "GIF")
    first = gif.index(b"\x2c", 13 + 3 * 2)
    # A long comment of large blocks: each is passed over as a whole.
    check_structure(gif[:first] + b"!\xfe" + (b"\xff" + b"\x01" * 255) * 11_000 + b"\x00" + gif[first:])
    with pytest.raises(ImageError, match="blocks"):
        check_structure(gif[:first] + b"!\xfe" + (b"\x01\x01") * image_structure.MOST_PARTS + b"\x00" + gif[first:])
