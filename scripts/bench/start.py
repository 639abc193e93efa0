"""Start and steady work of the embedded model, before and after a change: CPU time, clock time and page faults.

    python scripts/bench/start.py BEFORE AFTER [--rounds 5] [--threads 1] [--out record.json]

BEFORE and AFTER are Python interpreters whose environments have the two versions installed. Fresh processes of both
take turns, so that other work on the machine meets both alike. The record has the minimum of each figure, and the
median of the ratios after : before of neighbouring processes. CPU time does not count waiting for other programs, but
caches and cores that are shared make it longer, and so do threads that wait for each other: on a busy machine, measure
with one thread for the network and for products of matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.record import environment, write_record
from diffseg.engines import example_images

# The clock and the usage of a process count from its start, so interpreter and imports are included.
MASKS = """
import json, resource, sys, time
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": time.time() - float(sys.argv[1]), "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "page_faults": usage.ru_minflt}
from diffseg import Segmenter
segmenter = Segmenter.load("tiny", provider="cpu", threads=int(sys.argv[3]) or None)
marks = [used()]
for _ in range(3):
    segmenter(sys.argv[2])
    marks.append(used())
print(json.dumps(marks))
"""
USAGE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.executable, "-m", "diffseg", "segment", *sys.argv[1:]], check=True, capture_output=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
                  "page_faults": usage.ru_minflt}))
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="interpreter with the version before the change")
    parser.add_argument("after", type=Path, help="interpreter with the version after it")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind and version")
    parser.add_argument("--threads", type=int, default=0, help="of the network and of products; default: all cores")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({name: measure(getattr(arguments, name), arguments.threads) for name in ("before", "after")})
        print(json.dumps(rounds[-1]), flush=True)
    found = {"threads": arguments.threads or "all", "rounds": len(rounds), "figures": summary(rounds)}
    write_record(environment("numpy", "onnxruntime", "typer") | found, arguments.out)


def measure(python: Path, threads: int) -> dict[str, dict[str, float]]:
    """Run one process that segments three times, and one command."""
    image = str(example_images()[0])
    variables = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    marks = _json(python, MASKS, str(time.time()), image, str(threads), env=variables)
    images = [{key: later[key] - earlier[key] for key in later} for earlier, later in pairwise(marks[1:])]
    steady = min(images, key=lambda figures: figures["cpu_seconds"])
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
        limited = ["--threads", str(threads)] if threads else []
        command = _json(python, USAGE, image, "-o", folder, *limited, env=variables)
    return {"loaded": marks[0], "first_masks": marks[1], "steady_image": steady, "command": command}


def _json(python: Path, code: str, *arguments: str, env: dict[str, str]) -> Any:  # noqa: ANN401
    command = [python, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.sep, env=env)
    return json.loads(done.stdout)


def summary(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """Return the minima of both versions, and the median ratio after : before."""
    return {
        kind: {
            figure: {
                "before": round(min(r["before"][kind][figure] for r in rounds), 3),
                "after": round(min(r["after"][kind][figure] for r in rounds), 3),
                "ratio": round(statistics.median(r["after"][kind][figure] / max(r["before"][kind][figure], 1e-9)
                                                 for r in rounds), 3),
            }
            for figure in ("seconds", "cpu_seconds", "page_faults")
        }
        for kind in ("loaded", "first_masks", "steady_image", "command")
    }  # fmt: skip


if __name__ == "__main__":
    main()
