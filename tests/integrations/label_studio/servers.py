"""A real Label Studio with its embedded database, and `diffseg serve` beside it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PATIENCE = 300
EMAIL, PASSWORD = "ann@example.org", "annotate-1"
TOKEN = "0123456789abcdef" * 2 + "01234567"
SECRET = "a-token"  # noqa: S105 - of `diffseg serve`


class Tool:
    """The interface of a Label Studio."""

    def __init__(self, url):
        self.url = url

    def ask(self, method, path, body=None, kind="application/json"):
        """The answer to a request, as JSON or, if it is none, as bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": kind}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
            content = response.read()
        try:
            return json.loads(content) if content else None
        except ValueError:
            return content

    def project(self, config, images):
        """Make a project of some image files, and return its id and its tasks, in the order of the files."""
        project = self.ask("POST", "/api/projects", {"title": "DiffSeg", "label_config": config})["id"]
        for path in images:
            border = uuid.uuid4().hex
            head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
            body = (
                f"{head}Content-Type: image/jpeg\r\n\r\n".encode()
                + path.read_bytes()
                + f"\r\n--{border}--\r\n".encode()
            )
            self.ask("POST", f"/api/projects/{project}/import", body, f"multipart/form-data; boundary={border}")
        tasks = self.ask("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
        return project, sorted(tasks, key=lambda task: task["id"])

    def connect(self, project, backend, *, interactive=False):
        """Connect an ML backend to a project."""
        body = {"project": project, "url": backend, "title": "DiffSeg", "auth_method": "BASIC_AUTH"}
        body["is_interactive"] = interactive
        return self.ask("POST", "/api/ml", body | {"basic_auth_user": "diffseg", "basic_auth_pass": SECRET})

    def predict(self, project):
        """Ask the backend for the predictions of all tasks, and return what is stored then."""
        body = {"selectedItems": {"all": True, "excluded": []}}
        self.ask("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", body)
        return sorted(self.ask("GET", f"/api/predictions?project={project}"), key=lambda item: item["task"])


@contextlib.contextmanager
def label_studio(folder):
    """Start a Label Studio. Its database is made first, which takes a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [Path(sys.executable).with_name("label-studio"), "start", "--no-browser", "--data-dir", folder]
    run += ["--port", str(port), "--username", EMAIL, "--password", PASSWORD, "--user-token", TOKEN]
    # Label Studio refuses backends on this machine otherwise.
    settings = {"USE_DEFAULT_BANNED_SUBNETS": "false", "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*run, "--enable-legacy-api-token"],
            stdout=log,
            stderr=log,
            env=os.environ | settings | {"HOME": str(folder)},
        ) as process,
    ):
        try:
            tool = Tool(f"http://127.0.0.1:{port}")
            _wait(f"{tool.url}/health", process)
            yield tool
        finally:
            process.kill()


def _wait(url, process):
    end = time.monotonic() + PATIENCE
    while not _answers(url):
        assert process.poll() is None, f"the server of {url} ended"
        assert time.monotonic() < end, f"the server of {url} did not start"
        time.sleep(0.5)


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):  # noqa: S310
            return True
    except (OSError, urllib.error.URLError):
        return False


class Backend:
    """A running `diffseg serve`: its URL, and the lines of its log."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.url = next(m[1] for line in process.stderr if (m := re.search(r"running on (http://[^\s\"]+)", line)))
        self.thread = threading.Thread(target=lambda: self.lines.extend(process.stderr), daemon=True)
        self.thread.start()
        _wait(f"{self.url}/v2/health/ready", process)


@contextlib.contextmanager
def backend(tool, token=TOKEN):
    """Start `diffseg serve` for a Label Studio."""
    run = [sys.executable, "-m", "diffseg", "serve", "--port", "0", "--provider", "cpu", "--label-studio", tool.url]
    environment = os.environ | {"DIFFSEG_TOKEN": SECRET, "DIFFSEG_LABEL_STUDIO_TOKEN": token}
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Backend(process)
        finally:
            process.kill()
