"""POST /v1/segment, and the routes of kept attention."""

import io
import json

import numpy as np
import pytest
from diffseg.draw import overlay
from PIL import Image

from tests.coco import decode
from tests.runtime.serving.samples import encoded

BOUNDARY = "a3f1"


def form(*files, field="image"):
    parts = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="x{i}.png"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    )
    return parts + f"--{BOUNDARY}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def labels_of(answer):
    """Label map of a JSON response."""
    labels = np.full((answer["height"], answer["width"]), 65535, np.uint16)
    for segment in answer["segments"]:
        labels[decode(**segment["segmentation"])] = segment["label"]
    return labels


def test_three_answers_of_one_image(serve, png, photo):
    server = serve()
    expected = server.service.segmenter(photo, threshold=0.5)
    path = "/v1/segment?threshold=0.5"
    plain = server.ask("POST", path, png, {"Content-Type": "image/png"})
    assert plain.status == 200
    assert plain.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(labels_of(plain.json()), expected.labels)
    assert [s["area"] for s in plain.json()["segments"]] == [s.area for s in expected.segments]
    assert plain.json()["settings"]["thresholds"] == [0.5] * 3
    labels = server.ask("POST", path, png, {"Accept": "image/png"})
    with Image.open(io.BytesIO(labels.body)) as image:
        np.testing.assert_array_equal(np.asarray(image), expected.labels)
    painted = server.ask("POST", path, png, {"Accept": "text/html;q=0.9, image/png; kind=overlay"})
    with Image.open(io.BytesIO(painted.body)) as image:
        np.testing.assert_array_equal(np.asarray(image), overlay(Image.fromarray(photo), expected.labels))
    assert server.ask("POST", path, png, {"Accept": "image/jpeg"}).status == 406


def test_a_form_is_the_same_as_a_body(serve, png):
    server = serve()
    bare = server.ask("POST", "/v1/segment", png).json()["segments"]
    assert server.ask("POST", "/v1/segment", *form(png)).json()["segments"] == bare
    for body, headers in (form(), form(png, png), (b"nonsense", form()[1])):
        answer = server.ask("POST", "/v1/segment", body, headers)
        assert answer.status == 400
        assert "image" in answer.error


def test_settings_are_passed_on(serve, png, photo):
    server = serve()
    for query, options in (
        ("threshold=0.2&threshold=0.4", {"threshold": (0.2, 0.4)}),
        ("threshold=0.3&anchors=2", {"threshold": 0.3, "anchors": 2}),
        ("method=cut&tau=0.6&refine=pamr", {"method": "cut", "tau": 0.6, "refine": "pamr"}),
        ("threshold=0.3&refine=kmeans&fit=pad", {"threshold": 0.3, "refine": "kmeans", "fit": "pad"}),
    ):
        expected = server.service.segmenter(photo, **options)
        found = server.ask("POST", f"/v1/segment?{query}&counts=list", png).json()
        assert [s["area"] for s in found["segments"]] == [s.area for s in expected.segments]
        assert isinstance(found["segments"][0]["segmentation"]["counts"], list)
        assert found["settings"]["refine"] == expected.settings.refine


@pytest.mark.parametrize(
    "query",
    [
        "threshold=-1",
        "threshold=nan",
        "threshold=inf",
        "anchors=0",
        "refine=magic",
        "method=magic",
        "method=diffcut",
        "tau=3",
        "tau=nan",
        "fit=cover",
        "timeout=0",
        "threshold=x",
    ],
)
def test_settings_out_of_range(serve, png, query):
    answer = serve().ask("POST", f"/v1/segment?{query}", png)
    assert answer.status == 400
    assert query.partition("=")[0] in answer.error


@pytest.mark.parametrize(
    ("request_line", "error"),
    [
        ("POST /v1/segment?threshold=x", "threshold must be a number, found 'x'"),
        ("POST /v1/segment?threshold=nan", "threshold must be a finite number, found 'nan'"),
        ("POST /v1/segment?threshold=1&threshold=-1", "threshold must be at least 0, found '-1'"),
        ("POST /v1/segment?" + "&".join(["threshold=1"] * 9), "threshold must be given at most 8 times, found 9"),
        ("POST /v1/segment?anchors=1.5", "anchors must be a whole number, found '1.5'"),
        ("POST /v1/segment?anchors=500", "anchors must be at most 64, found '500'"),
        ("POST /v1/segment?refine=magic", "refine must be one of none, kmeans, colour, pamr, found 'magic'"),
        ("POST /v1/segment?timeout=0", "timeout must be above 0, found '0'"),
        (
            "POST /v1/images?side=1&counts=x",
            "side must be at least 16, found '1'; counts must be one of string, list, found 'x'",
        ),
        ("GET /v1/images/KEY/attention?x=1", "x must be below 1, found '1'; y must be given, found nothing"),
        ("GET /v1/nothing", "there is nothing at /v1/nothing; /openapi.json lists what there is"),
        ("GET /v1/segment", "/v1/segment does not take GET; /openapi.json lists what it takes"),
        (
            "POST /v1/segment?threshold=" + "9" * 30 + "x" * 90,
            f"threshold must be a number, found '{'9' * 30}{'x' * 29}…",
        ),
    ],
)
def test_errors_are_in_our_own_words(serve, png, request_line, error):
    method, path = request_line.split()
    server = serve()
    key = server.ask("POST", "/v1/images", png).json()["id"]
    assert server.ask(method, path.replace("KEY", key), png if method == "POST" else None).error == error


def test_stored_attention_is_cut_again(serve, png):
    server = serve()
    key = server.ask("POST", "/v1/images", png).json()["id"]
    counts = []
    for tau in (0, 0.3, 0.9):
        answer = server.ask("GET", f"/v1/images/{key}/masks?method=cut&tau={tau}").json()
        assert (answer["settings"]["method"], answer["settings"]["tau"]) == ("cut", tau)
        counts.append(len(answer["segments"]))
    assert counts == sorted(counts)
    assert counts[0] == 1


def test_broken_images_are_the_client_s_fault(serve, png, photo):
    server = serve()
    for body in (b"", b"no image", png[:200], encoded(photo, "JPEG")[:500], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        answer = server.ask("POST", "/v1/segment", body)
        assert answer.status == 400, body[:20]
        assert "\n" not in answer.error
    assert server.ask("POST", "/v1/segment", png).status == 200


def test_kept_attention_gives_new_masks_and_maps(serve, png, photo):
    server = serve()
    kept = server.service.segmenter(photo, keep_attention=True)
    first = server.ask("POST", "/v1/images?threshold=0.4", png)
    assert first.status == 201
    key = first.json()["id"]
    passes = len(server.service.segmenter.network.passes)
    for threshold in (0.05, 0.4, 2):
        answer = server.ask("GET", f"/v1/images/{key}/masks?threshold={threshold}")
        np.testing.assert_array_equal(labels_of(answer.json()), kept.resegment(threshold).labels)
    small = server.ask("GET", f"/v1/images/{key}/masks?side=50").json()
    assert (small["width"], small["height"]) == (50, 30)
    labels = server.ask("GET", f"/v1/images/{key}/masks", headers={"Accept": "image/png"})
    with Image.open(io.BytesIO(labels.body)) as image:
        np.testing.assert_array_equal(np.asarray(image), kept.labels)
    assert server.ask("GET", f"/v1/images/{key}/masks", headers={"Accept": "image/png;kind=overlay"}).status == 406
    answer = server.ask("GET", f"/v1/images/{key}/attention?x=0.6&y=0.3")
    with Image.open(io.BytesIO(answer.body)) as image:
        found = np.asarray(image)
    assert found.shape == photo.shape[:2]
    cell = kept.attention.values[int(0.3 * 8), int(0.6 * 8)]
    rows, columns = np.divmod(np.flatnonzero(found == 255), 200)
    strongest = cell[(rows * 8 // 120), (columns * 8 // 200)]
    assert strongest.max() == cell.max()
    assert len(server.service.segmenter.network.passes) == passes
    assert server.ask("GET", f"/v1/images/{key}/attention?x=1&y=0").status == 400
    assert server.ask("DELETE", f"/v1/images/{key}").status == 204
    assert server.ask("GET", f"/v1/images/{key}/masks").status == 404


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("side", [50, 100])
@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (90, 600), (600, 90)], ids=str)
def test_smaller_masks_show_the_whole_picture(serve, photo, shape, side, fit):
    """Both routes return the whole label map at the smaller size, with the same pixels."""
    pixels = np.tile(photo, (5, 3, 1))[: shape[0], : shape[1]]
    server = serve()
    whole = server.service.segmenter(pixels, 0.05, fit=fit, keep_attention=True)
    scale = side / max(shape)
    height, width = (round(n * scale) for n in shape)
    rows, columns = ((np.arange(n) + 0.5) * (m / n) for n, m in zip((height, width), shape, strict=True))
    first = server.ask("POST", f"/v1/images?threshold=0.05&side={side}&fit={fit}", encoded(pixels)).json()
    again = server.ask("GET", f"/v1/images/{first['id']}/masks?threshold=0.05&side={side}").json()
    for answer in (first, again):
        found = labels_of(answer)
        assert found.shape == (height, width)
        assert all(s["area"] == (found == s["label"]).sum() for s in answer["segments"])
    np.testing.assert_array_equal(labels_of(first), labels_of(again))
    _, nearest = np.unique(whole.labels[np.ix_(rows.astype(int), columns.astype(int))], return_inverse=True)
    np.testing.assert_array_equal(labels_of(first), nearest.reshape(height, width))


def test_no_room_to_keep(serve, png):
    answer = serve(keep=100).ask("POST", "/v1/images", png)
    assert answer.status == 201
    assert answer.json()["id"] is None
    assert answer.json()["segments"]


def test_the_interface_is_described(serve):
    server = serve()
    document = server.ask("GET", "/openapi.json").json()
    assert {"/v1/segment", "/v1/images/{key}/masks", "/v2/models/{model}/infer", "/v2/health/ready", "/metrics"} <= set(
        document["paths"]
    )
    post = document["paths"]["/v1/segment"]["post"]
    assert {p["name"] for p in post["parameters"]} >= {"threshold", "anchors", "refine", "fit"}
    assert set(post["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert {"200", "400", "413", "503", "504"} <= set(post["responses"])
    assert not json.dumps(document).count("HTTPBearer")  # this server needs no token
    assert "401" not in post["responses"]
    guarded = serve(token="x").ask("GET", "/openapi.json").json()  # noqa: S106
    assert guarded["paths"]["/v1/segment"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in guarded["paths"]["/v2/health/live"]["get"]
    assert {"401", "404"} <= set(guarded["paths"]["/v2/models/{model}/infer"]["post"]["responses"])
    for path in ("/v1/images/{key}/masks", "/v1/images/{key}/attention", "/v2/models/{model}"):
        assert "404" in document["paths"][path]["get"]["responses"]
    for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/{model}/ready"):
        assert "503" in document["paths"][path]["get"]["responses"]
    assert "HTTPValidationError" not in json.dumps(document)  # a setting out of range is answered with 400 and one line
