"""A project of a real Label Studio, its tasks, the predictions of `diffseg serve`, and its editor in Chromium."""

import time
import urllib.error

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.engines.errors import ImageError
from diffseg.engines.examples import example_images
from diffseg.serving.annotation.label_studio import LabelStudio
from label_studio_sdk.converter.brush import decode_rle

from tests.integrations.label_studio.servers import EMAIL, PASSWORD, backend, label_studio
from tests.runtime.serving.http.browser import Page, find_browser

PATHS = example_images()[:2]
BRUSH = (
    '<View><Image name="image" value="$image"/><BrushLabels name="masks" toName="image">'
    '<Label value="Thing"/><Label value="Segment"/></BrushLabels></View>'
)
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")
CHOICES = (
    '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="a"/></Choices></View>'
)
SMART = BRUSH.removesuffix("</View>") + (
    '<KeyPointLabels name="points" toName="image" smart="true"><Label value="Thing" smart="true"/>'
    "</KeyPointLabels></View>"
)
PATIENCE = 60


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    with label_studio(tmp_path_factory.mktemp("label-studio")) as running:
        yield running


@pytest.fixture(scope="module")
def serving(tool):
    with backend(tool) as running:
        yield running


@pytest.fixture(scope="module")
def results():
    with Segmenter.load("tiny", provider="cpu") as segmenter:
        return segmenter(list(PATHS))


@pytest.fixture(scope="module")
def brushed(tool, serving):
    """A project with brush masks: its id, its tasks and their predictions."""
    project, tasks = tool.project(BRUSH, PATHS)
    assert tool.connect(project, serving.url)["readable_state"] == "Connected"
    return project, tasks, tool.predict(project)


def test_brush_masks_are_stored_as_predictions(brushed, results):
    _, tasks, predictions = brushed
    assert [prediction["task"] for prediction in predictions] == [task["id"] for task in tasks]
    for prediction, result in zip(predictions, results, strict=True):
        height, width = result.labels.shape
        assert prediction["model_version"].startswith("diffseg-tiny-")
        assert 0 < prediction["score"] < 1
        assert {item["value"]["brushlabels"][0] for item in prediction["result"]} == {"Segment"}
        decoded = [decode_rle(item["value"]["rle"]).reshape(height, width, 4) for item in prediction["result"]]
        assert np.array_equal(np.stack(decoded)[..., 3] == 255, result.masks())


def test_polygons_are_stored_as_predictions(tool, serving, results):
    project, _ = tool.project(POLYGON, PATHS)
    tool.connect(project, serving.url)
    for prediction, result in zip(tool.predict(project), results, strict=True):
        scale = np.array(result.labels.shape[::-1]) / 100
        found = [np.array(item["value"]["points"]) * scale for item in prediction["result"]]
        expected = result.polygons()
        assert len(found) == len(expected)
        assert all(np.allclose(a, b.exterior, atol=1e-3) for a, b in zip(found, expected, strict=True))


def test_clicks_of_smart_tools_pick_masks(tool, serving, results):
    project, tasks = tool.project(SMART, PATHS[:1])
    backend = tool.connect(project, serving.url, interactive=True)["id"]
    height, width = results[0].labels.shape

    def click(*places):
        items = [
            {
                "type": "keypointlabels",
                "is_positive": positive,
                "original_width": width,
                "original_height": height,
                "value": {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Thing"]},
            }
            for x, y, positive in places
        ]
        body = {"task": tasks[0]["id"], "context": {"result": items}}
        return tool.ask("POST", f"/api/ml/{backend}/interactive-annotating", body)["data"]["result"]

    (item,) = click((50, 50, 1))
    assert item["value"]["brushlabels"] == ["Thing"]
    mask = decode_rle(item["value"]["rle"]).reshape(height, width, 4)[..., 3] == 255
    assert np.array_equal(mask, results[0].labels == results[0].labels[height // 2, width // 2])
    assert click((50, 50, 0)) == []


def test_a_configuration_without_masks_is_refused(tool, serving):
    project, _ = tool.project(CHOICES, [])
    with pytest.raises(urllib.error.HTTPError) as caught:
        tool.connect(project, serving.url)
    assert b"labeling configuration" in caught.value.read()


def test_images_that_cannot_be_read_get_no_prediction(tool):
    with backend(tool, token="wrong") as other:  # noqa: S106
        project, tasks = tool.project(BRUSH, PATHS[:1])
        tool.connect(project, other.url)
        assert tool.predict(project) == []
        assert any(
            f"no prediction for task {tasks[0]['id']}" in line and "set its token" in line for line in other.lines
        )


def test_tokens_of_both_kinds_open_images(tool, brushed):
    image = brushed[1][0]["data"]["image"]
    personal = tool.ask("POST", "/api/token/", {})["token"]
    for token in (None, "wrong", "a.b.c"):
        with pytest.raises(ImageError, match="token"):
            LabelStudio(tool.url, token).fetch(image)
    source = LabelStudio(tool.url, personal)
    assert source.fetch(image) == source.fetch(tool.url + image) == PATHS[0].read_bytes()


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt install chromium")
def test_the_editor_shows_the_masks(tool, brushed, results, tmp_path):
    project, tasks, _ = brushed
    page = Page(width=1280, height=720)
    try:
        page.call("Page.navigate", url=f"{tool.url}/user/login/")
        until(page, "!!document.querySelector('input[name=email]')")
        page.run(
            f"document.querySelector('input[name=email]').value = '{EMAIL}';"
            f"document.querySelector('input[name=password]').value = '{PASSWORD}';"
            "document.querySelector('form').submit(); 1"
        )
        until(page, "document.body.innerText.includes('Projects')")
        page.call("Page.navigate", url=f"{tool.url}/projects/{project}/data?task={tasks[1]['id']}")
        until(page, "(window.Htx?.annotationStore?.selected?.regionStore?.regions?.length ?? 0) > 0")
        shown = page.run(
            "window.Htx.annotationStore.selected.regionStore.regions.map(r => [r.type, r.score, r.labelName])"
        )
        assert len(shown) == len(results[1].segments)
        assert {(kind, label) for kind, _, label in shown} == {("brushregion", "Segment")}
        assert all(0 < score <= 1 for _, score, _ in shown)
        until(page, "[...document.querySelectorAll('.konvajs-content canvas')].some(painted)", PAINTED)
        page.screenshot(tmp_path / "editor.png")
    finally:
        page.close()


# Whether a canvas is visible and mostly painted. The image is not part of it, and the masks cover all of the image.
PAINTED = (
    "window.painted = c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
    " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0;"
    " const b = c.getBoundingClientRect();"
    " return document.elementsFromPoint(b.x + b.width / 2, b.y + b.height / 2).includes(c) && n > d.length / 8; }; 1"
)


def until(page, script, before="1"):
    page.run(before)
    end = time.monotonic() + PATIENCE
    while not page.run(f"try {{ {script} }} catch (error) {{ false }}"):
        assert time.monotonic() < end, f"{script} did not come true: {page.complaints}"
        time.sleep(0.2)
