"""What the tests of the page share: expressions in the page, and steps of a user."""

DONE = "/segments? in/.test(document.getElementById('status').textContent)"
RENEWED = "/new masks in/.test(document.getElementById('status').textContent)"
TOLD = "document.querySelectorAll('.told')[{}].textContent"
FAILED = "document.getElementById('status').classList.contains('error')"
FITTED = "state.image?.fitted"  # the range of the slider fits the image


def slide(page, name, value, nth=0, events=("input", "change")):
    page.run("document.getElementById('status').textContent = ''")
    page.run(
        f"(() => {{ const e = document.querySelectorAll('[data-name={name}]')[{nth}]; e.value = '{value}';"
        f" for (const kind of {list(events)}) e.dispatchEvent(new Event(kind, {{bubbles: true}})); }})()"
    )
    page.until(RENEWED)


def colours(page, nth=0):
    return page.run(
        f"(() => {{ const c = document.querySelectorAll('canvas')[{nth}];"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let s = 0;"
        " for (let i = 0; i < d.length; i++) s = (s * 31 + d[i]) >>> 0; return s; })()"
    )


def opened(page, path):
    """Choose an image, and wait until its masks are there and the sliders fit it."""
    page.choose(path)
    page.until(DONE)
    page.until(FITTED)


def tool(page, name):
    """Choose what a click does."""
    page.mouse("click", 0.5, 0.5, f"label:has([value={name}])")
    page.until(f"state.tool === '{name}'")


def labels(page, nth=0):
    """The label map on the screen, as rows."""
    width = page.run(f"state.panels[{nth}].sheet.width")
    flat = page.run(f"[...state.panels[{nth}].labels]")
    return [flat[i : i + width] for i in range(0, len(flat), width)]
