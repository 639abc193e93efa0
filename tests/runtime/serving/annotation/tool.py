"""A stand-in for Label Studio's files: paths with answers, on this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Tool:
    """Serves `files`, by their path and query. A value is the body, or a function of the handler that answers.

    Attributes:
        asked: method, path and authorisation of every request.
    """

    def __init__(self, files):
        self.files, self.asked = files, []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"tool": self}))
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    tool: Tool

    def do_GET(self):
        self.tool.asked.append((self.command, self.path, self.headers.get("Authorization")))
        found = self.tool.files.get(self.path)
        if callable(found):
            found(self)
        else:
            self.answer(404 if found is None else 200, found or b"")

    def do_POST(self):
        self.do_GET()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def redirect(target):
    return lambda handler: handler.answer(302, Location=target)


def needs(authorisation, body):
    """Answer with `body` if the authorisation is right."""

    def answer(handler):
        right = handler.headers.get("Authorization") == authorisation
        handler.answer(200 if right else 401, body if right else b"")

    return answer


def access(handler):
    """Exchange the refresh token a.b.c for the access token x.y.z."""
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    handler.answer(200 if body == {"refresh": "a.b.c"} else 401, json.dumps({"access": "x.y.z"}).encode())


def drip(handler):
    """Announce a thousand bytes, and send one at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        try:
            handler.wfile.write(b"x")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.02)


def cut_off(handler):
    """Announce more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x")
