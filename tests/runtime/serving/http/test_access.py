"""Access control."""

import socket

import pytest
from diffseg.serving.http.access import LOCAL_NAMES, host_name, is_loopback

from tests.runtime.serving.http.running import PATIENCE, Running


def test_a_token_is_asked_for_before_the_body_is_read(serve, png):
    server = serve(token="secret")  # noqa: S106
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
    ):
        answer = server.ask("POST", "/v1/segment", png[:10], headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer secret"}
    assert server.ask("POST", "/v1/segment", png, right).status == 200
    for path in ("/metrics", "/v2", "/v2/models/diffseg", "/v1/images/x/masks"):
        assert server.ask("GET", path).status == 401
    assert server.ask("GET", "/metrics", headers=right).status == 200
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/diffseg/ready", "/openapi.json"):
        assert server.ask("GET", path).status == 200
    assert server.metric("diffseg_requests_total", route="/v1/segment", outcome="unauthorized") == 4


def test_tokens_are_compared_in_constant_time(serve, png, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    serve(token="secret").ask("POST", "/v1/segment", png, {"Authorization": "Bearer \u00e9"})  # noqa: S106
    assert compared
    assert compared[0][0] == b"secret"


def test_without_a_token_other_names_are_turned_away(serve, png):
    """A malicious page whose name resolves to 127.0.0.1 sends its own name as the host."""
    server = serve()
    for host in ("localhost:99", "127.0.0.1", "[::1]:8000"):
        assert server.ask("GET", "/v2/health/live", headers={"Host": host}).status == 200
    for host in ("evil.example", "localhost.evil.example:8000", ""):
        answer = server.ask("POST", "/v1/segment", png, {"Host": host})
        assert answer.status == 421
        assert "127.0.0.1" in answer.error
    for site, status in (("cross-site", 403), ("same-origin", 200)):
        assert server.ask("POST", "/v1/segment", png, {"Sec-Fetch-Site": site}).status == status
    assert serve(token="x").ask("GET", "/v2/health/live", headers={"Host": "my.example"}).status == 200  # noqa: S106


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "")),  # noqa: S104
        *((host, False) for host in ("localhost.example.org", "localhosts", "localhost:80")),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_host_names():
    assert [host_name(h) for h in ("LOCALHOST:80", "[::1]:8", "[::1]", "a", "")] == [
        "localhost",
        "[::1]",
        "[::1]",
        "a",
        "",
    ]
    assert "localhost" in LOCAL_NAMES


def test_answers_make_browsers_careful(serve):
    server = serve()
    page = server.ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    for path in ("/", "/v2", "/none"):
        headers = server.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert server.ask("GET", "/docs").status == 404  # its script would come from a CDN
    assert isinstance(server, Running)


def test_pages_of_other_sites_and_ports_are_turned_away(serve, png):
    server = serve()
    own = f"http://127.0.0.1:{server.port}"
    for headers, status in (
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": own}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": own}, 200),
        ({}, 200),
    ):
        assert server.ask("POST", "/v1/segment", png, headers).status == status, headers
    assert server.ask("DELETE", "/v1/images/x", headers={"Origin": "http://evil.example"}).status == 403


def test_a_token_may_have_any_letters(serve, png):
    server = serve(token="schlüssel-鍵")  # noqa: S106
    right = {"Authorization": "Bearer schlüssel-鍵".encode()}
    assert server.ask("POST", "/v1/segment", png, right).status == 200
    assert server.ask("POST", "/v1/segment", png, {"Authorization": "Bearer schlüssel".encode()}).status == 401


def test_two_lengths_end_the_connection(serve):
    server = serve()
    request = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled = b"0\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(request + smuggled)
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()


def test_no_redirect_repeats_the_host(serve):
    answer = serve(token="x").ask("GET", "/v2/", headers={"Host": "evil.example"})  # noqa: S106
    assert answer.status == 404
    assert "location" not in answer.headers
    assert b"evil" not in answer.body
