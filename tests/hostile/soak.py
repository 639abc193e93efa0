"""Send the generators of tests/hostile to `diffseg serve` for a while; see scripts/release/soak.

Rounds alternate between mutated images, slow images, inference requests and forms. Well-behaved requests are sent
beside them. The record holds, per class of attack, the requests by status, the largest memory of the server, and the
latency of the well-behaved requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from PIL import Image

from tests.hostile.images import encode, mutated, slow
from tests.hostile.requests import forms, messages, queries

ALLOWED = {200, 400, 404, 406, 413, 415, 503, 504}
Sent = tuple[str, bytes, dict[str, str]]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ask(port: int, path: str, body: bytes, headers: dict[str, str]) -> int:
    """Send a request, and return the status of its response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def memory(process: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def attacks(name: str, seed: int) -> Iterator[Sent]:
    """Yield the requests of one round."""
    if name == "mutated images":
        yield from (("/v1/segment", data, {}) for _, data in mutated(250, seed))
    elif name == "slow images":
        yield from (("/v1/segment", data, {}) for _, data in slow())
    else:
        made: list[Sent] = []

        @seeded(seed)
        @settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(body=messages, form=forms, query=queries)
        def make(body: bytes, form: tuple[bytes, bytes], query: str) -> None:
            if name == "inference":
                made.append(("/v2/models/diffseg/infer", body, {}))
            else:
                made.append((f"/v1/segment?{query}", form[0], {"Content-Type": form[1].decode()}))

        make()
        yield from made


def behave(port: int, stop: threading.Event, latencies: list[float]) -> None:
    """Send well-behaved requests one after the other, and note how long each takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = encode(Image.fromarray(pixels), "PNG")
    while not stop.is_set():
        start = time.monotonic()
        if ask(port, "/v1/segment", image, {}) == http.HTTPStatus.OK:
            latencies.append(time.monotonic() - start)


def measure(port: int, process: int, sent: Iterator[Sent]) -> dict[str, object]:
    """Send requests, and return what became of them."""
    stop, latencies, statuses, largest = threading.Event(), list[float](), Counter[int](), 0
    thread = threading.Thread(target=behave, args=(port, stop, latencies))
    thread.start()
    try:
        for path, body, headers in sent:
            status = ask(port, path, body, headers)
            statuses[status] += 1
            largest = max(largest, memory(process))
            if status not in ALLOWED:
                sys.exit(f"{path}: status {status} for {body[:200]!r}, {headers}")
    finally:
        stop.set()
        thread.join()
    return {
        "statuses": dict(sorted(statuses.items())),
        "memory_bytes": largest,
        "well_behaved": len(latencies),
        "p99_s": round(float(np.quantile(latencies, 0.99)), 3) if latencies else None,
    }


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))  # noqa: S311 - reproducible
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "diffseg", "serve", "--provider", "cpu", "--batch", "1", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            time.sleep(0.5)
            try:
                ask(port, "/v1/segment", b"", {})
                break
            except OSError:
                continue
        good = encode(Image.new("RGB", (64, 48), "teal"), "PNG")
        record: dict[str, object] = {"seed": options.seed, "rounds": []}
        rounds: list[dict[str, object]] = []
        end, seed = time.monotonic() + options.seconds, options.seed
        while time.monotonic() < end:
            for name in ("nothing", "mutated images", "slow images", "inference", "forms"):
                sent = attacks(name, seed) if name != "nothing" else iter([("/v1/segment", good, {})] * 20)
                rounds.append({"attack": name, **measure(port, server.pid, sent)})
                sys.stdout.write(json.dumps(rounds[-1]) + "\n")
                sys.stdout.flush()
            seed += 1
        record["rounds"] = rounds
        if options.out:
            options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
