"""A small stand-in for a CVAT server: what its SDK and its agents ask for, for one task of images.

CVAT itself needs PostgreSQL, Redis and a dozen containers. The agent, its worker process, the SDK's client, models and
checks in the tests are the real ones; only the server that they speak to is this.
"""

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TASK, PROJECT_LABEL = 7, 41
DATE = "2026-01-01T00:00:00Z"
USER = {"url": "http://none", "id": 1, "username": "ann", "first_name": "", "last_name": ""}


class CVAT:
    """The server, its functions, the requests that wait for an agent, and what came back.

    Args:
        images: name and encoded JPEG of each frame.
        sizes: width and height of each frame.
        label_type: type of the task's label.
    """

    def __init__(self, images, sizes, label_type="any"):
        self.images, self.sizes, self.label_type = images, sizes, label_type
        self.functions, self.waiting, self.completed, self.failed, self.uploaded = {}, [], {}, {}, []
        self.asked = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"cvat": self}))
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def port(self):
        return self.http.server_address[1]

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, method, path, query, body):  # noqa: C901, PLR0911, PLR0912 - one line per route
        """Status and JSON or bytes for a request; None where there is nothing."""
        self.asked.append((method, path.rstrip("/")))
        parts = path.strip("/").split("/")[1:]
        match method, parts:
            case "GET", ["server", "about"]:
                return 200, {"name": "CVAT", "description": "", "version": "2.80.0", "logo_url": "", "subtitle": ""}
            case "POST", ["auth", "login"]:
                return 200, {"key": "key"}
            case "POST", ["auth", "logout"]:
                return 200, {"detail": "out"}
            case "POST", ["functions"]:
                number = len(self.functions) + 1
                self.functions[number] = {"id": number, **REMOTE_DEFAULTS, **_with_types(body)}
                return 201, self.functions[number]
            case "GET", ["functions", number]:
                return 200, self.functions[int(number)]
            case "GET", ["functions", "queues", _, "watch"]:
                return 200, b""
            case "POST", ["functions", "queues", _, "requests", "acquire"]:
                wanted = body["request_category"]
                mine = next((item for item in self.waiting if item[0] == wanted), None)
                if mine is not None:
                    self.waiting.remove(mine)
                return 200, {"ar_assignment": mine and {"ar_id": mine[1], "ar_params": mine[2]}}
            case "POST", ["functions", "queues", _, "requests", number, "complete"]:
                self.completed[number] = body
                return 200, {}
            case "POST", ["functions", "queues", _, "requests", number, "fail"]:
                self.failed[number] = body["exc_info"]
                return 200, {}
            case "POST", ["functions", "queues", _, "requests", _, "update"]:
                return 200, {}
            case "GET", ["tasks", _]:
                return 200, self._task()
            case "GET", ["labels"]:
                return 200, {"count": 1, "next": None, "previous": None, "results": [self._label()]}
            case "GET", ["tasks", _, "data", "meta"]:
                return 200, self._meta()
            case "GET", ["tasks", _, "data"]:
                number = int(query["number"][0])
                return 200, self.images[number][1] if query["type"] == ["frame"] else self._chunk()
            case "PATCH", ["tasks", _, "annotations"]:
                self.uploaded.append(body)
                return 200, {"version": 1, "tags": [], "shapes": [], "tracks": []}
        return 404, {"detail": f"{method} {path}"}

    def _chunk(self):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for number, (_, data) in enumerate(self.images):
                archive.writestr(f"{number:06}.jpeg", data)
        return file.getvalue()

    def _label(self):
        return {
            "id": PROJECT_LABEL,
            "name": "thing",
            "color": "#ff0000",
            "attributes": [],
            "type": self.label_type,
            "sublabels": [],
            "has_parent": False,
            "parent_id": None,
            "task_id": TASK,
            "svg": "",
        }

    def _meta(self):
        frames = [
            {"width": width, "height": height, "name": name, "related_files": 0, "has_related_context": False}
            for (name, _), (width, height) in zip(self.images, self.sizes, strict=True)
        ]
        return {
            "chunks_updated_date": DATE,
            "chunk_size": 36,
            "size": len(frames),
            "image_quality": 70,
            "start_frame": 0,
            "stop_frame": len(frames) - 1,
            "frame_filter": "",
            "frames": frames,
            "deleted_frames": [],
            "included_frames": None,
            "cloud_storage_id": None,
        }

    def _task(self):
        return {
            "id": TASK,
            "url": "http://none",
            "name": "photographs",
            "project_id": None,
            "mode": "annotation",
            "owner": USER,
            "assignee": None,
            "bug_tracker": "",
            "created_date": DATE,
            "updated_date": DATE,
            "assignee_updated_date": None,
            "overlap": 0,
            "segment_size": 0,
            "status": "annotation",
            "data_chunk_size": 36,
            "data_compressed_chunk_type": "imageset",
            "data_original_chunk_type": "imageset",
            "size": len(self.images),
            "image_quality": 70,
            "data": 3,
            "dimension": "2d",
            "subset": "",
            "organization": None,
            "organization_id": None,
            "guide_id": None,
            "data_cloud_storage_id": None,
            "validation_mode": None,
            "consensus_enabled": False,
            "media_type": "imageset",
            "labels": {"url": "http://none"},
            "jobs": {"url": "http://none", "count": 1, "completed": 0, "validation": 0},
        }


REMOTE_DEFAULTS = {
    "provider": "native",
    "min_neg_points": -1,
    "startswith_box": False,
    "startswith_box_optional": False,
}


def _with_types(body):
    labels = [{"type": "unknown", **label} for label in body.get("labels_v2", [])]
    return body | ({"labels_v2": labels} if labels else {})


class Handler(BaseHTTPRequestHandler):
    cvat: CVAT

    def do_GET(self):
        self._handle()

    def do_POST(self):
        self._handle()

    def do_PATCH(self):
        self._handle()

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        status, content = self.cvat.answer(
            self.command, url.path, parse_qs(url.query), json.loads(body) if body else None
        )
        plain = isinstance(content, bytes)
        data = content if plain else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if plain else "application/vnd.cvat+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
