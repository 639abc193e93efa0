"""What the page tells its users in a real browser: keys, names for assistive technology, a lost server."""

import pytest

pytest.importorskip("websockets", reason="needs websockets, to speak to the browser")

from tests.runtime.serving.http.browser import find_browser
from tests.runtime.serving.http.page_helpers import DONE, FAILED, RENEWED, opened, slide, tool

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium"),
]
SAYS = "document.getElementById('status').textContent"
CONTROLS = ("button", "checkbox", "combobox", "radio", "slider", "textbox", "application", "progressbar", "dialog")


def test_the_help_lists_what_the_keys_do(serve, open_page, picture):
    page = open_page(serve().url)
    opened(page, picture)
    page.mouse("click", 0.5, 0.5, "#keys")
    page.until("document.getElementById('help').open")
    told = page.run("[...document.querySelectorAll('kbd')].map((e) => e.textContent)")
    assert {"Shift", "Alt", "Enter", "Esc", "Ctrl", "Z", "+", "−", "0", "A", "?", "↑"} <= set(told)
    page.press("Escape")
    page.until("!document.getElementById('help').open")
    assert page.run("document.activeElement.id") == "keys"
    page.mouse("click", 0.5, 0.5, "#keys")
    page.mouse("click", 0.5, 0.5, "#help button")
    page.until("!document.getElementById('help').open")
    page.run("document.querySelector('.panel canvas').focus()")
    page.press("?")
    page.until("document.getElementById('help').open")
    page.press("Escape", "A")
    page.until("state.tool === 'look'")
    page.press("Enter")
    page.until("!!state.panels[0].attention")
    page.press("Escape")
    page.until("!state.panels[0].attention && state.tool === 'pin'")
    assert page.complaints == []


def test_masks_are_edited_by_keyboard(serve, open_page, picture):
    page = open_page(serve().url)
    opened(page, picture)
    slide(page, "threshold", 0.05)
    segments = page.run("state.panels[0].sheet.segments.length")
    page.run("document.querySelector('.panel canvas').focus()")
    page.press("Enter")
    page.until("state.panels[0].sheet.pinned.size === 1")
    page.press(*["ArrowUp"] * 4, modifiers=8)
    page.press("Enter", modifiers=8)
    page.until(f"{SAYS}.includes('was joined to')")
    assert page.run("state.panels[0].sheet.segments.length") == segments - 1
    page.press("Enter", modifiers=1)
    page.until(f"{SAYS}.includes('was split into')")
    assert page.run("state.panels[0].sheet.segments.length") >= segments
    assert page.complaints == []


def test_every_control_has_a_name(serve, open_page, picture):
    page = open_page(serve().url)
    for step in ("start", "open", "compare", "help"):
        if step == "open":
            page.choose(picture, picture)
            page.until(DONE)
            page.run("document.getElementById('all').open = true")
        elif step == "compare":
            page.mouse("click", 0.5, 0.5, "#compare")
            page.until(RENEWED)
        elif step == "help":
            page.run("document.getElementById('help').showModal()")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(controls) >= {"start": 5, "open": 20, "compare": 28, "help": 2}[step]
        assert [node for node in controls if not node.get("name", {}).get("value", "").strip()] == []
    ids = page.run("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)


def test_the_canvas_says_what_enter_does(serve, open_page, picture):
    page = open_page(serve().url)
    opened(page, picture)
    for name, does in (("join", "joins"), ("split", "splits"), ("look", "shows the attention"), ("pin", "pins")):
        tool(page, name)
        assert f"Enter {does}" in page.run("document.querySelector('.panel canvas').getAttribute('aria-label')")


def test_a_lost_server_can_be_tried_again(serve, open_page, picture):
    page = open_page(serve().url)
    opened(page, picture)
    page.run("window.reach = window.fetch; window.fetch = () => Promise.reject(new TypeError('Failed to fetch')); 0")
    tool(page, "look")
    page.mouse("click", 0.3, 0.7)
    page.until(FAILED)
    assert page.status.startswith("The server does not answer.")
    page.until("!document.getElementById('again').hidden")
    page.run("window.fetch = window.reach; 0")
    page.until(f"{SAYS} === 'The server answers again. Try again.'")
    page.mouse("click", 0.5, 0.5, "#again")
    page.until("!!state.panels[0].attention")
    assert page.run("document.getElementById('again').hidden && !state.watching")


def test_an_image_after_the_server_was_lost(serve, open_page, picture, tmp_path):
    """The image stays in the strip, and what was shown stays on the screen."""
    server = serve()
    page = open_page(server.url)
    opened(page, picture)
    server.stop()
    other = tmp_path / "other.png"
    other.write_bytes(picture.read_bytes())
    page.choose(other)
    page.until(FAILED)
    assert page.status.startswith("The server does not answer.")
    assert page.run("state.images.map(({ name }) => name)") == ["photo.png", "other.png"]
    assert page.run("state.image.name") == "photo.png"
    assert not page.run("document.getElementById('again').hidden")
    assert page.run("document.getElementById('waiting').hidden && !document.getElementById('panels').hidden")
