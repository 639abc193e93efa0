"""The page in a real browser, on a network without weights."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from diffseg.serving.http.document import page_document
from diffseg.serving.http.responses import shrunk
from PIL import Image

from tests.runtime.serving.samples import encoded

pytest.importorskip("websockets", reason="needs websockets, to speak to the browser")

from tests.runtime.serving.http.browser import find_browser
from tests.runtime.serving.http.page_helpers import DONE, FAILED, RENEWED, TOLD, colours, opened, slide, tool
from tests.runtime.serving.http.running import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium"),
]


def test_an_image_from_choice_to_download(serve, open_page, picture, tmp_path):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    with Image.open(picture) as image:
        expected = server.service.segmenter(image, keep_attention=True)
    assert page.status.startswith(f"{len(expected.segments)} segments in")
    shares = page.run("[...document.querySelectorAll('.list button')].map((b) => b.textContent)")
    assert shares == [f"{100 * s.area / expected.labels.size:.1f} %" for s in expected.segments]

    # the overlay on the canvas is the one that the package draws, but for rounding
    drawn = page.run("[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 600, 360).data]")
    found = np.array(drawn, int).reshape(360, 600, 4)[..., :3]
    assert np.abs(found - np.asarray(expected.overlay(), int)).max() <= 2

    # hovering names the segment under the pointer
    page.mouse("move", 0.5, 0.5)
    label = expected.labels[180, 300]
    page.until(f"{TOLD.format(0)}.startsWith('segment {label}: ')")

    # a slider gives new masks without the network
    passes = len(server.service.segmenter.network.passes)
    slide(page, "threshold", 0.05)
    assert page.status.startswith(f"{len(expected.resegment(0.05).segments)} segments; new masks in")
    slide(page, "anchors", 2)
    assert page.status.startswith(f"{len(expected.resegment(0.05, anchors=2).segments)} segments")
    assert len(server.service.segmenter.network.passes) == passes

    # in its mode, a click shows where the place looks; a button leads back
    masks = colours(page)
    tool(page, "look")
    page.mouse("click", 0.2, 0.8)
    page.until("!document.querySelector('[data-do=masks]').hidden")
    assert "attention of the point at 20 %, 80 %" in page.run(TOLD.format(0))
    assert colours(page) != masks
    page.mouse("click", 0.5, 0.5, "[data-do=masks]")
    page.until("document.querySelector('[data-do=masks]').hidden && state.tool === 'pin'")

    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    for what, name in (("overlay", "photo.overlay.png"), ("labels", "photo.labels.png"), ("json", "photo.json")):
        page.mouse("click", 0.5, 0.5, f"[data-do={what}]")
        until((tmp_path / "downloads" / name).is_file, name)
    final = expected.resegment(0.05, anchors=2)
    with Image.open(io.BytesIO((tmp_path / "downloads" / "photo.labels.png").read_bytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), final.labels)
    with Image.open(io.BytesIO((tmp_path / "downloads" / "photo.overlay.png").read_bytes())) as image:
        assert image.size == final.image.size
    assert page.complaints == []  # neither errors nor violations of the content-security policy


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_an_image_larger_than_the_canvas(serve, open_page, photo, tmp_path, turned):
    """The first masks show the whole image, and are those that the same settings give again."""
    pixels = photo.repeat(7, 0).repeat(7, 1)  # (840, 1400, 3)
    path = tmp_path / "large.png"
    path.write_bytes(encoded(np.ascontiguousarray(pixels.swapaxes(0, 1) if turned else pixels)))
    server = serve()
    page = open_page(server.url)
    page.choose(path)
    page.until(DONE)
    with Image.open(path) as image:
        kept = server.service.segmenter(image, keep_attention=True)
    small = kept.attention.placed(shrunk(kept.attention.placement, 1024))
    expected = replace(kept, attention=small).resegment()
    for _ in range(2):
        assert page.run("[state.panels[0].canvas.height, state.panels[0].canvas.width]") == list(expected.labels.shape)
        np.testing.assert_array_equal(page.run("[...state.panels[0].labels]"), expected.labels.ravel())
        slide(page, "anchors", kept.settings.anchors)
    assert page.complaints == []


def test_a_moving_slider_does_without_refinement(serve, open_page, picture):
    server = serve()
    asked = []
    renew = server.service.resegment

    async def resegment(request, kept, settings):
        asked.append((settings.thresholds[0], settings.refine))
        return await renew(request, kept, settings)

    server.service.resegment = resegment
    page = open_page(server.url)
    opened(page, picture)
    asked.clear()
    slide(page, "refine", "colour")
    slide(page, "threshold", 0.4, events=["input"])
    slide(page, "threshold", 0.4, events=["change"])
    assert asked[0][1] == "colour"
    assert asked[1:] == [(0.4, "none"), (0.4, "colour")]
    assert page.complaints == []


def test_two_settings_side_by_side(serve, open_page, picture):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    page.mouse("click", 0.5, 0.5, "#compare")
    page.until("document.querySelectorAll('.panel').length === 2")
    page.until(RENEWED)
    slide(page, "threshold", 2, nth=1)
    with Image.open(picture) as image:
        default = server.service.segmenter(image, keep_attention=True)
    for nth, result in enumerate((default, default.resegment(2))):
        page.until(f"document.querySelectorAll('.list')[{nth}].children.length === {len(result.segments)}")
    assert len(default.segments) > len(default.resegment(2).segments)
    page.mouse("move", 0.5, 0.5)
    for nth in (0, 1):
        page.until(f"{TOLD.format(nth)}.startsWith('segment ')")
    boxes = page.run("[...document.querySelectorAll('canvas')].map((c) => c.getBoundingClientRect().x)")
    assert boxes[1] > boxes[0] + 200
    page.mouse("click", 0.5, 0.5, "#compare")
    assert page.run("document.querySelectorAll('.panel').length") == 1
    assert page.complaints == []


def test_by_keyboard_alone(serve, open_page, picture):
    page = open_page(serve().url)
    page.press("Tab")
    assert page.run("document.activeElement.id") == "file"
    page.choose(picture)
    page.until(DONE)
    reached = set()
    for _ in range(24):
        page.press("Tab")
        reached.add(
            page.run("(({ dataset, tagName }) => dataset.name || dataset.do || tagName)(document.activeElement)")
        )
    assert {"threshold", "anchors", "refine", "overlay", "labels", "json", "CANVAS"} <= reached
    page.run("document.querySelector('canvas').focus()")
    page.press("ArrowLeft", "ArrowUp")
    page.until(f"{TOLD.format(0)}.startsWith('segment ')")
    page.run("setTool('look')")
    page.press("ArrowLeft", "ArrowUp", "Enter")
    page.until(f"{TOLD.format(0)}.startsWith('attention of the point at 48 %, 48 %')")
    page.press("Escape")
    page.until(f"{TOLD.format(0)}.endsWith('segments')")
    assert page.complaints == []


def test_on_a_phone(serve, open_page, picture):
    page = open_page(serve().url, width=360, height=740, phone=True)
    page.choose(picture)
    page.until(DONE)
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run(
        "[...document.querySelectorAll('.bar button, .file')].every((b) => !b.offsetHeight || b.offsetHeight >= 44)"
    )
    page.tap(0.5, 0.5)
    page.until(f"{TOLD.format(0)}.startsWith('segment ') && {TOLD.format(0)}.endsWith('pinned')")
    tool(page, "look")
    page.tap(0.5, 0.5)
    page.until(f"{TOLD.format(0)}.startsWith('attention of the point at 50 %, 50 %')")
    assert page.complaints == []


def test_errors_are_told_and_forgotten_attention_is_made_anew(serve, open_page, picture, tmp_path):
    server = serve()
    page = open_page(server.url)
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.choose(tmp_path / "broken.png")
    page.until("document.getElementById('status').classList.contains('error')")
    assert "not an image" in page.status
    page.choose(picture)
    page.until(DONE)
    server.service.store._kept.clear()
    slide(page, "threshold", 0.05)
    assert len(server.service.store) == 1
    page.go(f"{server.url}/?again")
    until(lambda: len(server.service.store) == 0, "the goodbye of the page")


SHOWN = "[state.panels[0].query(), [...document.querySelectorAll('.list button')].map((b) => b.textContent)].join()"


def test_a_bad_file_leaves_everything_as_it_was(serve, open_page, picture, tmp_path):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    slide(page, "threshold", 0.05)
    shown, drawn, kept = page.run(SHOWN), colours(page), list(server.service.store._kept)
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.choose(tmp_path / "broken.png")
    page.until(FAILED)
    assert "not an image" in page.status
    assert (page.run(SHOWN), colours(page), list(server.service.store._kept)) == (shown, drawn, kept)

    # what follows is about the image that is shown
    passes = len(server.service.segmenter.network.passes)
    slide(page, "anchors", 2)
    assert not page.run(FAILED)
    with Image.open(picture) as image:
        expected = server.service.segmenter(image, 0.05, anchors=2, keep_attention=True)
    assert page.status.startswith(f"{len(expected.segments)} segments; new masks in")
    tool(page, "look")
    page.mouse("click", 0.5, 0.5)
    page.until("!document.querySelector('[data-do=masks]').hidden")
    assert len(server.service.segmenter.network.passes) == passes + 1  # the one of this test


def test_a_click_after_the_attention_has_expired(serve, open_page, picture):
    """The page sends the image again and shows the requested masks, without an error."""
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    passes = len(server.service.segmenter.network.passes)
    for nth in (1, 2):
        server.service.store._kept.clear()
        tool(page, "look")
        page.mouse("click", 0.3, 0.7)
        page.until(f"!document.querySelector('[data-do=masks]').hidden || {FAILED}")
        assert not page.run(FAILED), page.status
        assert page.run(TOLD.format(0)).startswith("attention of the point at 30 %, 70 %")
        assert len(server.service.store) == 1
        assert len(server.service.segmenter.network.passes) == passes + nth
        page.mouse("click", 0.5, 0.5, "[data-do=masks]")


def test_a_download_after_the_attention_has_expired(serve, open_page, picture, tmp_path):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    server.service.store._kept.clear()
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    page.mouse("click", 0.5, 0.5, "[data-do=labels]")
    until((tmp_path / "downloads" / "photo.labels.png").is_file, "the labels")
    tool(page, "look")
    page.mouse("click", 0.3, 0.7)
    page.until(f"!document.querySelector('[data-do=masks]').hidden || {FAILED}")
    assert not page.run(FAILED), page.status


def test_a_server_that_keeps_no_attention_says_so(serve, open_page, picture):
    server = serve(keep=100)
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    passes = len(server.service.segmenter.network.passes)
    tool(page, "look")
    for _ in range(2):
        page.run("say('')")
        page.mouse("click", 0.3, 0.7)
        page.until(FAILED)
        assert "too little memory to keep the attention" in page.status
    assert len(server.service.segmenter.network.passes) == passes
    slide(page, "threshold", 0.05)


def test_a_server_that_is_gone(serve, open_page, picture):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    server.stop()
    tool(page, "look")
    page.mouse("click", 0.3, 0.7)
    page.until(FAILED)
    page.mouse("move", 0.5, 0.5, "h1")
    drawn = colours(page)
    assert page.status.startswith("The server does not answer. Check that")
    page.run("say('')")
    page.run("state.panels[0].renew()")
    assert page.status.startswith("The server does not answer. Check that")
    assert page.status.endswith("The masks on the screen were made with the settings before this change.")
    page.choose(picture)
    page.until("/try again\\.$/.test(document.getElementById('status').textContent)")
    assert colours(page) == drawn


def test_a_file_that_is_gone(serve, open_page, picture):
    server = serve()
    page = open_page(server.url)
    page.choose(picture)
    page.until(DONE)
    server.service.store._kept.clear()
    picture.unlink()
    tool(page, "look")
    page.mouse("click", 0.3, 0.7)
    page.until(FAILED)
    assert page.status == "The file can no longer be read. Choose the image again."


def test_one_segment_is_singular(serve, open_page, tmp_path):
    path = tmp_path / "plain.png"
    path.write_bytes(encoded(np.full((60, 100, 3), 90, np.uint8)))
    page = open_page(serve().url)
    page.choose(path)
    page.until(DONE)
    assert page.status.startswith("1 segment in")
    assert page.run(TOLD.format(0)) == "1 segment"
    slide(page, "threshold", 0.05)
    assert page.status.startswith("1 segment; new masks in")


def test_the_words_of_the_page(serve, open_page, picture):
    page = open_page(serve().url)
    page.choose(picture)
    page.until(DONE)
    labels = page.run("[...document.querySelectorAll('label')].map((e) => e.firstChild.textContent.trim())")
    assert {"Opacity", "Threshold", "Anchors per side", "Refinement"} <= set(labels)
    assert page.run("[...document.querySelectorAll('option')].map((e) => e.textContent)") == [
        "none",
        "colour",
        "PAMR",
        "k-means",
    ]
    assert page.run("document.querySelector('#token button').textContent") == "Sign in"
    assert page.run("document.querySelector('[data-name=refine]').selectedOptions[0].textContent") == "none"
    words = page_document().lower()
    assert "choose images" in words
    assert "photo" not in words
    assert "picture" not in words


def test_a_token_is_asked_for(serve, open_page, picture):
    page = open_page(serve(token="secret").url)  # noqa: S106
    page.choose(picture)
    page.until("!document.getElementById('token').hidden")
    page.until(f"{FAILED} && document.getElementById('status').textContent.startsWith('This server is locked')")
    page.run("document.querySelector('#token input').value = 'guess'")
    page.mouse("click", 0.5, 0.5, "#token button")
    page.until(
        f"{FAILED} && document.getElementById('status').textContent.startsWith('This is not the token of this server')"
    )
    page.run("document.querySelector('#token input').value = 'secret'")
    page.mouse("click", 0.5, 0.5, "#token button")
    page.until(DONE)


def test_dropping_an_image(serve, open_page, picture):
    page = open_page(serve().url)
    data = base64.b64encode(picture.read_bytes()).decode()
    page.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));"
        " const transfer = new DataTransfer(); transfer.items.add(new File([bytes], 'x.png', {type: 'image/png'}));"
        " dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, cancelable: true})); })()"
    )
    page.until(DONE)
    assert page.complaints == []


def test_a_bundle_for_diffcut_has_a_slider_for_tau(features_server, open_page, picture):
    page = open_page(features_server.url)
    page.choose(picture)
    page.until(DONE)
    names = ("threshold", "anchors", "tau")
    shown = [page.run(f"document.querySelector('[data-name={name}]').offsetParent !== null") for name in names]
    assert shown == [False, False, True]
    assert page.run("document.querySelector('[data-name=refine] [value=kmeans]').disabled")
    with Image.open(picture) as image:
        expected = features_server.service.segmenter(image, keep_attention=True)
    counts = {len(expected.resegment(tau=tau).segments) for tau in (0.5, 0.97)}
    assert len(counts) == 2
    for tau in (0.97, 0.5):
        slide(page, "tau", tau)
        assert page.status.startswith(f"{len(expected.resegment(tau=tau).segments)} segment")
    tool(page, "look")
    page.mouse("click", 0.2, 0.8)
    page.until("!document.querySelector('[data-do=masks]').hidden")
    assert "similarity to the point at 20 %, 80 %" in page.run(TOLD.format(0))
    assert page.complaints == []
