"""Times of fresh processes, from their start to the masks of one image."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diffseg.engines.errors import ProfileError
from diffseg.measure.profile.record import FreshProcesses, ProfileSettings

# All processes of a system share the clock of perf_counter, so the child's marks compare with the parent's start.
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


def measure_starts(model: str, image: Path, settings: ProfileSettings) -> FreshProcesses:
    """Time fresh processes. After the first one, the files that they read are in the system's cache.

    Args:
        model: as for `Segmenter.load`.
        image: the image that each process segments.
        settings: how many processes of each kind, and with which provider, threads and method.

    Raises:
        ProfileError: a process failed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    first_masks, whole, peaks = list[float](), list[float](), list[int | None]()
    chosen = {"provider": settings.provider, "threads": settings.threads, "method": settings.method}
    options = json.dumps(chosen)
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
        flags = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))]
        command = ["-m", "diffseg", "segment", str(image), "--output", folder, "--model", model, *flags]
        for _ in range(settings.starts):
            start = time.perf_counter_ns()
            child = json.loads(_python("-c", CHILD, str(start), model, str(image), folder, options))
            marks = [child["start"], *(child["marks"][name] for name in (*STEPS[1:], "end"))]
            for name, begin, end in zip(STEPS, marks, marks[1:], strict=False):
                seconds[name].append((end - begin) / 1e9)
            first_masks.append((child["marks"]["write"] - start) / 1e9)
            peaks.append(child["peak"])
            start = time.perf_counter_ns()
            _python(*command)
            whole.append((time.perf_counter_ns() - start) / 1e9)
    return FreshProcesses(
        interpreter=seconds["interpreter"],
        importing=seconds["import"],
        load=seconds["load"],
        segment=seconds["segment"],
        write=seconds["write"],
        first_masks=first_masks,
        command=whole,
        peak_bytes=peaks,
    )


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False, encoding="utf-8")  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProfileError(
            f"a fresh process ended with exit status {done.returncode}: {last}; --starts 0 skips fresh processes"
        )
    return done.stdout
