"""A headless Chromium, driven over its DevTools protocol: what the tests of the page need, and no more."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time

from websockets.sync.client import connect

PATIENCE = 60
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
KEYS |= {"0": 48, "+": 187, "-": 189, "?": 191, "A": 65}


def find_browser():
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. Keeps what the page complains about in `complaints`."""

    def __init__(self, width=1200, height=900, *, phone=False):
        with contextlib.ExitStack() as stack:
            profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="diffseg-", ignore_cleanup_errors=True))
            options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
            options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--disable-background-networking"]
            run = [find_browser(), *options, "about:blank"]
            process = stack.enter_context(subprocess.Popen(run, stderr=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            self.complaints = []
            self._numbers = itertools.count(1)
            address = next(m[1] for line in process.stderr if (m := re.search(r"listening on (ws://\S+)", line)))
            self.socket = stack.enter_context(connect(address, max_size=None, open_timeout=PATIENCE))
            self._attach(width, height, phone)
            self.close = stack.pop_all().close

    def _attach(self, width, height, phone):
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        if phone:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"]))

    def run(self, script):
        """Value of an expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script):
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} did not come true; {self.status!r}, {self.complaints}"
            time.sleep(0.02)
        return value

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && !!document.getElementById('status')")

    def choose(self, *paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def mouse(self, kind, x, y, selector="canvas", nth=0, modifiers=0):
        """Move or click at shares of an element. Modifiers are bits: 1 Alt, 2 Ctrl, 8 Shift."""
        box = self._box(selector, nth)
        place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", modifiers=modifiers, **place)
        if kind == "click":
            for step in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=step, button="left", clickCount=1, modifiers=modifiers, **place
                )

    def _box(self, selector, nth):
        """Left, top, width and height of an element, brought into view."""
        return self.run(
            f"(() => {{ const e = document.querySelectorAll({selector!r})[{nth}];"
            " e.scrollIntoView({block: 'center'});"
            " const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )

    def tap(self, x, y):
        box = self._box("canvas", 0)
        point = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys, modifiers=0):
        for key in keys:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
            if key == "Enter":
                code["text"] = "\r"
            for step in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=step, **code)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @property
    def status(self):
        return self.run("document.getElementById('status').textContent")
