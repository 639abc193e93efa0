"""What a user with one photograph waits for: fresh processes, from their start to the masks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diffseg.engines.errors import ProfileError

# The clock of perf_counter is one for all processes of the system, so the child's marks count from the parent's start.
CHILD = """
import sys, time
marks = {"import": time.perf_counter_ns()}
from diffseg import Segmenter
marks["load"] = time.perf_counter_ns()
import json
start, model, image, folder, options = sys.argv[1:]
segmenter = Segmenter.load(model, **json.loads(options))
marks["segment"] = time.perf_counter_ns()
result = segmenter(image)
marks["write"] = time.perf_counter_ns()
result.save(folder, "first")
marks["end"] = time.perf_counter_ns()
from diffseg.measure.profile.memory import peak_resident
print(json.dumps({"start": int(start), "marks": marks, "peak": peak_resident()}))
"""
STEPS = ("interpreter", "import", "load", "segment", "write")


def measure_starts(model: str, image: Path, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Time fresh processes; the files that they read are in the system's cache after the first.

    Args:
        model: as `Segmenter.load` takes it.
        image: what each process segments.
        count: how many processes of each kind.
        options: provider and threads of `Segmenter.load`.

    Returns:
        Seconds, a list each: `interpreter` (process start to the first line of Python), `import` (diffseg),
        `load`, `segment` (the first image), `write`; `first_masks` (process start to masks in memory); `command`
        (the whole `diffseg segment IMAGE`, from start to exit). `peak_bytes` is the largest resident set of each.

    Raises:
        ProfileError: a process failed.
    """
    record: dict[str, Any] = {name: [] for name in (*STEPS, "first_masks", "command", "peak_bytes")}
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
        flags = ["--provider", options["provider"]]
        if options["threads"] is not None:
            flags += ["--threads", str(options["threads"])]
        command = ["-m", "diffseg", "segment", str(image), "--output", folder, "--model", model, *flags]
        for _ in range(count):
            start = time.perf_counter_ns()
            child = json.loads(_python("-c", CHILD, str(start), model, str(image), folder, json.dumps(options)))
            marks = [child["start"], *(child["marks"][name] for name in (*STEPS[1:], "end"))]
            for name, begin, end in zip(STEPS, marks, marks[1:], strict=False):
                record[name].append((end - begin) / 1e9)
            record["first_masks"].append((child["marks"]["write"] - start) / 1e9)
            record["peak_bytes"].append(child["peak"])
            start = time.perf_counter_ns()
            _python(*command)
            record["command"].append((time.perf_counter_ns() - start) / 1e9)
    return record


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False, encoding="utf-8")  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProfileError(f"a fresh process ended with {done.returncode}: {last}; --starts 0 leaves them out")
    return done.stdout
