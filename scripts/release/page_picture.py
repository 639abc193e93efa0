"""Draw docs/page.png: serve the embedded model and take a screenshot of the page with a sample image.

    python scripts/release/page_picture.py

Needs Chromium or Chrome, and the package websockets, which the tests need, too.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1200, 850  # pixels
COLOURS = 200
PATIENCE = 120.0  # seconds
STEPS = (  # each is repeated until it is true
    "!!state.image?.fitted",
    "state.panels[0].use(0.5, 0.4, {}) ?? state.panels[0].sheet.pinned.size === 1",
)


class Tab:
    """A tab of a browser, driven over the DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Call a method and return its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters} | self.session))
        while (answer := json.loads(self.socket.recv(timeout=PATIENCE))).get("id") != number:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    def until(self, script: str) -> None:
        """Evaluate an expression in the page until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.call("Runtime.evaluate", expression=script)["result"].get("value"):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} did not come true within {PATIENCE:g} s")
            time.sleep(0.1)


def photograph(browser: str, address: str, folder: str) -> Image.Image:
    """Return a screenshot of the page with a sample image, one of whose masks is pinned."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None  # noqa: S101
            tools = next(m[1] for line in process.stderr if (m := re.search(r"listening on (ws://\S+)", line)))
            with connect(tools, max_size=None) as socket:
                tab = Tab(socket)
                tab.call(
                    "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
                )
                tab.call("Page.navigate", url=f"{address}/#robot")
                for step in STEPS:
                    tab.until(step)
                return Image.open(io.BytesIO(base64.b64decode(tab.call("Page.captureScreenshot")["data"])))
        finally:
            process.terminate()


def main() -> None:
    """Serve, take the screenshot, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(BROWSERS)}")
    target = Path(__file__).parents[2] / "docs" / "page.png"
    serve = [sys.executable, "-m", "diffseg", "serve", "--port", "0", "--log-format", "json"]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stderr is not None  # noqa: S101
            address = next(m[0] for line in server.stderr if (m := re.search(r"http://[\w.:]+:\d+", line)))
            image = photograph(browser, address, folder)
        finally:
            server.terminate()
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
