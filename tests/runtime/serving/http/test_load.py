"""The server under load and after failures."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.serving.http.batcher import Batcher, Health
from diffseg.serving.http.job import Job
from diffseg.serving.http.metrics import Metrics
from diffseg.serving.protocol.errors import RequestError
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.doubles import LendingNetwork
from tests.runtime.serving.http.running import PATIENCE, until
from tests.runtime.serving.samples import encoded


class Gated(LendingNetwork):
    """Blocks in every pass until it is released, except in the first one, the warm-up."""

    def __init__(self):
        super().__init__(device="cpu")
        self.gate = threading.Event()
        self.gate.set()

    def session(self):
        assert self.gate.wait(PATIENCE)
        return super().session()


class Breaking(LendingNetwork):
    """Fails a given number of times."""

    failures = 0
    error = RuntimeError

    def session(self):
        if self.failures:
            self.failures -= 1
            raise self.error("CUDA error 700: an illegal memory access")
        return super().session()


def head(path="/v1/segment", *lines):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def send(server, data):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    connection.sendall(data)
    return connection


def test_requests_are_gathered_and_each_gets_its_own(serve):
    network = Gated()
    server = serve(network)
    rng = np.random.default_rng(0)
    pictures = [
        np.kron(rng.integers(0, 256, (2, 2, 3), np.uint8), np.ones((32, 32 + i, 1), np.uint8)) for i in range(9)
    ]
    thresholds = [0.01 * 2**i for i in range(9)]
    alone = [server.service.segmenter(p, threshold=t) for p, t in zip(pictures, thresholds, strict=True)]
    network.gate.clear()
    network.passes.clear()
    with ThreadPoolExecutor(9) as pool:
        calls = [
            pool.submit(server.ask, "POST", f"/v1/segment?threshold={t}", encoded(p))
            for p, t in zip(pictures, thresholds, strict=True)
        ]
        until(lambda: server.service.batcher.waiting + server.service.batcher._running == 9, "the queue")
        network.gate.set()
        answers = [call.result() for call in calls]
    for answer, expected in zip(answers, alone, strict=True):
        assert answer.status == 200
        assert (answer.json()["width"], len(answer.json()["segments"])) == (
            expected.labels.shape[1],
            len(expected.segments),
        )
    assert sum(network.passes) == 9
    assert max(network.passes) == 4
    assert server.metric("diffseg_batch_size_count") == len(network.passes)
    assert server.metric("diffseg_batch_size_sum") == 9


def test_a_full_queue_says_when_to_come_back(serve, png):
    network = Gated()
    server = serve(network, batch=1, queue=2)
    network.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(server.ask, "POST", "/v1/segment", png)]
        until(lambda: server.service.batcher._running == 1, "the first")
        calls += [pool.submit(server.ask, "POST", "/v1/segment", png) for _ in range(2)]
        until(lambda: server.service.batcher.waiting == 2, "the queue")
        refused = server.ask("POST", "/v1/segment", png)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "queue is full" in refused.error
        assert server.metric("diffseg_queue_length") == 2
        network.gate.set()
        assert [call.result().status for call in calls] == [200] * 3
    assert server.metric("diffseg_requests_total", route="/v1/segment", outcome="full") == 1


def test_what_would_wait_past_its_deadline_is_refused_at_once(serve, png):
    network = Gated()
    network.seconds = 0.05
    server = serve(network, batch=1)
    for _ in range(3):
        assert server.ask("POST", "/v1/segment", png).status == 200
    network.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(server.ask, "POST", "/v1/segment", png) for _ in range(4)]
        until(lambda: server.service.batcher.waiting == 3, "the queue")
        answer = server.ask("POST", "/v1/segment?timeout=0.1", png)
        assert answer.status == 503
        assert "too many for" in answer.error
        network.gate.set()
        assert all(call.result().status == 200 for call in calls)


def test_a_deadline_ends_the_work(serve, png):
    network = Gated()
    server = serve(network, batch=1)
    network.gate.clear()
    late = server.ask("POST", "/v1/segment?timeout=0.2", png)
    network.gate.set()
    assert late.status == 504
    assert "not done within 0.2 s" in late.error
    assert server.ask("POST", "/v1/segment", png).status == 200


def test_a_deadline_that_is_over_at_once_is_no_fault_of_others(serve, png):
    server = serve(Gated(), batch=1)
    assert server.ask("POST", "/v1/segment?timeout=0.00001", png).status == 504


def test_a_request_that_was_begun_in_part_is_late(serve, png):
    network = Gated()
    server = serve(network, batch=1)
    network.gate.clear()
    service = server.service
    prepares = [partial(service.segmenter.prepare, np.zeros((8, 8, 3), np.uint8), service.segmenter.settings)] * 2
    with pytest.raises(TimeoutError):
        asyncio.run(service.batcher.segment(prepares, 0.2))
    network.gate.set()


def test_a_deadline_ends_the_wait_and_frees_the_place(serve, png):
    network = Gated()
    server = serve(network, batch=1)
    network.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "POST", "/v1/segment", png)
        until(lambda: server.service.batcher._running == 1, "the first")
        late = server.ask("POST", "/v1/segment?timeout=0.2", png)
        assert late.status == 503
        assert "no turn before the deadline" in late.error
        assert int(late.headers["retry-after"]) >= 1
        until(lambda: server.service.batcher.waiting == 0, "the free place")
        passes = len(network.passes)
        network.gate.set()
        assert first.result().status == 200
    assert server.ask("POST", "/v1/segment", png).status == 200
    assert len(network.passes) == passes + 2


def test_no_time_goes_into_what_would_be_late(serve, png):
    network = Gated()
    server = serve(network, batch=1)
    network.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(server.ask, "POST", "/v1/segment?timeout=25", png) for _ in range(3)]
        until(lambda: (server.service.batcher._running, server.service.batcher.waiting) == (1, 2), "the queue")
        server.service.batcher._pace = 1000.0  # as if the last batches had been terribly slow
        network.gate.set()
        assert sorted(call.result().status for call in calls) == [200, 200, 503]
    assert len(network.passes) == 3  # the warm-up, the one under way, and the last: nobody waits behind it
    assert server.ask("POST", "/v1/segment", png).status == 200  # an idle server tries anything


def test_a_client_that_leaves_frees_its_place(serve, png):
    network = Gated()
    server = serve(network, batch=1, queue=1)
    network.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "POST", "/v1/segment", png)
        until(lambda: server.service.batcher._running == 1, "the first")
        leaver = send(server, head("/v1/segment", f"Content-Length: {len(png)}") + png)
        until(lambda: server.service.batcher.waiting == 1, "the second")
        leaver.close()
        until(lambda: server.service.batcher.waiting == 0, "the free place")
        assert server.service.bodies.held == len(png)
        network.gate.set()
        assert first.result().status == 200
    assert server.metric("diffseg_requests_total", route="/v1/segment", outcome="left") == 1
    assert len(network.passes) == 2  # the warm-up and the first: nobody waits for the other


def test_oversized_bodies_are_refused_before_they_are_read(serve, png):
    server = serve(body=1000)
    with send(server, head("/v1/segment", "Content-Length: 5000000000")) as connection:
        assert b" 413 " in connection.recv(1000)
    with send(
        server, head("/v1/segment", "Transfer-Encoding: chunked") + (b"200\r\n" + b"x" * 512 + b"\r\n") * 3
    ) as connection:
        answer = connection.recv(4000)
        assert b" 413 " in answer
        assert b"connection: close" in answer.lower()
    assert server.service.bodies.held == 0
    compressed = server.ask("POST", "/v1/segment", png[:100], {"Content-Encoding": "gzip"})
    assert compressed.status == 415


def test_no_more_memory_for_bodies(serve, png):
    server = serve(bodies=len(png) - 1)
    answer = server.ask("POST", "/v1/segment", png)
    assert answer.status == 503
    assert "Retry-After" in answer.headers


def test_too_many_pixels_are_refused_before_they_are_decoded(serve, monkeypatch):
    server = serve(pixels=10_000)
    bomb = encoded(np.zeros((300, 300, 3), np.uint8))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    answer = server.ask("POST", "/v1/segment", bomb)
    assert answer.status == 413
    assert "300 × 300" in answer.error


def test_arrays_have_the_same_limit(serve):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 20, 20, 3], "data": [0] * 1200}
    body = json.dumps({"inputs": [tensor]})
    assert serve(pixels=399).ask("POST", "/v2/models/diffseg/infer", body).status == 413
    assert serve(pixels=400).ask("POST", "/v2/models/diffseg/infer", body).status == 200


def test_slow_bodies_and_heads_time_out(serve, png):
    server = serve(body_seconds=0.2, header_seconds=0.2)
    with send(server, head("/v1/segment", f"Content-Length: {len(png)}") + png[:50]) as connection:
        assert b" 408 " in connection.recv(1000)
    for start in (b"", b"POST /v1/seg", head("/v1/segment")[:-2]):
        with send(server, start) as connection:
            assert connection.recv(1000) == b""  # hung up
    assert server.ask("POST", "/v1/segment", png).status == 200


def test_a_batch_that_fails_is_told_and_the_next_one_works(serve, png):
    network = Breaking()
    server = serve(network)
    network.failures = 1
    failed = server.ask("POST", "/v1/segment", png)
    assert failed.status == 500
    assert "illegal" not in failed.error  # that is for the log
    assert server.ask("POST", "/v1/segment", png).status == 200
    assert server.ask("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_worker_that_dies_is_seen(serve, png, error):
    network = Breaking()
    server = serve(network)
    network.failures, network.error = 2, error
    assert server.ask("POST", "/v1/segment", png).status == 500
    until(lambda: server.service.batcher.health is Health.DEAD, "the death")
    assert server.ask("GET", "/v2/health/ready").json() == {"ready": False, "worker": "dead"}
    assert server.ask("GET", "/v2/health/ready").status == 503
    assert server.ask("GET", "/v2/health/live").status == 503
    refused = server.ask("POST", "/v1/segment", png)
    assert refused.status == 503
    assert "worker is dead" in refused.error
    assert server.metric("diffseg_ready") == 0


def test_a_worker_that_is_stuck_is_seen(serve, png):
    network = Gated()
    server = serve(network)
    server.service.batcher.stall = 0.1
    network.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.ask, "POST", "/v1/segment", png)
        until(lambda: server.ask("GET", "/v2/health/ready").status == 503, "the stall")
        assert server.ask("GET", "/v2/health/live").status == 200
        network.gate.set()
        assert call.result().status == 200
    assert server.ask("GET", "/v2/health/ready").status == 200


def test_stopping_finishes_what_was_begun(serve, png):
    network = Gated()
    server = serve(network, batch=1)
    network.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(server.ask, "POST", "/v1/segment", png) for _ in range(3)]
        until(lambda: (server.service.batcher._running, server.service.batcher.waiting) == (1, 2), "the queue")
        server.server.handle_exit(15, None)
        assert not server.service.ready
        until(lambda: not server.server.servers[0].is_serving(), "the closed door")
        with pytest.raises(ConnectionError):
            server.ask("GET", "/v2/health/ready")
        network.gate.set()
        assert [call.result().status for call in calls] == [200] * 3
    server.stop()
    assert server.service.batcher.health is Health.CLOSED


def test_metrics_are_prometheus_own(serve, png):
    server = serve()
    for _ in range(3):
        server.ask("POST", "/v1/segment", png)
    server.ask("POST", "/v1/segment", b"broken")
    server.ask("GET", "/nowhere/at/all")
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(answer.body.decode())}
    counted = {
        tuple(s.labels.values()): s.value for s in families["diffseg_requests"].samples if s.name.endswith("_total")
    }
    assert {(frozenset(k), v) for k, v in counted.items()} == {
        (frozenset({"/v1/segment", "ok"}), 3),
        (frozenset({"/v1/segment", "bad_request"}), 1),
        (frozenset({"other", "not_found"}), 1),
    }
    stages = {
        s.labels["stage"]: s.value for s in families["diffseg_stage_seconds"].samples if s.name.endswith("_count")
    }
    assert stages == dict.fromkeys(
        ("queue", "decode", "resize", "encode", "attend", "aggregate", "merge", "suppress"), 3
    )
    facts = families["diffseg_info"].samples[0].labels
    assert (facts["model"], facts["provider"], facts["precision"]) == ("fake", "double", "fp32")
    assert families["diffseg_ready"].samples[0].value == 1


def test_every_answer_has_an_id_that_the_log_repeats(serve, png, caplog):
    caplog.set_level("INFO", "diffseg.serving.http")
    server = serve()
    given = server.ask("POST", "/v1/segment", png, {"X-Request-Id": "from-the-proxy.1"})
    assert given.headers["x-request-id"] == "from-the-proxy.1"
    made = server.ask("POST", "/v1/segment", b"", {"X-Request-Id": "two words\u00e9"})
    assert len(made.headers["x-request-id"]) == 32
    until(lambda: sum(r.message == "request" for r in caplog.records) == 2, "the log")
    found = [r for r in caplog.records if r.message == "request"]
    assert [(r.status, r.outcome) for r in found] == [(200, "ok"), (400, "bad_request")]


def test_log_lines_are_json():
    import logging

    from diffseg.serving.http.logs import json_formatter
    from structlog.contextvars import bound_contextvars

    with bound_contextvars(request_id="abc"):
        record = logging.LogRecord("x", logging.INFO, "", 0, "two\nlines %d", (5,), None)
        record.status = 200
        line = json_formatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": json.loads(line)["time"],
        "level": "info",
        "logger": "x",
        "message": "two\nlines 5",
        "request_id": "abc",
        "status": 200,
    }


def test_a_traceback_is_one_field():
    import logging
    import sys

    from diffseg.serving.http.logs import json_formatter

    try:
        int("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    line = json.loads(json_formatter().format(record))
    assert line["message"] == "failed"
    assert line["traceback"].endswith("base 10: 'broken'")


def test_uvicorn_logs_through_the_same_pipeline(serve, caplog):
    """Its records reach the root logger, whose handler formats them; none has a handler of its own."""
    import logging

    caplog.set_level("INFO")
    serve()
    assert "uvicorn.error" in {record.name for record in caplog.records}
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        assert logging.getLogger(name).handlers == []


def test_memory_does_not_grow_with_requests(serve, png):
    """No memory of an image is kept after its response."""
    import gc
    import weakref

    server = serve()
    segmenter, seen = server.service.segmenter, []
    finish = segmenter.outcomes

    def watched(images):
        results = finish(images)
        seen.extend(weakref.ref(result.labels) for result in results)
        return results

    segmenter.outcomes = watched
    for _ in range(5):
        assert server.ask("POST", "/v1/segment", png).status == 200
    end = time.monotonic() + PATIENCE
    while any(ref() is not None for ref in seen):
        assert time.monotonic() < end
        gc.collect()
    assert server.service.bodies.held == 0


@pytest.fixture
def queue(fake_bundle):
    """A batcher that is not started, for batches of 2; and how to put decoded images into its queue."""
    segmenter = Segmenter(fake_bundle, LendingNetwork(), batch=2)
    batcher = Batcher(segmenter, Metrics(), capacity=7, gather=1000.0)

    def put(count, seconds=1000.0):
        jobs = [Job(partial(segmenter.prepare, np.zeros((8, 8, 3), np.uint8)), seconds) for _ in range(count)]
        batcher._submit(jobs)
        until(lambda: len(batcher._decoded()) == min(len(batcher._jobs), 2 * segmenter.batch), "the decoded images")
        return jobs

    yield batcher, put
    batcher._jobs.clear()
    batcher.close(0)


def test_images_of_two_batches_are_decoded_ahead(queue):
    batcher, put = queue
    jobs = put(7)
    assert [job.prepared is not None for job in jobs] == [True] * 4 + [False] * 3
    assert batcher._full()  # the first batch does not wait for others to arrive
    assert batcher._take() == jobs[:2]
    assert [job.prepared is not None for job in jobs] == [True] * 6 + [False]
    assert [job.begun for job in jobs[:3]] == [True, True, False]


def test_a_queue_takes_exactly_its_capacity(queue):
    _, put = queue
    with pytest.raises(RequestError, match="the queue takes 7 images, found 8"):
        put(8)
    put(7)
    with pytest.raises(RequestError, match="the queue is full: 7 images wait"):
        put(1)


def test_the_last_image_is_not_begun_after_its_deadline(queue):
    batcher, put = queue
    batcher.gather = 0.0
    (late,) = put(1, seconds=0.0)
    (good,) = put(1)
    assert batcher._take() == [good]
    assert isinstance(late.result.exception(0), TimeoutError)
    assert batcher._since <= time.monotonic() < batcher._since + 100


def test_masks_may_take_as_long_as_the_network_and_two_seconds(queue):
    batcher, _ = queue
    assert batcher.masking_seconds == 2.0
    batcher._pace = 5.0
    assert batcher.masking_seconds == 5.0
    batcher._running = 3
    assert batcher.expected_wait == 15.0
