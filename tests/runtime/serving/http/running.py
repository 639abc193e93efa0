"""A real server on a free port of this machine, in a thread, and how to ask it."""

import http.client
import json
import threading
import time

from diffseg.serving.http.server import make_server

PATIENCE = 30  # seconds: only a test that fails waits for so long


def until(condition, what="it"):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.005)


class Answer:
    def __init__(self, answer):
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


def ask(port, method, path, body=None, headers=None, patience=PATIENCE):
    """The answer of a server on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Running:
    def __init__(self, service, host="127.0.0.1", ready=True):
        self.service = service
        self.server = make_server(service, host, 0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started, "the server")
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        if ready:
            until(lambda: service.ready, "readiness")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, headers=None):
        return ask(self.port, method, path, body, headers)

    def metric(self, name, **labels):
        """Value of a sample, 0 where there is none."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def stop(self):
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
