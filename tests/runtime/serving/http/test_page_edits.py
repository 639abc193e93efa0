"""Work on the masks in a real browser: pin, join, split, undo; zoom and pan; the legend and the range of the slider."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("websockets", reason="needs websockets, to speak to the browser")

from tests.coco import decode
from tests.runtime.serving.http.browser import find_browser
from tests.runtime.serving.http.page_helpers import TOLD, colours, labels, opened, slide, tool
from tests.runtime.serving.http.running import until
from tests.runtime.serving.samples import encoded

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium"),
]
ALT, SHIFT = 1, 8
SKY, GRASS, BLOCK = (0.1, 0.1), (0.1, 0.9), (0.5, 0.55)  # places in the fixture `photo`
SAYS = "document.getElementById('status').textContent"


def at(page, place, nth=0):
    found = np.array(labels(page, nth))
    return found[int(place[1] * found.shape[0]), int(place[0] * found.shape[1])]


def pinned(page):
    return set(page.run("[...state.panels[0].sheet.pinned]"))


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def page(server, open_page, picture):
    page = open_page(server.url)
    opened(page, picture)
    slide(page, "threshold", 0.05)
    yield page
    assert page.complaints == []


def test_a_pinned_mask_stays_as_it_is(page):
    before = np.array(labels(page))
    label = at(page, BLOCK)
    page.mouse("click", *BLOCK)
    page.until(f"{TOLD.format(0)}.startsWith('segment {label}: ') && {TOLD.format(0)}.endsWith('pinned')")
    assert pinned(page) == {label}
    pressed = page.run("[...document.querySelectorAll('.list [aria-pressed=true]')].map((b) => +b.dataset.label)")
    assert pressed == [label]
    np.testing.assert_array_equal(labels(page), before)
    slide(page, "threshold", page.run("+document.querySelector('[data-name=threshold]').max"))
    after = np.array(labels(page))
    np.testing.assert_array_equal(after == label, before == label)
    assert len(np.unique(after)) == 2  # the rest is one segment
    page.mouse("click", *BLOCK)
    assert pinned(page) == set()
    slide(page, "anchors", 9)
    assert len(np.unique(labels(page))) == 1


def test_shift_joins(page):
    before = np.array(labels(page))
    sky, grass = at(page, SKY), at(page, GRASS)
    page.mouse("click", *SKY)
    page.mouse("click", *GRASS, modifiers=SHIFT)
    page.until(f"{SAYS} === 'segment {grass} was joined to segment {sky}'")
    np.testing.assert_array_equal(labels(page), np.where(before == grass, sky, before))
    assert pinned(page) == {sky}
    assert (
        page.run(TOLD.format(0))
        == f"segment {sky}: {100 * np.isin(before, (sky, grass)).mean():.1f} % of the image, pinned"
    )


def test_the_mode_joins_without_a_keyboard(page):
    before = np.array(labels(page))
    sky, grass = at(page, SKY), at(page, GRASS)
    tool(page, "join")
    page.tap(*SKY)
    page.until(f"{SAYS}.startsWith('segment {sky} is pinned')")
    page.tap(*GRASS)
    page.until(f"{SAYS} === 'segment {grass} was joined to segment {sky}'")
    np.testing.assert_array_equal(labels(page), np.where(before == grass, sky, before))


def test_alt_splits_at_the_largest_threshold_that_does(page, server, picture):
    slide(page, "threshold", page.run("+document.querySelector('[data-name=threshold]').max"))
    assert len(np.unique(labels(page))) == 1
    threshold = page.run("state.panels[0].values().threshold")
    page.mouse("click", *BLOCK, modifiers=ALT)
    page.until(f"{SAYS}.includes('was split into')")
    parts = np.array(labels(page))
    with Image.open(picture) as image:
        kept = server.service.segmenter(image, keep_attention=True)
    finer = next(
        found
        for step in range(1, 13)
        if len((found := kept.resegment(threshold * 0.8**step)).segments) > 1
        and sorted(s.area for s in found.segments)[-2] >= 0.02 * parts.size
    )
    assert f"split into {len(np.unique(parts))}" in page.status
    large = [s.label for s in finer.segments if s.area >= 0.02 * parts.size]
    assert len(np.unique(parts)) == len(large)
    for label in large[1:]:
        mask = finer.labels == label
        assert len(np.unique(parts[mask])) == 1
        np.testing.assert_array_equal(parts == parts[mask][0], mask)
    assert pinned(page) == set(np.unique(parts).tolist())


def test_a_mask_without_parts_is_left_whole(serve, open_page, tmp_path):
    path = tmp_path / "plain.png"
    path.write_bytes(encoded(np.full((60, 100, 3), 90, np.uint8)))
    page = open_page(serve().url)
    opened(page, path)
    tool(page, "split")
    page.mouse("click", 0.5, 0.5)
    page.until(f"{SAYS} === 'segment 0 has no parts that can be told apart'")
    assert page.run("document.getElementById('undo').disabled")
    assert page.complaints == []


def test_undo_goes_back_step_by_step(page):
    before, drawn = np.array(labels(page)), colours(page)
    threshold = page.run("state.panels[0].values().threshold")
    page.mouse("click", *SKY)
    page.mouse("click", *GRASS, modifiers=SHIFT)
    joined = np.array(labels(page))
    slide(page, "threshold", 0.4, events=["input", "input", "change"])
    assert page.run("state.panels[0].values().threshold") == 0.4
    page.mouse("click", 0.5, 0.5, "#undo")  # the slider, with all of its movements
    np.testing.assert_array_equal(labels(page), joined)
    assert page.run("state.panels[0].values().threshold") == threshold
    page.call("Input.dispatchKeyEvent", type="keyDown", key="z", code="KeyZ", windowsVirtualKeyCode=90, modifiers=2)
    np.testing.assert_array_equal(labels(page), before)
    page.mouse("click", 0.5, 0.5, "#undo")
    assert pinned(page) == set()
    page.mouse("move", 0.5, 0.5, "h1")
    page.until("state.panels[0].chosen === -1")
    assert colours(page) == drawn
    page.mouse("click", 0.5, 0.5, "#undo")  # the slider that the fixture moved
    assert page.run("document.getElementById('undo').disabled")


def test_edited_masks_are_downloaded_as_they_are_shown(page, tmp_path):
    page.mouse("click", *SKY)
    page.mouse("click", *GRASS, modifiers=SHIFT)
    shown = np.array(labels(page))
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    files = {"labels": "photo.labels.png", "json": "photo.json", "overlay": "photo.overlay.png"}
    for what, name in files.items():
        page.mouse("click", 0.5, 0.5, f"[data-do={what}]")
        until((tmp_path / "downloads" / name).is_file, name)
    with Image.open(io.BytesIO((tmp_path / "downloads" / "photo.labels.png").read_bytes())) as image:
        found = np.asarray(image)
        assert image.mode == "L"
    order = page.run("state.panels[0].sheet.segments.map((s) => s.label)")
    np.testing.assert_array_equal(np.array(order)[found], shown)
    masks = json.loads((tmp_path / "downloads" / "photo.json").read_text())
    assert masks["edited"] is True
    assert [s["label"] for s in masks["segments"]] == list(range(len(order)))
    for segment in masks["segments"]:
        mask = decode(**segment["segmentation"])
        np.testing.assert_array_equal(mask, found == segment["label"])
        assert segment["area"] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert segment["bbox"] == [int(n) for n in box]


def test_many_labels_make_a_png_of_16_bits(page):
    page.run(
        "greyPng(Uint16Array.from({length: 600}, (_, i) => i), {width: 30, height: 20})"
        ".then((blob) => blob.arrayBuffer()).then((data) => { window.made = [...new Uint8Array(data)]; })"
    )
    with Image.open(io.BytesIO(bytes(page.run("window.made")))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.arange(600).reshape(20, 30))


def test_zoom_and_pan(page):
    fit = page.run("document.querySelector('canvas').getBoundingClientRect().width")
    page.mouse("click", 0.5, 0.5, "[data-zoom='2']")
    page.mouse("click", 0.5, 0.5, "[data-zoom='2']")
    assert page.run("document.getElementById('scale').value") == "400 %"
    assert page.run("document.querySelector('canvas').getBoundingClientRect().width") == pytest.approx(4 * fit)
    assert page.run("document.querySelector('.frame').getBoundingClientRect().width") == pytest.approx(fit)

    # a drag moves the image, and is no click
    x, y, width, height = page._box(".frame", 0)
    middle = {"x": x + width / 2, "y": y + height / 2}
    view = page.run("[view.x, view.y]")
    page.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **middle)
    for step in (20, 40, 60):
        page.call(
            "Input.dispatchMouseEvent", type="mouseMoved", button="left", x=middle["x"] + step, y=middle["y"] + step
        )
    page.call(
        "Input.dispatchMouseEvent",
        type="mouseReleased",
        button="left",
        x=middle["x"] + 60,
        y=middle["y"] + 60,
        clickCount=1,
    )
    assert page.run("[view.x, view.y]") == pytest.approx([view[0] + 60 / width, view[1] + 60 / height])
    assert pinned(page) == set()

    # the wheel with Ctrl zooms about the pointer
    before = page.run(f"[({middle['x'] - x} / {width} - view.x) / view.scale, view.scale]")
    page.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=-100, modifiers=2, **middle)
    page.until(f"view.scale > {before[1]}")
    assert page.run(f"({middle['x'] - x} / {width} - view.x) / view.scale") == pytest.approx(before[0])

    # a click hits what is under it
    page.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **middle)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **middle)
    place = page.run("[(0.5 - view.x) / view.scale, (0.5 - view.y) / view.scale]")
    assert pinned(page) == {at(page, place)}
    page.press("0")
    assert page.run("[view.scale, view.x, view.y]") == [1, 0, 0]
    page.press("+")
    assert page.run("view.scale") == 2


def test_two_fingers_zoom(serve, open_page, picture):
    page = open_page(serve().url, width=360, height=740, phone=True)
    opened(page, picture)
    x, y, width, height = page._box(".frame", 0)

    def touch(kind, *points):
        points = [{"x": x + width * px, "y": y + height * py, "id": i} for i, (px, py) in enumerate(points)]
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", (0.4, 0.5), (0.6, 0.5))
    for reach in (0.12, 0.2, 0.3):
        touch("touchMove", (0.5 - reach, 0.5), (0.5 + reach, 0.5))
    touch("touchEnd")
    page.until("view.scale > 1.5")
    assert pinned(page) == set()
    assert page.run("document.documentElement.scrollWidth") <= 360


def test_the_legend_has_the_colours_of_the_image(page):
    for opacity in (0.5, 0.9):
        page.run(
            f"(() => {{ const e = document.getElementById('opacity'); e.value = {opacity};"
            " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        page.mouse("move", 0.5, 0.5, "h1")
        drawn = np.array(page.run("[...state.panels[0].context.getImageData(0, 0, 600, 360).data]"), int).reshape(
            360, 600, 4
        )
        found = np.array(labels(page))
        inner = np.ones_like(found, bool)
        inner[:, 1:] &= found[:, 1:] == found[:, :-1]
        inner[1:] &= found[1:] == found[:-1]
        swatches = page.run(
            "[...document.querySelectorAll('.swatch')].map((e) => [+e.dataset.label, e.style.background])"
        )
        assert len(swatches) == len(np.unique(found))
        for label, style in swatches:
            colour = [int(n) for n in re.findall(r"\d+", style)]
            mean = drawn[(found == label) & inner][:, :3].mean(0)
            assert np.abs(mean - colour).max() < 4


def test_the_slider_ends_where_one_segment_is_left(server, open_page, picture):
    page = open_page(server.url)
    opened(page, picture)
    most = page.run("+document.querySelector('[data-name=threshold]').max")
    with Image.open(picture) as image:
        kept = server.service.segmenter(image, keep_attention=True)
    default = kept.settings.thresholds[0]
    assert len(kept.resegment(most).segments) == 1
    assert most <= max(default, 0.1) or len(kept.resegment(0.85 * most - 0.05).segments) > 1
    assert page.run("state.panels[0].values().threshold") == default  # what the masks were made with
