"""The functions in the real agent of `cvat-cli` and the real driver of `cvat_sdk`, with a stand-in for the server."""

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_sdk import Client
from cvat_sdk.core.client import AccessTokenCredentials
from cvat_sdk.masks import decode_mask
from diffseg import Segmenter
from diffseg.annotation.cvat import detector, interactor
from diffseg.annotation.picking import PickableMasks
from diffseg.engines.examples import example_images
from PIL import Image

from tests.integrations.cvat.server import CVAT, PROJECT_LABEL, TASK

PATHS = example_images()[:2]
MAPPING = {"segment": {"name": "thing"}}
CLICKS = [([[140, 110]], []), ([[140, 70]], [[150, 125]]), ([[140, 70], [165, 210]], [[150, 125]])]


@pytest.fixture
def cvat():
    sizes = []
    for path in PATHS:
        with Image.open(path) as image:
            sizes.append(image.size)
    server = CVAT([(path.name, path.read_bytes()) for path in PATHS], sizes)
    yield server
    server.close()


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.load("tiny", provider="cpu")


def cli(cvat, home, *arguments):
    run = [Path(sys.executable).with_name("cvat-cli"), "--server-host", f"http://127.0.0.1:{cvat.port}", *arguments]
    environment = os.environ | {"CVAT_ACCESS_TOKEN": "token", "HOME": str(home)}
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def agent(cvat, home, kind, *parameters):
    """Create a function on the server, and let an agent answer what waits."""
    function = ["--function-module", f"diffseg.annotation.cvat.{kind}", "-p", "provider=str:cpu", *parameters]
    number = cli(cvat, home, "function", "create-native", "DiffSeg", *function).strip()
    cli(cvat, home, "function", "run-agent", number, "--burst", *function)
    assert not cvat.failed
    return cvat.functions[int(number)]


def frame_request(kind, *, polygons=False, threshold=None, **more):
    return {
        "type": kind,
        "task": TASK,
        "mapping": MAPPING,
        "threshold": threshold,
        "conv_mask_to_poly": polygons,
        **more,
    }


def masks(shapes, size):
    return [decode_mask(shape["points"], image_width=size[0], image_height=size[1]) for shape in shapes]


def test_an_agent_annotates_a_task_with_masks(cvat, segmenter, tmp_path):
    cvat.waiting = [("batch", "1", frame_request("annotate_task"))]
    assert agent(cvat, tmp_path, "detector")["kind"] == "detector"
    shapes = cvat.completed["1"]["annotations"]["shapes"]
    for frame, path in enumerate(PATHS):
        result = segmenter(path)
        found = [shape for shape in shapes if shape["frame"] == frame]
        assert {(shape["type"], shape["label_id"], shape["source"]) for shape in found} == {
            ("mask", PROJECT_LABEL, "auto")
        }
        assert all(0 < shape["score"] <= 1 for shape in found)
        assert np.array_equal(masks(found, cvat.sizes[frame]), result.masks())


def test_an_agent_annotates_a_frame_with_polygons_above_a_threshold(cvat, segmenter, tmp_path):
    cvat.waiting = [
        ("interactive", "all", frame_request("annotate_frame", frame=1, polygons=True)),
        ("interactive", "best", frame_request("annotate_frame", frame=1, polygons=True, threshold=0.65)),
    ]
    agent(cvat, tmp_path, "detector", "-p", "tolerance=float:0")
    everything, best = (cvat.completed[name]["annotations"]["shapes"] for name in ("all", "best"))
    result = segmenter(PATHS[1])
    corners = [polygon.exterior.ravel().tolist() for polygon in result.polygons(0)]
    assert [shape["points"] for shape in everything] == corners
    assert {shape["type"] for shape in everything} == {"polygon"}
    assert len({shape["group"] for shape in everything}) == len(result.segments)
    assert [shape["points"] for shape in best] == [s["points"] for s in everything if s["score"] >= 0.65]
    assert 0 < len(best) < len(everything)


def test_an_agent_answers_clicks_and_encodes_the_image_once(cvat, segmenter, tmp_path):
    cvat.waiting = [
        ("interactive", str(i), frame_request("interact", frame=1, pos_points=pos, neg_points=neg, obj_bbox=[]))
        for i, (pos, neg) in enumerate(CLICKS)
    ]
    function = agent(cvat, tmp_path, "interactor")
    assert (function["kind"], function["min_pos_points"], function["min_neg_points"]) == ("interactor", 1, 0)
    kept = PickableMasks.of(segmenter, PATHS[1], segmenter.settings)
    for i, (pos, neg) in enumerate(CLICKS):
        (mask,) = masks(cvat.completed[str(i)]["shapes"], cvat.sizes[1])
        assert np.array_equal(mask, kept.pick(pos, neg))
        assert all(mask[y, x] for x, y in pos)
        assert not any(mask[y, x] for x, y in neg)
    assert cvat.asked.count(("GET", f"/api/tasks/{TASK}/data")) == 1


def test_the_page_names_what_there_is():
    page = (Path(__file__).parents[3] / "docs" / "cvat.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"diffseg\.annotation\.cvat\.(\w+)", page))
    assert modules == {"detector", "interactor"}
    parameters = set(re.findall(r"`-p (\w+)=", page))
    assert parameters == set(signature(detector.create).parameters) > set(signature(interactor.create).parameters)


def test_what_the_agent_caches_is_small(segmenter):
    function = interactor.create(provider="cpu")
    with Image.open(PATHS[0]) as image:
        assert function.preprocess_image(None, image).nbytes < 2_000_000


def test_the_driver_of_the_sdk_takes_the_detector(cvat, segmenter, tmp_path):
    with Client(f"http://127.0.0.1:{cvat.port}") as client:
        client.config.cache_dir = tmp_path
        client.login(AccessTokenCredentials("token"))
        function = detector.create(provider="cpu", label="thing")
        cvataa.annotate_task(client, TASK, function)
    (upload,) = cvat.uploaded
    assert len(upload["shapes"]) == sum(len(segmenter(path).segments) for path in PATHS)


def test_a_task_of_polygons_gets_polygons(cvat, tmp_path):
    cvat.label_type = "polygon"
    cvat.waiting = [("interactive", "1", frame_request("annotate_frame", frame=0))]
    agent(cvat, tmp_path, "detector", "-p", "shape=str:polygon")
    assert {shape["type"] for shape in cvat.completed["1"]["annotations"]["shapes"]} == {"polygon"}


@pytest.mark.parametrize(
    ("wrong", "words"), [({"shape": "box"}, "mask or polygon"), ({"tolerance": -1.0}, "at least 0")]
)
def test_wrong_parameters_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        detector.create(provider="cpu", **wrong)
