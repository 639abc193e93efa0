"""The page of the server has no serious finding of axe, in all of its states, at desktop and phone size."""

from importlib.resources import files

import pytest
from diffseg import Segmenter
from diffseg.engines import example_images
from diffseg.serving.http.service import Service

from tests.runtime.serving.http.browser import Page, find_browser
from tests.runtime.serving.http.page_helpers import DONE, RENEWED
from tests.runtime.serving.http.running import Running

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium")
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
FINDINGS = """axe.run(document).then((found) => found.violations.filter(({impact}) => impact !== 'minor').map(
  ({id, nodes}) => `${id}: ${nodes.map(({target}) => target.join(' ')).join(', ')}`))"""
STEPS = {  # of a user, in this order
    "waiting": "waitFor(newImage(new File([], 'x.png')), 'Segmenting x.png').part(0.5, '') ?? true",
    "masks": "state.wait.done() ?? true",
    "error": "say('Something is wrong.', true) ?? true",
    "token": "(document.getElementById('token').hidden = false) || true",
    "download": "document.getElementById('all').open = true",
    "attention": "setTool('look') ?? state.panels[0].look(0.5, 0.5).then(() => !!state.panels[0].attention)",
    "help": "document.getElementById('help').showModal() ?? true",
}


@pytest.fixture(scope="module")
def url():
    running = Running(Service(Segmenter.load("tiny", provider="cpu", batch=1)))
    yield running.url
    running.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900, False), (390, 844, True)], ids=["desktop", "phone"])
def test_no_finding(url, size, scheme):
    page = Page(*size[:2], phone=size[2])
    try:
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.go(url)
        page.run(f"{AXE}; 1")
        assert page.run(FINDINGS) == []
        page.choose(*example_images()[:2])
        page.until(DONE)
        for step, script in STEPS.items():
            assert page.run(script), step
            assert page.run(FINDINGS) == [], step
        page.run("document.getElementById('help').close()")
        page.mouse("click", 0.5, 0.5, "#compare")
        page.until(RENEWED)
        assert page.run(FINDINGS) == []
    finally:
        page.close()
