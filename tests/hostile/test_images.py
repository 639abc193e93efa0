"""Hostile images, through what opens images for both servers."""

import pytest
from diffseg.engines.errors import ImageError
from diffseg.image import read_image
from diffseg.serving.protocol import untrusted
from diffseg.serving.protocol.errors import RequestError
from diffseg.serving.protocol.headers import MOST_SCANS, check_structure
from diffseg.serving.protocol.untrusted import open_encoded

from tests.hostile.images import good, mutated, progressive, slow


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
