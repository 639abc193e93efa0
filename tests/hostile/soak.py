"""Attack a server for a while, beside well-behaved clients; see scripts/release/soak.

Each round first measures one well-behaved client alone. Then every class of attack is sent over one connection beside
it, and the classes that fill memory over eight connections at once. The record holds, per class, the responses by
status, the largest memory beside the model, the memory some seconds later, and the latency of the well-behaved client
with its ratio to that without an attack. It ends with an error at the first response that is not allowed, and says
which bounds did not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded

from tests.hostile.images import mutated, slow
from tests.hostile.memory import BOUND, CLASSES, INFER, MEGA, RESIDUE, SEGMENT, SIDE, Sent
from tests.hostile.requests import forms, messages, queries
from tests.hostile.serving import GOOD, Served, served

ALLOWED = {0, 200, 201, 400, 404, 406, 408, 413, 415, 503, 504}
SLOWER = 3
"""How many times as long well-behaved requests may take during attacks, at the 99th percentile."""
MOST_REFUSED = 0.05
"""Share of well-behaved requests that may be refused beside one connection that attacks."""
SETTLE_SECONDS = 30.0


def fuzzed(name: str, seed: int, count: int) -> list[Sent]:
    """Return requests of a fuzzer: `inference` or `forms`."""
    made: list[Sent] = []

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=messages, form=forms, query=queries)
    def make(body: bytes, form: tuple[bytes, bytes], query: str) -> None:
        if name == "inference":
            made.append((INFER, body, {}))
        else:
            made.append((f"{SEGMENT}?{query}", form[0], {"Content-Type": form[1].decode("latin-1")}))

    make()
    return made


def attacks(seed: int, count: int) -> Iterator[tuple[str, list[Sent]]]:
    """Yield each class of attack with its requests."""
    yield "mutated images", [(SEGMENT, data, {}) for _, data in mutated(count, seed)]
    yield "slow images", [(SEGMENT, data, {}) for _, data in slow()]
    yield "inference", fuzzed("inference", seed, count)
    yield "forms", fuzzed("forms", seed, count)
    yield from fillers()


def fillers() -> Iterator[tuple[str, list[Sent]]]:
    """Yield each class of attack that fills memory with its requests."""
    for name, make in CLASSES.items():
        yield name, list(make(SIDE))


class Client:
    """A well-behaved client: one small image after the other, while the block runs."""

    def __init__(self, server: Served, seconds: float = 0.0) -> None:
        self.server = server
        self.seconds = seconds
        self.latencies: list[float] = []
        self.refused = 0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def _ask(self) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            if self.server.ask(SEGMENT, GOOD, {}) == 200:
                self.latencies.append(time.monotonic() - start)
            else:
                self.refused += 1

    def __exit__(self, *_: object) -> None:
        time.sleep(self.seconds)
        self._stop.set()
        self._thread.join()

    def facts(self) -> dict[str, object]:
        """Return the number of requests and the 99th percentile of their seconds."""
        p99 = round(float(np.quantile(self.latencies, 0.99)), 3) if self.latencies else None
        return {"well_behaved": len(self.latencies), "refused": self.refused, "p99_s": p99}


def measure(
    server: Served, name: str, sent: list[Sent], connections: int, seconds: float, *, latency: bool = True
) -> dict[str, object]:
    """Send a class of attack beside a well-behaved client, and return what came of it."""
    with Client(server) if latency else nullcontext() as client:
        statuses, peak = server.attack(sent, connections, seconds if latency else None)
    if bad := set(statuses) - ALLOWED:
        sys.exit(f"{name}: a response with status {min(bad)}")
    return {
        "attack": name,
        "connections": connections,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "peak_mb": round(peak / MEGA),
        "later_mb": round(server.settled(RESIDUE, SETTLE_SECONDS) / MEGA),
        **(client.facts() if client else {}),
    }


def broken(rounds: list[dict[str, object]], p99: float) -> list[str]:
    """Return the bounds that did not hold, one line each."""
    lines = []
    for found in rounds:
        what = f"{found['attack']}, {found['connections']} connection{'s' * (found['connections'] != 1)}"
        if found["peak_mb"] > BOUND / MEGA:  # type: ignore[operator]
            lines.append(f"{what}: {found['peak_mb']} MB beside the model, at most {BOUND // MEGA} are allowed")
        if found["later_mb"] > RESIDUE / MEGA and found["attack"] != "kept attention":  # type: ignore[operator]
            lines.append(f"{what}: {found['later_mb']} MB are not given back, at most {RESIDUE // MEGA} are allowed")
        if "p99_s" not in found:
            continue
        late = found["p99_s"]
        found["p99_ratio"] = None if late is None else round(late / p99, 2)  # type: ignore[operator]
        if found["connections"] != 1:
            continue
        if late is None or late > SLOWER * p99:  # type: ignore[operator]
            lines.append(f"{what}: p99 of well-behaved requests is {late} s, without attack {p99} s")
        asked = found["refused"] + found["well_behaved"]  # type: ignore[operator]
        if found["refused"] > MOST_REFUSED * asked:  # type: ignore[operator]
            lines.append(f"{what}: {found['refused']} of {asked} well-behaved requests were refused")
    return lines


def write(rounds: list[dict[str, object]], quiet: list[float], seed: int, out: Path | None) -> list[str]:
    """Write the record of the rounds so far, and return the bounds that did not hold."""
    p99 = round(float(np.quantile(quiet, 0.99)), 3) if quiet else math.inf
    problems = broken(rounds, p99)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 1)}
    record: dict[str, object] = {"seed": seed, "machine": machine}
    if quiet:
        record["without_attack"] = {"well_behaved": len(quiet), "p99_s": p99}
    if out:
        text = json.dumps(record | {"rounds": rounds, "bounds_that_did_not_hold": problems}, indent=2)
        out.write_text(text + "\n", encoding="utf-8")
    return problems


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))  # noqa: S311 - reproducible
    parser.add_argument("--count", type=int, default=250, help="requests of each fuzzer per round")
    parser.add_argument("--each", type=float, default=20, help="seconds of each class of attack")
    parser.add_argument("--memory-only", action="store_true", help="no fuzzers and no well-behaved client")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds: list[dict[str, object]] = []
    quiet: list[float] = []
    end, seed = time.monotonic() + options.seconds, options.seed
    with served() as server:
        while True:
            latency = not options.memory_only
            if latency:
                with Client(server, seconds=min(60.0, options.seconds / 10)) as client:
                    pass
                quiet += client.latencies
            made = list(attacks(seed, options.count) if latency else fillers())
            alone = [(name, sent, 1) for name, sent in made] if latency else []
            for name, sent, connections in alone + [(name, sent, 8) for name, sent in made if name in CLASSES]:
                rounds.append(measure(server, name, sent, connections, options.each, latency=latency))
                write(rounds, quiet, options.seed, options.out)
                sys.stdout.write(json.dumps(rounds[-1]) + "\n")
                sys.stdout.flush()
                if time.monotonic() > end:
                    break
            seed += 1
            if time.monotonic() > end:
                break
    problems = write(rounds, quiet, options.seed, options.out)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
