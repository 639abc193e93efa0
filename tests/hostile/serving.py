"""A server in a process of its own, and its memory."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Self

from PIL import Image

from tests.hostile.images import encode
from tests.hostile.memory import Sent, resident

GOOD = encode(Image.new("RGB", (64, 48), "teal"), "PNG")
START_SECONDS = 300


class Served:
    """A running `diffseg serve` with the embedded model and default limits, except for its batch size of 1."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.base = 0  # resident bytes after a few good requests: what the model takes

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Send a request, and return the status of its response, or 0 if the server closed the connection early."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
        except (ConnectionError, http.client.HTTPException):
            return 0  # it does not read the rest of a body that it refuses
        else:
            return response.status
        finally:
            connection.close()

    def attack(
        self, sent: Iterable[Sent], connections: int = 8, seconds: float | None = None
    ) -> tuple[Counter[int], int]:
        """Send requests over several connections; return their statuses and the largest memory above `base`.

        Args:
            sent: the requests.
            connections: how many are sent at once.
            seconds: for how long they are sent, from the first one again after the last one. None: each is sent once.
        """
        peak, done = 0, threading.Event()
        end = None if seconds is None else time.monotonic() + seconds

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, self.memory)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            waiting, statuses = shared(sent, end), Counter[int]()
            with ThreadPoolExecutor(connections) as pool:
                for found in pool.map(lambda _: Counter(self.ask(*item) for item in waiting), range(connections)):
                    statuses += found
        finally:
            done.set()
            watcher.join()
        return statuses, max(peak, self.memory)

    @property
    def memory(self) -> int:
        """Resident bytes above `base`."""
        return resident(self.process.pid) - self.base

    def settled(self, most: int, seconds: float = 30) -> int:
        """Wait until the server has at most `most` bytes above `base`, and return how many it has."""
        end = time.monotonic() + seconds
        while self.memory > most and time.monotonic() < end:
            time.sleep(0.05)
        return self.memory


class shared:  # noqa: N801 - an iterator, like those of itertools
    """Yields requests to several threads: each once, or again and again until `end`, of `time.monotonic`."""

    def __init__(self, sent: Iterable[Sent], end: float | None) -> None:
        self._items = iter(sent) if end is None else cycle(sent)
        self._end = end
        self._lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sent:
        with self._lock:
            if self._end is not None and time.monotonic() > self._end:
                raise StopIteration
            return next(self._items)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def served(*options: str) -> Iterator[Served]:
    """Run a server during the block."""
    port = free_port()
    command = [sys.executable, "-m", "diffseg", "serve", "--provider", "cpu", "--batch", "1", "--port", str(port)]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
        try:
            server = Served(process, port)
            end = time.monotonic() + START_SECONDS
            while not server.ask("/v1/segment", b"", {}):
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit("the server did not start")
                time.sleep(0.2)
            for _ in range(3):
                server.ask("/v1/segment", GOOD, {})
            server.base = resident(process.pid)
            yield server
        finally:
            process.terminate()
