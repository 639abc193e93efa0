"""The routes of Label Studio's ML backend, with a network without weights and a stand-in for Label Studio's files."""

import base64
import json

import numpy as np
import pytest
from diffseg.serving.annotation.label_studio import LabelStudio
from diffseg.serving.http import label_studio

from tests.runtime.annotation.test_brush import decode
from tests.runtime.serving.annotation.tool import Tool
from tests.runtime.serving.http.running import until

CONFIG = (
    '<View><Image name="img" value="$image"/>'
    '<BrushLabels name="c" toName="img"><Label value="Cat"/></BrushLabels></View>'
)
PHOTO = "/data/upload/1/photo.png"


@pytest.fixture
def tool(png):
    running = Tool({PHOTO: png, "/data/damaged.png": png[:60], "/data/page.html": b"<html>secret</html>"})
    yield running
    running.close()


@pytest.fixture
def server(serve, tool):
    return serve(label_studio=LabelStudio(tool.url, "token"))


def ask(server, path, body, headers=None):
    return server.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)


def predict(server, *images, config=CONFIG):
    tasks = [{"id": i, "data": {"image": image}} for i, image in enumerate(images)]
    return ask(server, "/predict", {"tasks": tasks, "label_config": config, "params": {"context": None}})


def basic(password):
    return {"Authorization": "Basic " + base64.b64encode(f"any:{password}".encode()).decode()}


def test_the_routes_are_off_by_default(serve):
    server = serve()
    for path in ("/setup", "/predict", "/webhook"):
        assert ask(server, path, {}).status == 404
    assert server.ask("GET", "/health").status == 404
    assert "/predict" not in server.ask("GET", "/openapi.json").json()["paths"]


def test_health_setup_versions_and_webhook(server):
    assert server.ask("GET", "/health").json() == {"status": "UP", "model_class": "diffseg"}
    setup = ask(server, "/setup", {"project": "1.2", "schema": CONFIG, "hostname": "http://evil", "access_token": "x"})
    version = setup.json()["model_version"]
    assert version.startswith("diffseg-fake-")
    assert server.ask("GET", "/versions").json() == {"versions": [version]}
    hook = ask(server, "/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}})
    assert (hook.status, hook.json()) == (201, {})


def test_health_says_when_the_server_is_not_ready(server):
    server.service.draining = True
    answer = server.ask("GET", "/health")
    assert (answer.status, answer.json()["status"]) == (503, "DOWN")


def test_predictions_are_the_masks_of_the_image(server, tool, png):
    answer = predict(server, PHOTO, tool.url + PHOTO)
    masks = server.ask("POST", "/v1/segment", png).json()["segments"]
    first, second = answer.json()["results"]
    assert first == second
    assert answer.json()["model_version"] == first["model_version"]
    decoded = [decode(item["value"]["rle"]).reshape(120, 200, 4)[..., 3] == 255 for item in first["result"]]
    assert [int(mask.sum()) for mask in decoded] == [segment["area"] for segment in masks]
    assert np.sum(decoded, axis=0).min() == np.sum(decoded, axis=0).max() == 1
    assert all(0 < item["score"] <= 1 for item in first["result"])
    assert 0 < first["score"] <= 1
    assert {authorisation for *_, authorisation in tool.asked} == {"Token token"}


def test_the_configuration_chooses_polygons(server):
    (result,) = predict(server, PHOTO, config=CONFIG.replace("BrushLabels", "PolygonLabels")).json()["results"]
    assert {item["type"] for item in result["result"]} == {"polygonlabels"}


@pytest.mark.parametrize(
    "image", ["/data/none.png", "/data/damaged.png", "/data/page.html", "file:///etc/passwd", None]
)
def test_a_bad_image_leaves_the_other_tasks_alone(server, image, caplog):
    results = predict(server, PHOTO, image, PHOTO).json()["results"]
    assert results[1] == []
    assert results[0] == results[2] != []
    (line,) = [record.getMessage() for record in caplog.records if "no prediction for task 1" in record.getMessage()]
    assert "secret" not in line
    assert "\n" not in line


def test_a_task_without_an_image_gets_no_prediction(server):
    answer = ask(server, "/predict", {"tasks": [{"id": 1, "data": {"text": "x"}}, 7], "label_config": CONFIG})
    assert answer.json()["results"] == [[], []]


def test_an_image_with_too_many_pixels_gets_no_prediction(serve, tool):
    server = serve(label_studio=LabelStudio(tool.url), pixels=100)
    assert predict(server, PHOTO).json()["results"] == [[]]


def test_tasks_without_time_get_no_prediction(server, monkeypatch, caplog):
    monkeypatch.setattr(label_studio, "SECONDS", -1)
    assert predict(server, PHOTO, PHOTO).json()["results"] == [[], []]
    assert "2 of 2 tasks had no time" in caplog.text


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/setup", {"schema": "<View/>"}, "add one of them"),
        ("/setup", {}, "'schema' must be the labelling configuration"),
        ("/predict", {"tasks": [], "label_config": "<View>"}, "is not XML"),
        ("/predict", {"label_config": CONFIG}, "'tasks' must be a list"),
        ("/predict", [], "must be a JSON object"),
        ("/predict", b"{", "not JSON"),
        ("/webhook", b"[" * 100_000, "not JSON"),
    ],
)
def test_wrong_requests_are_refused(server, path, body, words):
    answer = ask(server, path, body)
    assert answer.status == 400
    assert words in answer.error


def test_the_token_is_taken_as_a_password(serve, tool):
    server = serve(label_studio=LabelStudio(tool.url), token="gehéim")  # noqa: S106
    assert server.ask("GET", "/health").status == 401
    for wrong in (basic("wrong"), basic(""), {"Authorization": "Basic !"}, {"Authorization": "Bearer wrong"}):
        answer = server.ask("GET", "/health", headers=wrong)
        assert answer.status == 401
        assert "password of basic authentication" in answer.error
    assert server.ask("GET", "/health", headers=basic("gehéim")).status == 200
    assert server.ask("GET", "/v2", headers=basic("gehéim")).status == 401  # other routes take the bearer token only


def test_memory_is_given_back(server):
    predict(server, PHOTO, "/data/damaged.png", PHOTO)
    until(lambda: server.service.memory.held == 0, "the release of memory")
    assert len(server.service.store) == 0


def smart(server, *items, config=CONFIG):
    """The answer to what was drawn with smart tools on the image."""
    tasks = [{"id": 1, "data": {"image": PHOTO}}]
    context = {"result": list(items)}
    return ask(server, "/predict", {"tasks": tasks, "label_config": config, "params": {"context": context}})


def click(x, y, positive=1):
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Cat"]}
    return {"type": "keypointlabels", "is_positive": positive, "value": value}


def test_clicks_are_answered_from_what_is_kept(server, tool, png):
    first = smart(server, click(2, 2)).json()
    assert first["model_version"] == first["results"][0]["model_version"]
    (item,) = first["results"][0]["result"]
    mask = decode(item["value"]["rle"]).reshape(120, 200, 4)[..., 3] == 255
    masks = [
        decode(found["value"]["rle"]).reshape(120, 200, 4)[..., 3] == 255
        for found in predict(server, PHOTO).json()["results"][0]["result"]
    ]
    assert [bool(np.array_equal(mask, other)) for other in masks].count(True) == 1
    assert mask[2, 4]
    asked = len(tool.asked)
    whole = smart(server, click(2, 2), click(50, 50), click(98, 98)).json()["results"][0]["result"]
    assert whole[0]["id"] != item["id"]
    assert smart(server, click(2, 2, 0)).json()["results"][0]["result"] == []
    assert len(tool.asked) == asked  # the image was downloaded and segmented once
    assert 0 < server.service.pickable.currsize < 2_000_000


def test_an_image_too_large_to_keep_is_answered_all_the_same(server, tool):
    server.service.pickable = type(server.service.pickable)(10, 60, getsizeof=lambda masks: masks.nbytes)
    for _ in range(2):
        assert smart(server, click(2, 2)).json()["results"][0]["result"]
    assert len(tool.asked) == 2


def test_a_wrong_context_is_refused(server):
    answer = smart(server, {"type": "brush", "value": {}})
    assert answer.status == 400
    assert "smart tools" in answer.error
