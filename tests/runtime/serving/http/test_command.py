"""`diffseg serve` in a separate process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
from diffseg.engines.examples import example_images
from diffseg.serving.http.server import open_sockets

PATIENCE = 120


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "diffseg", "serve", *arguments]


def lines_of(process):
    """Log lines as they come."""
    for line in process.stderr:
        yield json.loads(line)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_finishes_the_request_under_way(tmp_path):
    run = command("--port", "0", "--provider", "cpu", "--deadline", str(PATIENCE))
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            log = lines_of(process)
            url = next(m[1] for line in log if (m := re.search(r"running on (http://\S+)", line["message"])))
            picture = example_images()[0].read_bytes()
            request = urllib.request.Request(f"{url}/v1/segment", picture, {"X-Request-Id": "me"})  # noqa: S310
            with urllib.request.urlopen(f"{url}/v2/health/live") as answer:  # noqa: S310
                assert answer.status == 200
            answers = []
            asking = threading.Thread(target=lambda: answers.append(urllib.request.urlopen(request).read()))  # noqa: S310
            asking.start()
            while not _queued(url):
                pass
            process.send_signal(signal.SIGTERM)
            rest = list(log)
            assert {"time", "level", "logger", "message"} <= set(rest[-1])
            asking.join()
        finally:
            timer.cancel()
    assert process.returncode == 0
    assert len(json.loads(answers[0])["segments"]) >= 2
    assert [line["status"] for line in rest if line.get("request_id") == "me"] == [200]
    assert list(tmp_path.iterdir()) == []  # nothing is written to disk, by ONNX Runtime neither


def _queued(url):
    """Whether the server holds the body of a request, or has reserved memory for its image: it is under way."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310
        found = re.findall(rb"^diffseg_(?:bodies|decoded)_bytes (\S+)", answer.read(), re.MULTILINE)
    assert len(found) == 2
    return any(float(value) > 0 for value in found)


@pytest.mark.parametrize(
    ("arguments", "token", "code", "message"),
    [
        (["--host", "0.0.0.0"], None, 1, "no token is set"),  # noqa: S104
        (["--host", "0.0.0.0"], "", 1, "the token is empty"),  # noqa: S104
        (["--token-file", "none"], None, 1, "none: the token cannot be read"),
        (["--model", "nope"], None, 1, "error: no bundle 'nope'"),
        (["--batch", "99"], None, 2, "batch must be 1 to"),
        (["--provider", "tensorrt"], None, 1, "needs an NVIDIA GPU"),
        (["--port", "70000"], None, 2, "--port"),
        (["--label-studio", "labels"], None, 2, "like https://labels.example.org, found 'labels'"),
    ],
)
def test_what_is_not_served(arguments, token, code, message, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "DIFFSEG_TOKEN"} | {"COLUMNS": "200"}
    if token is not None:
        environment["DIFFSEG_TOKEN"] = token
    run = command(*arguments)
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=PATIENCE
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr


def test_a_port_that_is_taken(serve):
    taken = serve().port
    done = subprocess.run(command("--port", str(taken)), capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    expected = f"error: cannot listen on 127.0.0.1, port {taken}: the port is in use; choose another one with --port\n"
    assert done.stderr == expected


def test_a_host_that_is_not_here():
    with pytest.raises(OSError, match=r"^cannot listen on nowhere\.invalid: no such host; choose another"):
        open_sockets("nowhere.invalid", 0)
    with pytest.raises(
        OSError, match=r"^cannot listen on 192\.0\.2\.1, port 0: this machine does not have the address"
    ):
        open_sockets("192.0.2.1", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_text(tmp_path):
    import pty

    reading, writing = pty.openpty()
    run = command("--port", "0", "--provider", "cpu")
    with subprocess.Popen(run, stderr=writing, cwd=tmp_path) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            os.close(writing)
            text = b""
            while not (found := re.search(rb"running on \S*?(http://[\d.:]+)", text)):
                text += os.read(reading, 1000)
            urllib.request.urlopen(f"{found[1].decode()}/v2").close()  # noqa: S310
            while b"status" not in text:
                text += os.read(reading, 1000)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
            timer.cancel()
            os.close(reading)
    lines = re.sub(rb"\x1b\[[\d;]*m", b"", text).decode().splitlines()
    assert re.search(r"info *\] tiny with provider cpu is running on http://127\.0\.0\.1:\d+$", lines[0].rstrip())
    assert re.search(r"\] request .*client=127\.0\.0\.1 .*path=/v2 .*status=200", lines[1])
