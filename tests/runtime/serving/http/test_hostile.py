"""Requests that are meant to harm: each gets one line, and none blocks the others."""

import gc
import io
import json
import socket
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from diffseg import masks
from diffseg.cancellation import StoppedError, checkpoint
from diffseg.image import read_image
from diffseg.serving.http import batcher
from diffseg.serving.http.kserve import MOST_JSON, read_inference
from diffseg.serving.http.limits import open_image
from diffseg.serving.http.memory import MemoryBudget
from diffseg.serving.protocol import untrusted
from diffseg.serving.protocol.echo import LONGEST, cut, shorten
from diffseg.serving.protocol.errors import RequestError
from diffseg.serving.protocol.untrusted import decode_in_strips, memory_of
from PIL import Image

from tests.runtime.serving.http.running import PATIENCE, until
from tests.runtime.serving.http.test_load import Gated, head, send
from tests.runtime.serving.http.test_segment import form
from tests.runtime.serving.samples import encoded

URL = "/v2/models/diffseg/infer"
ENCODED = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
HUGE = 10**400


def nested(depth):
    return "[" * depth + "]" * depth


def infer(tensor=IMAGE, **rest):
    return json.dumps({"inputs": [tensor], **rest})


def test_a_shape_is_never_multiplied_before_its_length_is_known(serve):
    server = serve()
    for tensor in (ENCODED, IMAGE):
        answer = server.ask("POST", URL, infer(tensor | {"shape": [9] * 1_000_000}))
        assert answer.status == 400
        assert "at most 4" in answer.error
    for shape in ([1, 1, 1, 1], [1, 2], [1, 1, 1]):
        answer = server.ask("POST", URL, infer(ENCODED | {"shape": shape}))
        assert answer.status == 400
        assert "(B) or (B, 1)" in answer.error


@pytest.mark.parametrize(
    "body",
    [
        infer(IMAGE | {"name": []}),
        infer(IMAGE | {"name": {}}),
        infer(IMAGE | {"datatype": []}),
        infer(IMAGE | {"data": [1, 2, HUGE]}),
        infer(IMAGE | {"shape": [1, HUGE, 1, 3]}),
        infer(parameters={"threshold": HUGE}),
        infer(parameters={"threshold": [HUGE]}),
        infer(parameters={"threshold": [1] * 100_000}),
        infer(parameters={"threshold": 1e308}),
        infer(parameters={"threshold": [1, 1e39]}),
        infer(parameters={"anchors": HUGE}),
        infer(parameters={"anchors": 65}),
        infer(parameters={"refine": []}),
        infer(parameters={"refine": {}}),
        infer(parameters={"fit": []}),
        infer(parameters={"timeout": []}),
        infer(parameters={"\ud800": 1}),
        infer(parameters={"fit": "\ud800"}),
        infer(id={"a": 1}),
        infer(id="x" * 201),
        infer(IMAGE | {"parameters": {"binary_data_size": HUGE}}),
        infer(outputs=[{"name": []}]),
        *(
            f'{{"inputs": [{{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": {nested(n)}}}]}}'
            for n in (90, 500, 930, 980)
        ),
        *(infer(parameters={"fit": "@"}).replace('"@"', nested(n)) for n in (90, 500, 930, 960)),
        *(infer(parameters={"threshold": "@"}).replace('"@"', nested(n)) for n in (90, 930)),
        *(infer(id="@").replace('"@"', nested(n)) for n in (90, 930)),
    ],
    ids=lambda body: str(len(body)),
)
def test_a_bad_request_is_answered_with_one_line(serve, body, caplog):
    answer = serve().ask("POST", URL, body)
    assert answer.status == 400
    assert "\n" not in answer.error
    assert len(answer.error) < 400
    assert not [record for record in caplog.records if record.exc_info]


def test_a_timeout_of_ages_is_the_deadline(serve):
    assert serve().ask("POST", URL, infer(parameters={"timeout": HUGE})).status == 200


@pytest.mark.parametrize("charset", ["undefined", "none-such", "rot13", "idna", "hex", "utf-7", '"', "utf-16"])
def test_charsets_of_forms(serve, png, charset, caplog):
    body, headers = form(png)
    headers = {"Content-Type": headers["Content-Type"] + f"; charset={charset}"}
    assert serve().ask("POST", "/v1/segment", body, headers).status in (200, 400)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_timeout_that_nobody_can_meet_is_refused(serve, png):
    server = serve()
    for path in ("/v1/segment?timeout=5e-324", "/v1/segment?timeout=1e-9"):
        answer = server.ask("POST", path, png)
        assert answer.status == 400
        assert "at least 1e-06 s" in answer.error


def test_images_are_counted_before_they_are_read():
    many = json.dumps(
        {"inputs": [{**ENCODED, "shape": [100_000], "parameters": {"binary_data_size": 400_000}}]}
    ).encode()
    with pytest.raises(RequestError, match="takes 64 images"):
        read_inference(many + bytes(400_000), len(many), 64)
    # One image is announced, and the reader stops after the second of 1,000,000.
    few = json.dumps({"inputs": [{**ENCODED, "parameters": {"binary_data_size": 4_000_000}}]}).encode()
    with pytest.raises(RequestError, match="cannot hold 2 images"):
        read_inference(few + bytes(4_000_000), len(few), 64)
    with pytest.raises(RequestError, match="list of 1"):
        read_inference(infer(ENCODED | {"data": ["AAAA"] * 10}).encode(), None, 64)


def test_json_is_limited_and_tensors_go_as_binary(serve):
    answer = serve().ask("POST", URL, infer(ENCODED | {"data": ["A" * MOST_JSON]}))
    assert answer.status == 413
    assert "binary" in answer.error


def test_echoes_are_short_whatever_they_repeat(serve, png):
    deep = json.loads(nested(900))
    for value in ("x" * 10**6, b"x" * 10**6, deep, HUGE**100, [[1] * 100] * 100, {"a": deep}, None, 1.5):
        start = time.process_time()
        assert len(shorten(value)) <= LONGEST + 1
        assert time.process_time() - start < 1
    assert cut("\ud800") == "\\ud800"
    server = serve()
    for method, path, headers in (
        ("POST", "/v1/segment", {"Accept": "x/" + "y" * 5000}),
        ("POST", "/v2/models/" + "z" * 5000 + "/infer", {}),
        ("GET", "/" + "z" * 5000, {}),
        ("POST", "/v1/segment?fit=" + "z" * 5000, {}),
    ):
        answer = server.ask(method, path, png, headers)
        assert answer.status in (400, 404, 406)
        assert len(answer.body) < 500


def test_an_image_that_takes_long_to_decode_stops_nobody(serve, png, monkeypatch):
    server = serve(batch=1)
    gate, prepare = threading.Event(), server.service.segmenter.prepare
    begun = threading.Event()

    def slow(image, *arguments, **options):
        if image.size == (7, 7):
            begun.set()
            assert gate.wait(PATIENCE)
        return prepare(image, *arguments, **options)

    monkeypatch.setattr(server.service.segmenter, "prepare", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "POST", "/v1/segment", encoded(np.zeros((7, 7, 3), np.uint8)))
        assert begun.wait(PATIENCE)
        for _ in range(3):
            assert server.ask("POST", "/v1/segment", png).status == 200
        assert not first.done()
        late = server.ask("POST", "/v1/segment?timeout=0.2", encoded(np.zeros((7, 7, 3), np.uint8)))
        assert late.status in (503, 504)
        assert server.ask("POST", "/v1/segment", png).status == 200
        gate.set()
        assert first.result().status == 200


def test_images_are_opened_beside_the_event_loop_and_within_the_deadline(serve, png, monkeypatch):
    server = serve()
    gate, begun = threading.Event(), threading.Event()

    def slow(data, pixels):
        begun.set()
        assert gate.wait(PATIENCE)
        return open_image(data, pixels)

    monkeypatch.setattr("diffseg.serving.http.service.open_image", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "POST", "/v1/segment", png)
        assert begun.wait(PATIENCE)
        assert server.ask("GET", "/v2/health/ready").status == 200
        assert server.ask("POST", "/v1/segment?timeout=0.2", png).status == 504
        gate.set()
        assert first.result().status == 200


def test_slow_merging_does_not_make_the_network_look_slow(serve, png):
    server = serve(batch=1)
    finish = server.service.segmenter.outcomes

    def merging(images):
        results = finish(images)
        for result in results:
            result.timings["refine"] = 1000.0
        time.sleep(0.3)
        return results

    server.service.segmenter.outcomes = merging
    assert server.ask("POST", "/v1/segment", png).status == 200
    assert server.service.batcher._pace < 0.3


def test_decoded_images_have_a_budget(serve, png, monkeypatch):
    each = memory_of(open_image(png, 10**6))
    server = serve(decoded=2 * each)
    memory = server.service.memory
    assert server.ask("POST", "/v1/segment", png).status == 200
    until(lambda: memory.held == 0, "the memory")
    charge = memory.charge(each + 1)  # another request
    answer = server.ask("POST", "/v1/segment", png)
    assert answer.status == 503
    assert answer.headers["retry-after"]
    charge.release()
    assert server.ask("POST", "/v1/segment", png).status == 200
    until(lambda: memory.held == 0, "the memory")
    large = server.ask("POST", "/v1/segment", encoded(np.zeros((400, 400, 3), np.uint8)))
    assert large.status == 413
    assert server.ask("POST", "/v1/segment", b"broken").status == 400
    assert memory.held == 0


def test_a_charge_ends_with_its_last_user():
    memory = MemoryBudget(100)
    charge = memory.charge(100)
    charge.hold()
    charge.release()
    assert memory.held == 100
    charge.release()
    assert memory.held == 0
    with pytest.raises(TimeoutError):
        charge.hold()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_strips_give_the_same_image(mode, orientation, monkeypatch):
    monkeypatch.setattr(untrusted, "STRIP", 90)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (23, 31, 4), np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (23, 31)).astype(np.uint16))
    elif mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = 3
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    whole, strips = (function(open_image(file.getvalue(), 10**6)) for function in (read_image, decode_in_strips))
    assert whole.size == ((31, 23) if orientation < 5 else (23, 31))
    np.testing.assert_array_equal(np.asarray(strips), np.asarray(whole))


def test_an_answer_that_nobody_reads_is_dropped(serve, png, monkeypatch):
    server = serve(write_seconds=0.2)
    monkeypatch.setattr("diffseg.serving.http.images.encode", lambda *_: bytes(30_000_000))
    request = f"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(png)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(request + png)
        until(lambda: server.metric("diffseg_requests_total", route="/v1/segment", outcome="ok") == 1, "the answer")
        until(lambda: not server.server.server_state.connections, "the end of the connection")
    answer = server.ask("POST", "/v1/segment", png)  # a client that reads gets all of it
    assert len(answer.body) == 30_000_000


def test_a_refinement_takes_fewer_anchors(serve, png):
    server = serve()
    for refine in ("kmeans", "colour"):
        assert server.ask("POST", f"/v1/segment?refine={refine}&anchors=32", png).status == 200
        answer = server.ask("POST", f"/v1/segment?refine={refine}&anchors=33", png)
        assert answer.status == 400
        assert "at most 32" in answer.error
        assert server.ask("POST", URL, infer(parameters={"refine": refine, "anchors": 64})).status == 400
    assert server.ask("POST", "/v1/segment?anchors=64", png).status == 200


@pytest.fixture
def endless(monkeypatch):
    """Colour refinement that never ends, except at a checkpoint; how often it has begun and was stopped."""
    counts = SimpleNamespace(begun=0, stopped=0)

    def refine(labels, pixels):
        counts.begun += 1
        counts.seen = weakref.ref(labels)
        try:
            while True:
                checkpoint()
                sum(range(10_000))
        except StoppedError:
            counts.stopped += 1
            raise

    monkeypatch.setitem(masks.PIXEL_REFINEMENTS, "colour", refine)
    return counts


def decoded(waiting):
    with waiting._changed:
        return len(waiting._decoded())


def test_masks_that_take_too_long_are_stopped_and_others_of_the_batch_are_made(serve, png, endless, monkeypatch):
    network = Gated()
    server = serve(network, batch=3)
    monkeypatch.setattr(batcher, "LEAST_MASKING", 0.5)
    pace = server.service.batcher._pace
    network.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        blocker = pool.submit(server.ask, "POST", "/v1/segment", png)
        until(lambda: server.service.batcher._running == 1, "the first")
        paths = ("/v1/segment", "/v1/segment?refine=colour", "/v1/segment")
        calls = [pool.submit(server.ask, "POST", path, png) for path in paths]
        until(lambda: decoded(server.service.batcher) == 3, "the decoded images")
        network.gate.set()
        answers = [call.result() for call in calls]
    assert blocker.result().status == 200
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert "with these settings; use fewer anchors" in answers[1].error
    assert network.passes[-1] == 3
    assert endless.stopped == 1
    assert server.service.batcher._pace != pace
    assert server.metric("diffseg_requests_total", route="/v1/segment", outcome="costly") == 1
    until(lambda: server.service.memory.held == 0, "the memory")


@pytest.mark.parametrize("kind", ["costly", "late", "new masks"])
def test_stopped_masks_leave_nothing_in_memory(serve, png, endless, monkeypatch, kind):
    """Frames of the error that stops them would refer to the attention, and to themselves."""
    server = serve(batch=1)
    key = server.ask("POST", "/v1/images", png).json()["id"]
    monkeypatch.setattr(batcher, "LEAST_MASKING", 1000.0 if kind == "late" else 0.3)
    gc.collect()
    gc.disable()
    try:
        if kind == "new masks":
            answer = server.ask("GET", f"/v1/images/{key}/masks?refine=colour")
        else:
            answer = server.ask("POST", f"/v1/segment?refine=colour{'&timeout=2' * (kind == 'late')}", png)
        assert answer.status == (504 if kind == "late" else 400)
        until(lambda: endless.stopped == 1, "the end of the refinement")
        until(lambda: endless.seen() is None, "the end of its arrays")
    finally:
        gc.enable()


def test_an_image_is_freed_when_its_masks_end_after_its_request(serve, png, endless, monkeypatch):
    monkeypatch.setattr("diffseg.serving.http.app.EXPIRY_SECONDS", 0.2)
    server = serve(batch=1)
    monkeypatch.setattr(batcher, "LEAST_MASKING", 1000.0)
    prepare, seen = server.service.segmenter.prepare, []

    def opened(data, pixels):
        image = open_image(data, pixels)
        seen.append(weakref.ref(image))
        return image

    def prepared(image, *arguments, **options):
        seen.append(weakref.ref(image))
        return prepare(image, *arguments, **options)

    monkeypatch.setattr("diffseg.serving.http.service.open_image", opened)
    monkeypatch.setattr(server.service.segmenter, "prepare", prepared)
    gc.collect()
    gc.disable()
    try:
        assert server.ask("POST", "/v1/segment?refine=colour&timeout=2", png).status == 504
        until(lambda: endless.stopped == 1, "the end of the refinement")
        until(lambda: [image() for image in seen] == [None, None], "the end of the image")
    finally:
        gc.enable()


def test_masks_are_stopped_at_the_deadline_or_when_the_client_leaves(serve, png, endless, monkeypatch):
    monkeypatch.setattr(batcher, "LEAST_MASKING", 1000.0)
    server = serve(batch=1)
    late = server.ask("POST", "/v1/segment?refine=colour&timeout=3", png)
    assert late.status == 504
    until(lambda: endless.stopped == endless.begun == 1, "the end of the refinement")
    assert server.ask("POST", "/v1/segment", png).status == 200
    leaver = send(server, head("/v1/segment?refine=colour", f"Content-Length: {len(png)}") + png)
    until(lambda: endless.begun == 2, "the refinement")
    leaver.close()
    end = time.monotonic() + server.service.limits.deadline / 2  # it ends earlier than at the deadline
    until(lambda: endless.stopped == 2, "the end of the refinement")
    assert time.monotonic() < end
    assert server.ask("POST", "/v1/segment", png).status == 200


def test_new_masks_that_take_too_long_are_stopped(serve, png, endless, monkeypatch):
    server = serve()
    key = server.ask("POST", "/v1/images", png).json()["id"]
    monkeypatch.setattr(batcher, "LEAST_MASKING", 0.5)
    answer = server.ask("GET", f"/v1/images/{key}/masks?refine=colour")
    assert answer.status == 400
    assert "with these settings; use fewer anchors" in answer.error
    monkeypatch.setattr(batcher, "LEAST_MASKING", 1000.0)
    server.service.limits = replace(server.service.limits, deadline=0.2)
    assert server.ask("GET", f"/v1/images/{key}/masks?refine=colour").status == 504
    until(lambda: endless.stopped == 2, "the end of the refinement")
    assert server.ask("GET", f"/v1/images/{key}/masks?refine=none").status == 200


@pytest.mark.parametrize(
    ("mode", "kind", "each"),
    [
        ("RGB", "PNG", 16),
        ("L", "PNG", 13),
        ("1", "PNG", 13),
        ("P", "PNG", 13),
        ("LA", "PNG", 16),
        ("RGBA", "PNG", 16),
        ("I;16", "PNG", 14),
        ("F", "TIFF", 48),
        ("I", "TIFF", 48),
        ("I;16B", "TIFF", 14),
        ("RGB", "JPEG", 16),
        ("CMYK", "JPEG", 16),
        ("RGB", "WEBP", 20),
        ("RGB", "JPEG2000", 28),
    ],
)
def test_the_memory_that_an_image_reserves(mode, kind, each):
    image = Image.new("L", (20, 10)).convert("I").convert("I;16") if mode == "I;16" else Image.new(mode, (20, 10))
    file = io.BytesIO()
    image.save(file, kind)
    assert memory_of(open_image(file.getvalue(), 10**6)) == 200 * each


def test_a_progressive_jpeg_reserves_its_coefficients():
    file = io.BytesIO()
    Image.new("RGB", (20, 10)).save(file, "JPEG", progressive=True)
    assert memory_of(open_image(file.getvalue(), 10**6)) == 200 * 22


def test_sides_and_pixels_are_limited_exactly(monkeypatch):
    monkeypatch.setattr(untrusted, "MOST_SIDE", 50)
    untrusted.check_pixels(50, 20, 1000)
    untrusted.check_pixels(20, 50, 1000)
    for height, width in ((51, 1), (1, 51), (50, 21)):
        with pytest.raises(RequestError, match=f"found {width} × {height}"):
            untrusted.check_pixels(height, width, 1000)


@pytest.mark.parametrize(("mode", "parts"), [("RGB", 1), ("L", 1), ("RGBA", 6), ("LA", 6)])
def test_only_large_images_that_need_more_memory_are_decoded_in_strips(mode, parts, monkeypatch):
    seen = []
    monkeypatch.setattr(untrusted, "read_image", lambda image: seen.append(image.size) or read_image(image))
    file = io.BytesIO()
    Image.new(mode, (20, 30)).save(file, "PNG")
    for strip, expected in ((100, parts), (600, 1), (599, 2 if parts > 1 else 1)):
        monkeypatch.setattr(untrusted, "STRIP", strip)
        seen.clear()
        assert decode_in_strips(open_image(file.getvalue(), 10**6)).size == (20, 30)
        assert len(seen) == expected
