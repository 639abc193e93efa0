"""The server on Ray Serve with two replicas: the client tests of `diffseg serve`, and kept attention."""

import http.client
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from diffseg import Segmenter

from tests.integrations.ray.samples import PATIENCE, alive, descendants, kill, until
from tests.runtime.serving.http.running import ask
from tests.runtime.serving.http.test_segment import (  # noqa: F401 - run here, too
    test_a_form_is_the_same_as_a_body,
    test_broken_images_are_the_client_s_fault,
    test_errors_are_in_our_own_words,
    test_settings_are_passed_on,
    test_settings_out_of_range,
    test_stored_attention_is_cut_again,
    test_three_answers_of_one_image,
)
from tests.runtime.serving.samples import encoded

ROOT = Path(__file__).parents[3]
REPLICAS = 2


class Served:
    """Asks the application over HTTP; `service.segmenter` is the same bundle in this process."""

    def __init__(self, port, segmenter):
        self.port = port
        self.segmenter = segmenter
        self.service = self

    def ask(self, method, path, body=None, headers=None):
        return ask(self.port, method, path, body, headers, PATIENCE)


@pytest.fixture(scope="module")
def served(cluster, bundle):
    """The config file of the repository, with the bundle of these tests and two replicas."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = yaml.safe_load((ROOT / "containers" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    config["proxy_location"] = "HeadOnly"  # both nodes are this machine, and share its ports
    (application,) = config["applications"]
    application["args"] |= {"model": str(bundle), "provider": "cpu", "threads": 1, "keep": 64, "no_token": True}
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": REPLICAS, "max_replicas": REPLICAS}
    application["deployments"][0]["ray_actor_options"] = {"num_cpus": 0.2}
    schema = ServeDeploySchema.model_validate(config)
    serve.start(proxy_location=schema.proxy_location, http_options=schema.http_options.model_dump())
    _get_global_client().deploy_apps(schema, _blocking=True)
    with Segmenter.load(bundle, provider="cpu", threads=1) as segmenter:
        yield Served(port, segmenter)
    serve.shutdown()


@pytest.fixture
def serve(served):
    return lambda: served


@pytest.fixture
def photo():
    array = np.zeros((120, 200, 3), np.uint8)
    array[:60] = (90, 150, 230)
    array[60:] = (60, 140, 50)
    array[30:100, 70:130] = (200, 60, 40)
    return array


@pytest.fixture
def png(photo):
    return encoded(photo)


def replicas():
    import os

    return [pid for pid, line in descendants(os.getpid()).items() if line.startswith("ray::ServeReplica")]


def test_the_page_and_the_metrics_are_there(served):
    assert b"Choose images" in served.ask("GET", "/").body
    assert b"diffseg_queue_length" in served.ask("GET", "/metrics").body


def test_requests_for_kept_attention_reach_its_replica(served, png):
    keys = {}
    for threshold in np.linspace(0.05, 1, 24):
        answer = served.ask("POST", f"/v1/images?threshold={threshold:.2f}", png)
        assert answer.status == 201
        keys[answer.json()["id"]] = f"{threshold:.2f}", answer.json()["segments"]
    assert len({key.partition(".")[0] for key in keys}) == REPLICAS
    for key, (threshold, segments) in keys.items():
        assert served.ask("GET", f"/v1/images/{key}/masks?threshold={threshold}").json()["segments"] == segments
    first = next(iter(keys))
    assert served.ask("DELETE", f"/v1/images/{first}").status == 204
    assert served.ask("GET", f"/v1/images/{first}/masks").status == 404


def test_what_a_dead_replica_kept_is_gone_and_the_answer_says_so(served, png):
    key = served.ask("POST", "/v1/images", png).json()["id"]
    before = replicas()
    assert len(before) == REPLICAS
    for pid in before:
        kill(pid)
    until(lambda: not alive(before), "the end of the replicas")

    def answer(status, *request):
        try:
            found = served.ask(*request)
        except (OSError, http.client.HTTPException):  # while there is no replica
            return None
        return found if found.status == status else None

    gone = until(lambda: answer(404, "GET", f"/v1/images/{key}/masks"), "an answer")
    assert re.search("was on a server that has ended.*send the image again", gone.error)
    until(lambda: answer(200, "POST", "/v1/segment", png), "a new replica")
