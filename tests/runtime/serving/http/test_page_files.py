"""Several images on the page in a real browser: the strip, the ZIP, samples, and what is shown while it waits."""

import io
import json
import threading
import zipfile

import numpy as np
import pytest
from diffseg.engines import example_images
from diffseg.engines.providers.network import SessionPool
from PIL import Image

pytest.importorskip("websockets", reason="needs websockets, to speak to the browser")

from tests.coco import decode
from tests.runtime.doubles import LendingNetwork, LendingSession
from tests.runtime.serving.http.browser import find_browser
from tests.runtime.serving.http.page_helpers import DONE, FAILED, TOLD, colours, labels, opened, slide
from tests.runtime.serving.http.running import until
from tests.runtime.serving.samples import encoded

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium"),
]
NAMES = "[...document.querySelectorAll('#strip button')].map((b) => b.textContent)"
CURRENT = "document.querySelector('#strip [aria-current]')?.textContent"
SAYS = "document.getElementById('status').textContent"


@pytest.fixture
def three(tmp_path, photo):
    """Three images of different content and size."""
    paths = []
    for name, pixels in (("first", photo), ("second", photo[::-1, :100]), ("third", photo.swapaxes(0, 1))):
        paths.append(tmp_path / f"{name}.png")
        paths[-1].write_bytes(encoded(np.ascontiguousarray(pixels)))
    return paths


class HeldNetwork(LendingNetwork):
    """A network that waits for its turn, so that a test sees the page wait."""

    def __init__(self):
        super().__init__(device="cpu")
        self.free = threading.Event()
        self.free.set()
        self.pool = SessionPool(lambda: HeldSession(self))


class HeldSession(LendingSession):
    def encode(self, images):
        self.network.free.wait(30)
        return super().encode(images)


def test_a_strip_of_images(serve, open_page, three):
    server = serve()
    page = open_page(server.url)
    page.choose(*three)
    page.until(DONE)
    assert page.run(NAMES) == ["first.png", "second.png", "third.png"]
    assert page.run(CURRENT) == "first.png"
    assert len(server.service.segmenter.network.passes) == 2  # one image, and the one that warms up
    slide(page, "threshold", 0.05)
    page.mouse("click", 0.5, 0.55)
    page.until(f"{TOLD.format(0)}.endsWith('pinned')")
    page.mouse("move", 0.5, 0.5, "h1")
    before, drawn = labels(page), colours(page)

    page.mouse("click", 0.5, 0.5, "#strip button", 2)
    page.until(f"{CURRENT} === 'third.png'")
    with Image.open(three[2]) as image:
        expected = server.service.segmenter(image, 0.05)
    np.testing.assert_array_equal(labels(page), expected.labels)  # with the settings on the screen

    page.mouse("click", 0.5, 0.5, "#strip button", 0)  # with its pin, and without a request
    passes = len(server.service.segmenter.network.passes)
    page.until(f"{CURRENT} === 'first.png'")
    assert labels(page) == before
    assert colours(page) == drawn
    assert not page.run("document.getElementById('undo').disabled")
    assert len(server.service.segmenter.network.passes) == passes

    page.mouse("click", 0.5, 0.5, "#remove")
    page.until(f"{CURRENT} === 'second.png'")
    assert page.run(NAMES) == ["second.png", "third.png"]
    assert page.complaints == []


def test_the_server_keeps_the_attention_of_few_images(serve, open_page, three):
    server = serve()
    page = open_page(server.url)
    page.choose(*three, *three)
    page.until(DONE)
    for nth in range(1, 6):
        page.run("say('')")
        page.mouse("click", 0.5, 0.5, "#strip button", nth)
        page.until(DONE)
        page.until("state.image.fitted")
    until(lambda: len(server.service.store) == 4, "the goodbye of two images")
    page.mouse("click", 0.5, 0.5, "#strip button", 0)
    page.until("state.image === state.images[0]")
    slide(page, "threshold", 0.05)
    assert page.complaints == []


def test_a_bad_file_among_several(serve, open_page, three, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = open_page(serve().url)
    page.choose(tmp_path / "broken.png", *three)
    page.until(f"{CURRENT} === 'first.png'")
    assert page.run(NAMES) == ["first.png", "second.png", "third.png"]
    page.choose(tmp_path / "broken.png")
    page.until(FAILED)
    assert page.status.startswith("broken.png: ")
    assert page.run(NAMES) == ["first.png", "second.png", "third.png"]
    assert page.run(CURRENT) == "first.png"
    assert page.run("!document.getElementById('panels').hidden && document.getElementById('waiting').hidden")


def test_all_as_a_zip(serve, open_page, three, tmp_path):
    server = serve()
    page = open_page(server.url)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "first.png"
    same.write_bytes(three[2].read_bytes())
    page.choose(*three, same, tmp_path / "broken.png")
    page.until(DONE)
    slide(page, "threshold", 0.05)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    page.mouse("click", 0.5, 0.5, "#all summary")
    for name in ("cutouts", "coco"):
        page.mouse("click", 0.5, 0.5, f"#all [name={name}]")
    page.mouse("click", 0.5, 0.5, "#all form button")
    until((tmp_path / "downloads" / "masks.zip").is_file, "the ZIP")
    page.until(f"{SAYS}.startsWith('masks.zip is ready')")
    assert "of 4 images; left out broken.png: " in page.status

    archive = zipfile.ZipFile(tmp_path / "downloads" / "masks.zip")
    assert archive.testzip() is None
    names = archive.namelist()
    assert len(set(names)) == len(names)
    dataset = json.loads(archive.read("coco.json"))
    assert [image["file_name"] for image in dataset["images"]] == ["first.png", "second.png", "third.png", "first.png"]
    for number, (stem, path) in enumerate(
        (("first", three[0]), ("second", three[1]), ("third", three[2]), ("first (2)", same)), 1
    ):
        with Image.open(path) as image:
            expected = server.service.segmenter(image, 0.05)
        end = " (2)" if "(2)" in stem else ""
        base = stem.removesuffix(" (2)")
        with Image.open(io.BytesIO(archive.read(f"{base}.labels{end}.png"))) as found:
            np.testing.assert_array_equal(np.asarray(found), expected.labels)
        with Image.open(io.BytesIO(archive.read(f"{base}.overlay{end}.png"))) as found:
            assert np.abs(np.asarray(found.convert("RGB"), int) - np.asarray(expected.overlay(), int)).max() <= 2
        assert len(json.loads(archive.read(f"{base}{end}.json"))["segments"]) == len(expected.segments)
        mine = [a for a in dataset["annotations"] if a["image_id"] == number]
        for annotation, segment, cut in zip(mine, expected.segments, expected.cutouts(), strict=True):
            np.testing.assert_array_equal(decode(**annotation["segmentation"]), expected.labels == segment.label)
            with Image.open(io.BytesIO(archive.read(f"{base}.{segment.label}{end}.png"))) as found:
                cutout = np.asarray(cut)
                inside = cutout[..., 3] > 0  # a canvas forgets the colours of transparent pixels
                np.testing.assert_array_equal(np.asarray(found)[..., 3], cutout[..., 3])
                np.testing.assert_array_equal(np.asarray(found)[inside], cutout[inside])


def test_a_zip_of_nothing_says_so(serve, open_page, picture):
    page = open_page(serve().url)
    opened(page, picture)
    page.mouse("click", 0.5, 0.5, "#all summary")
    page.run("for (const box of document.querySelectorAll('#all input')) box.checked = false")
    page.mouse("click", 0.5, 0.5, "#all form button")
    page.until(FAILED)
    assert page.status == "Choose at least one kind of file for the ZIP."


def test_names_in_the_zip_differ(serve, open_page):
    page = open_page(serve().url)
    used = "(() => { const used = new Set(); return [%s].map((name) => unused(name, used)); })()"
    found = page.run(used % "'a.png', 'a.png', 'a', 'a', 'a.b.png', 'a.png', 'b.x/1.png', 'b.x/1.png'")
    assert found == ["a.png", "a (2).png", "a", "a (2)", "a.b.png", "a (3).png", "b.x/1.png", "b.x/1 (2).png"]


def test_a_sample(serve, open_page):
    server = serve()
    page = open_page(server.url)
    page.until("[...document.querySelectorAll('.samples img')].every((e) => e.naturalWidth > 0)")
    page.mouse("click", 0.5, 0.5, "[data-sample=sloth]")
    page.until(DONE)
    path = next(path for path in example_images() if path.stem == "sloth")
    np.testing.assert_array_equal(labels(page), server.service.segmenter(path).labels)
    assert page.complaints == []


def test_an_address_with_a_sample(serve, open_page):
    page = open_page(f"{serve().url}/#robot")
    page.until(DONE)
    assert page.run("state.image.name") == "robot.jpg"


def test_samples_need_no_token(serve):
    server = serve(token="secret")  # noqa: S106
    for path in example_images():
        answer = server.ask("GET", f"/samples/{path.name}")
        if path.stem in ("robot", "sloth"):
            assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
            assert answer.body == path.read_bytes()
            assert answer.headers["cache-control"] == "max-age=3600"
        else:
            assert answer.status == 404
    for name in ("__init__.py", "LICENCES.md", "..%2F__init__.py", "robot"):
        answer = server.ask("GET", f"/samples/{name}")
        assert answer.status == 404
    assert answer.error == "there is no sample of this name, only robot.jpg and sloth.jpg"
    document = server.ask("GET", "/openapi.json").json()
    assert "404" in document["paths"]["/samples/{name}"]["get"]["responses"]
    assert "security" not in document["paths"]["/samples/{name}"]["get"]


def test_a_preview_and_the_progress_while_waiting(serve, open_page, three):
    network = HeldNetwork()
    page = open_page(serve(network).url)
    network.free.clear()
    try:
        page.choose(three[0])
        page.until("!document.getElementById('waiting').hidden")
        page.until("document.querySelector('#waiting img').naturalWidth === 200")
        page.until("/^Segmenting first.png: \\d+ s$/.test(document.getElementById('step').textContent)")
        assert page.run("document.querySelector('#waiting img').alt") == "Preview of first.png"
        assert not page.run("document.querySelector('progress').hasAttribute('value')")  # nothing is known of it yet
        network.free.set()
        page.until(DONE)
        assert page.run("document.getElementById('waiting').hidden")
        network.free.clear()
        page.choose(three[1])
        page.until("document.querySelector('progress').value > 0")  # from the time that the first took
        assert page.run("document.getElementById('panels').hidden")
        page.mouse("click", 0.5, 0.5, "#cancel")
        page.until(f"{SAYS} === 'Cancelled.'")
        assert page.run("document.getElementById('waiting').hidden && !document.getElementById('panels').hidden")
        assert page.run(CURRENT) == "first.png"
    finally:
        network.free.set()
    page.mouse("click", 0.5, 0.5, "#strip button", 1)  # cancelled is not refused
    page.until(f"{CURRENT} === 'second.png'")
    assert page.complaints == []


def test_an_image_that_is_removed_while_it_is_sent_is_not_shown(serve, open_page, three):
    network = HeldNetwork()
    server = serve(network)
    page = open_page(server.url)
    page.choose(three[0])
    page.until(DONE)
    network.free.clear()
    try:
        page.choose(three[1])
        page.until("!document.getElementById('waiting').hidden")
        page.run("remove(state.images[1])")
    finally:
        network.free.set()
    page.until("document.getElementById('waiting').hidden")
    assert page.run("state.image.name") == "first.png"
    assert page.run("state.images.map(({ name }) => name)") == ["first.png"]
    until(lambda: len(server.service.store) == 1, "the goodbye of the image")


def test_the_part_that_was_sent(serve, open_page):
    page = open_page(serve().url)
    told = page.run(
        "(() => { const image = newImage(new File([], 'x.png')), wait = waitFor(image, 'Segmenting x.png');"
        " image.sent = 0.456; return new Promise((done) => setTimeout(() => {"
        " const told = document.getElementById('step').textContent; wait.done(); done(told); }, 300)); })()"
    )
    assert told == "Sending x.png: 46 %"
