"""Put load on `diffseg serve` on this machine: throughput compared with an in-process loop, latency, memory, overload.

    scripts/bench/serve [--model tiny] [--clients 1,4,16] [--seconds 60] [--requests 5000] [--out record.json]

The server runs in a separate process. Before and after the load, the same images go through the in-process loop.
`drift` is the later rate over the earlier one, and shows whether the machine became slower.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.record import environment, percentiles, write_record
from diffseg import Segmenter
from diffseg.engines import example_images

PATIENCE = 300.0


@dataclass
class Tally:
    """The responses to the requests of a level of load."""

    seconds: list[float] = field(default_factory=list)  # of the successful requests
    statuses: Counter[int] = field(default_factory=Counter)
    errors: int = 0  # connections that broke
    retry_after: list[int] = field(default_factory=list)

    def summary(self, wall: float) -> dict[str, object]:
        """Return the figures for the record."""
        return {
            "requests": sum(self.statuses.values()) + self.errors,
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
            "broken": self.errors,
            "images_per_second": round(len(self.seconds) / wall, 3),
            "latency_s": percentiles(self.seconds) | ({"max": round(max(self.seconds), 3)} if self.seconds else {}),
        }


class Client:
    """A client with one persistent connection."""

    def __init__(self, port: int, tally: Tally, bodies: list[bytes], *, patient: bool = True) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.tally = tally
        self.bodies = bodies
        self.patient = patient  # after status 503, wait as long as `Retry-After` states

    def ask(self, number: int) -> None:
        """Send one image to be segmented."""
        start = time.perf_counter()
        try:
            self.connection.request("POST", "/v1/segment", self.bodies[number % len(self.bodies)])
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.tally.errors += 1
            return
        self.tally.statuses[answer.status] += 1
        if answer.status == http.HTTPStatus.OK:
            self.tally.seconds.append(time.perf_counter() - start)
        elif (after := answer.getheader("Retry-After")) is not None:
            self.tally.retry_after.append(int(after))
            if self.patient:
                time.sleep(int(after))


@contextlib.contextmanager
def running_server(arguments: list[str]) -> Iterator[int]:
    """Start a server, wait until it is ready, and yield its port."""
    command = [sys.executable, "-m", "diffseg", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # noqa: S101 - for the type checker
        found = None
        try:
            found = next((m for line in process.stderr if (m := re.search(r"running on http://\S+:(\d+)", line))), None)
            if found is None:
                sys.exit("the server did not start")
            drain = threading.Thread(target=process.stderr.read)
            drain.start()
            port = int(found[1])
            while metric(port, "diffseg_ready") != 1:
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            if found is not None:
                drain.join()


def metric(port: int, name: str) -> float:
    """Return the value of a metric of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def loop_rate(segmenter: Segmenter, seconds: float) -> float:
    """Return the images per second of the in-process loop."""
    images = example_images()
    segmenter(images[0])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        segmenter(images[done % len(images)])
        done += 1
    return done / (time.perf_counter() - start)


def closed_load(
    port: int, clients: int, bodies: list[bytes], *, seconds: float, requests: int | None = None
) -> dict[str, object]:
    """Run clients, each of which sends its next request when the previous one was answered."""
    tally, numbers = Tally(), count()
    start = time.perf_counter()

    def work() -> None:
        client = Client(port, tally, bodies)
        while (number := next(numbers)) is not None:
            if (requests is not None and number >= requests) or time.perf_counter() - start >= seconds:
                break
            client.ask(number)
        client.connection.close()

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(work) for _ in range(clients)]:
            future.result()
    return {"clients": clients} | tally.summary(time.perf_counter() - start)


def open_load(port: int, rate: float, bodies: list[bytes], *, seconds: float) -> dict[str, object]:
    """Send requests at a fixed rate, whether or not the earlier ones were answered."""
    tally, threads = Tally(), []
    start = time.perf_counter()
    for number in range(max(1, round(rate * seconds))):
        time.sleep(max(0.0, start + number / rate - time.perf_counter()))
        thread = threading.Thread(target=Client(port, tally, bodies, patient=False).ask, args=(number,))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    after = {"retry_after_s": [min(tally.retry_after), max(tally.retry_after)]} if tally.retry_after else {}
    return {"rate": round(rate, 3)} | tally.summary(wall) | after


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", default="1,4,16", help="numbers of clients, one level of load each")
    parser.add_argument("--seconds", type=float, default=60, help="seconds per level")
    parser.add_argument(
        "--requests", type=int, default=5000, help="requests between the two measurements of memory; 0 skips them"
    )
    parser.add_argument("--deadline", type=float, default=30, help="deadline of the server in seconds")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()

    bodies = [path.read_bytes() for path in example_images()]
    segmenter: Segmenter | None = Segmenter.load(arguments.model, provider="cpu")
    before = loop_rate(segmenter, arguments.seconds)
    del segmenter
    print(f"in-process loop: {before:.2f} images/s")
    levels = []
    record: dict[str, object] = {}
    options = ["--model", arguments.model, "--provider", "cpu", "--deadline", str(arguments.deadline)]
    with running_server(options) as port:
        for clients in map(int, arguments.clients.split(",")):
            levels.append(closed_load(port, clients, bodies, seconds=arguments.seconds))
            print(levels[-1])
        capacity = max(float(str(level["images_per_second"])) for level in levels)
        overload = open_load(port, 2 * capacity, bodies, seconds=max(arguments.seconds, 2 * arguments.deadline))
        print(f"twice the capacity: {overload}")
        if arguments.requests:
            memory = [metric(port, "process_resident_memory_bytes")]
            many = closed_load(port, 4, bodies, seconds=float("inf"), requests=arguments.requests)
            memory.append(metric(port, "process_resident_memory_bytes"))
            record["memory"] = {"requests": many["requests"], "statuses": many["statuses"], "bytes": memory}
            print(f"memory: {memory[0] / 1e6:.0f} → {memory[1] / 1e6:.0f} MB after {many['requests']} requests")
    after = loop_rate(Segmenter.load(arguments.model, provider="cpu"), arguments.seconds)
    loop = statistics.fmean((before, after))
    for level in levels:
        level["share_of_loop"] = round(float(str(level["images_per_second"])) / loop, 3)
    record = {
        **environment("numpy", "onnxruntime"),
        "model": arguments.model,
        "loop_images_per_second": [round(before, 3), round(after, 3)],
        "drift": round(after / before, 3),
        "levels": levels,
        "overload": overload,
    } | record
    print(json.dumps(record, indent=1))
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
