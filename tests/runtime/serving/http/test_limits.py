"""The largest body, to the byte: as it is announced, and as it arrives."""

import asyncio

import pytest
from diffseg.serving.http.limits import Bodies, Limits
from diffseg.serving.protocol.errors import RequestError
from starlette.requests import Request

MEGA = 1_000_000


def read(body, limits, *, announced=False):
    """Read a body that arrives in two parts → the body."""
    parts = [
        {"type": "http.request", "body": body[: len(body) // 2], "more_body": True},
        {"type": "http.request", "body": body[len(body) // 2 :], "more_body": False},
    ]
    headers = [(b"content-length", str(len(body)).encode())] if announced else []

    async def receive():
        return parts.pop(0)

    async def run():
        async with Bodies(limits).read(Request({"type": "http", "headers": headers}, receive)) as data:
            return data

    return asyncio.run(run())


@pytest.mark.parametrize("announced", [True, False])
def test_one_byte_too_many(announced):
    limits = Limits(body=1000)
    assert read(b"x" * 1000, limits, announced=announced) == b"x" * 1000
    with pytest.raises(RequestError, match="a body may have at most 1,000 bytes, found at least 1,001"):
        read(b"x" * 1001, limits, announced=announced)


def test_what_is_announced_as_too_large_is_not_read():
    async def receive():
        raise AssertionError("the body was read")

    async def run():
        request = Request({"type": "http", "headers": [(b"content-length", b"1001")]}, receive)
        async with Bodies(Limits(body=1000)).read(request):
            pass

    with pytest.raises(RequestError, match="found at least 1,001"):
        asyncio.run(run())


def test_the_default_limits_are_those_that_are_documented():
    limits = Limits()
    assert (limits.body, limits.bodies, limits.pixels) == (32 * MEGA, 256 * MEGA, 50 * MEGA)
    assert limits.decoded == 1000 * MEGA
    assert (limits.body_seconds, limits.header_seconds, limits.deadline, limits.queue) == (20, 10, 30, 64)
    assert limits.write_seconds == 10


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "identity, gzip", ""])
def test_compressed_bodies_are_refused(encoding):
    async def run(value):
        async def receive():
            return {"type": "http.request", "body": b"x", "more_body": False}

        request = Request({"type": "http", "headers": [(b"content-encoding", value)]}, receive)
        async with Bodies(Limits()).read(request) as data:
            return data

    assert asyncio.run(run(b"identity")) == b"x"
    with pytest.raises(RequestError, match="must not be compressed") as error:
        asyncio.run(run(encoding.encode()))
    assert error.value.status == 415


def test_a_client_that_leaves_before_the_end_of_its_body():
    bodies = Bodies(Limits())
    parts = [{"type": "http.request", "body": b"x" * 10, "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return parts.pop(0)

    async def run():
        async with bodies.read(Request({"type": "http", "headers": []}, receive)):
            pass

    with pytest.raises(RequestError, match="the client disconnected"):
        asyncio.run(run())
    assert bodies.held == 0
