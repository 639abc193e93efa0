"""Fuzzers of the server: every answer is one line, none is 500, and the log has no traceback."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.images import mutated
from tests.hostile.requests import forms, heads, messages, queries

FEW = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ALLOWED = {200, 400, 404, 406, 413, 415, 503, 504}


@pytest.fixture
def hostile(serve, caplog):
    """A server whose log must have no traceback in the end, and that must still work."""
    server = serve()

    def check(answer):
        assert answer.status in ALLOWED, answer.body[:300]
        if answer.status != 200:
            assert "\n" not in answer.error
            assert len(answer.body) < 2000

    yield server, check
    assert not [record for record in caplog.records if record.exc_info]
    assert server.ask("GET", "/v2/health/ready").status == 200
    assert server.service.memory.held == server.service.bodies.held == 0


@given(body=messages, head=heads, tail=st.binary(max_size=12))
@FEW
def test_inference_requests(hostile, body, head, tail):
    server, check = hostile
    headers = {} if head is None else {"Inference-Header-Content-Length": str(len(body)) if head == "" else head}
    check(server.ask("POST", "/v2/models/diffseg/infer", body + (tail if headers else b""), headers))


@given(form=forms, query=queries)
@FEW
def test_forms(hostile, form, query):
    server, check = hostile
    body, kind = form
    check(server.ask("POST", f"/v1/segment?{query}", body, {"Content-Type": kind}))


def test_mutated_images(hostile):
    server, check = hostile
    for _, data in mutated(100, seed=1):
        check(server.ask("POST", "/v1/segment", data))


def test_the_interface_is_as_described(hostile):
    """Schemathesis makes requests from /openapi.json and checks the responses, with all of its checks but one.

    It cannot know which bytes are an image, nor that a refinement takes fewer anchors. So it may not demand that every
    request of the right form succeeds.
    """
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, from the extra 'dev'")
    server, _ = hostile
    schema = schemathesis.openapi.from_dict(json.loads(server.ask("GET", "/openapi.json").body))
    schema.config.update(base_url=server.url)
    unfair = [schemathesis.checks.positive_data_acceptance]

    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @given(case=strategy)
        @settings(FEW, max_examples=15)
        def ask(case):
            case.call_and_validate(excluded_checks=unfair)

        ask()
