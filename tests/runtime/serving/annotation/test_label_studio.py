"""What is fetched from Label Studio, and what never is."""

import pytest
from diffseg.engines.errors import ImageError
from diffseg.serving.annotation import label_studio
from diffseg.serving.annotation.label_studio import LabelStudio

from tests.runtime.serving.annotation.tool import Tool, access, cut_off, drip, needs, redirect

PHOTO = "/data/upload/1/photo.jpg"


@pytest.fixture
def tool():
    running = Tool(
        {PHOTO: b"photo", "/data/local-files/?d=a%20b/c.jpg": b"local", "/tasks/7/resolve/?fileuri=eA==": b"cloud"}
    )
    yield running
    running.close()


def test_paths_and_urls_of_the_server_are_fetched(tool):
    source = LabelStudio(tool.url, "token")
    assert source.fetch(PHOTO) == source.fetch(tool.url + PHOTO) == b"photo"
    assert source.fetch("/data/local-files/?d=a b/c.jpg") == b"local"
    assert source.fetch("/tasks/7/resolve/?fileuri=eA==") == b"cloud"
    assert {authorisation for *_, authorisation in tool.asked} == {"Token token"}


def test_a_server_may_be_in_a_folder(tool):
    tool.files["/labels" + PHOTO] = b"inside"
    source = LabelStudio(f"{tool.url}/labels/")
    assert (
        source.fetch(PHOTO) == source.fetch("/labels" + PHOTO) == source.fetch(f"{tool.url}/labels{PHOTO}") == b"inside"
    )
    assert tool.asked[0][2] is None  # no token


@pytest.mark.parametrize(
    "value",
    [
        "file:///etc/passwd",
        "http://127.0.0.1/data/upload/1/photo.jpg",  # another port
        "http://other.example.org/data/upload/1/photo.jpg",
        "//other.example.org/data/upload/1/photo.jpg",
        "https://127.0.0.1:{port}/data/upload/1/photo.jpg",
        "http://127.0.0.1:{port}@other.example.org/data/upload/1/photo.jpg",
        "http://user@127.0.0.1:{port}/data/upload/1/photo.jpg",
        "http://127.0.0.1:99999/data/upload/1/photo.jpg",
        "http://[::1/data/upload",
        "s3://bucket/photo.jpg",
        "data:image/png;base64,AAAA",
        "data/upload/1/photo.jpg",
        "/api/users/",
        "/data/../api/users/",
        "/data/%2e%2e/api/users/",
        "/data/%252e%252e/api/users/",
        "/data/..\\api/users",
        "/data/a\r\nX: b",
        "/tasks/7/",
        "/tasks/7/resolve/../../../api/users",
        "/data/",
        "/",
        "",
        None,
        7,
        ["/data/upload/1/photo.jpg"],
    ],
)
def test_nothing_else_is_asked_for(tool, value):
    port = tool.http.server_address[1]
    source = LabelStudio(tool.url, "token")
    with pytest.raises(ImageError) as caught:
        source.fetch(value.format(port=port) if isinstance(value, str) and "{port}" in value else value)
    assert tool.asked == []
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_redirections_are_not_followed(tool):
    tool.files["/data/away"] = redirect(tool.url + PHOTO)
    with pytest.raises(ImageError, match="302 for /data/away, a redirect, which is not followed"):
        LabelStudio(tool.url, "token").fetch("/data/away")
    assert len(tool.asked) == 1


def test_missing_files_and_wrong_tokens_are_told(tool):
    tool.files[PHOTO] = needs("Token right", b"photo")
    with pytest.raises(ImageError, match="answered 404 for /data/none$"):
        LabelStudio(tool.url, "right").fetch("/data/none")
    with pytest.raises(ImageError, match="answered 401 for .*; set its token"):
        LabelStudio(tool.url, "wrong").fetch(PHOTO)
    assert LabelStudio(tool.url, "right").fetch(PHOTO) == b"photo"


def test_a_personal_access_token_is_exchanged(tool):
    tool.files |= {PHOTO: needs("Bearer x.y.z", b"photo"), "/api/token/refresh/": access}
    source = LabelStudio(tool.url, "a.b.c")
    assert source.fetch(PHOTO) == source.fetch(PHOTO) == b"photo"
    assert [path for _, path, _ in tool.asked] == ["/api/token/refresh/", PHOTO, PHOTO]
    with pytest.raises(ImageError, match="personal access token; make a new one"):
        LabelStudio(tool.url, "d.e.f").fetch(PHOTO)


def test_an_expired_access_token_is_exchanged_again(tool):
    tool.files |= {PHOTO: needs("Bearer x.y.z", b"photo"), "/api/token/refresh/": access}
    source = LabelStudio(tool.url, "a.b.c")
    source._access = "old", float("inf")
    assert source.fetch(PHOTO) == b"photo"


def test_large_files_are_refused(tool):
    with pytest.raises(ImageError, match="at most 4 bytes"):
        LabelStudio(tool.url, most=4).fetch(PHOTO)
    assert LabelStudio(tool.url, most=5).fetch(PHOTO) == b"photo"


def test_slow_files_are_given_up(tool, monkeypatch):
    monkeypatch.setattr(label_studio, "SECONDS", 0.2)
    tool.files["/data/slow"] = drip
    with pytest.raises(ImageError, match=r"no answer within 0\.2 s"):
        LabelStudio(tool.url).fetch("/data/slow")


def test_a_file_that_ends_early_is_refused(tool):
    tool.files["/data/short"] = cut_off
    with pytest.raises(ImageError, match="did not arrive completely"):
        LabelStudio(tool.url).fetch("/data/short")


def test_a_server_that_is_not_there_is_told(tool):
    tool.close()
    with pytest.raises(ImageError, match="cannot be reached"):
        LabelStudio(tool.url).fetch(PHOTO)


@pytest.mark.parametrize("token", ["a b", "secret\n", "gehéim", "a\r\nX: b"])
def test_tokens_that_cannot_be_sent_are_refused(token):
    with pytest.raises(ValueError, match="without spaces and line breaks") as caught:
        LabelStudio("https://labels.example.org", token)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["labels.example.org", "ftp://a", "http://", "http://a/?b", "http://u:p@a", "http://a/#b", "http://a:b"]
)
def test_urls_of_no_server_are_refused(url):
    with pytest.raises(ValueError, match=r"like https://labels\.example\.org"):
        LabelStudio(url)
