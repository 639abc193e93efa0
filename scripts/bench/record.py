"""Records of measurements: what they were taken on, percentiles, and the JSON file.

Works without diffseg and NumPy, which the machine that checks a container need not have.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PERCENTILES = (50, 95, 99)


def environment(*packages: str) -> dict[str, Any]:
    """When, of which code and on what a record is taken, and the versions of installed packages."""
    return {
        "date": date.today().isoformat(),  # noqa: DTZ011 - the day here
        "revision": revision(),
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
            "gpus": gpus(),
        },
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := installed(name))},
    }


def revision() -> str:
    """The commit that is measured, with `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs that the driver reports; none where diffseg is not installed."""
    try:
        from diffseg.engines.machine import find_gpus
    except ImportError:
        return []
    return [asdict(gpu) for gpu in find_gpus().gpus]


def installed(package: str) -> str | None:
    """Version of an installed distribution; None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def percentiles(seconds: Iterable[float], unit: float = 1.0) -> dict[str, float]:
    """p50, p95 and p99 of durations, interpolated linearly, in units of `unit` seconds; empty without durations."""
    ordered = sorted(seconds)
    found = {}
    for percent in PERCENTILES if ordered else ():
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        value = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
        found[f"p{percent}"] = round(value / unit, 3)
    return found


def read_record(path: Path | None) -> dict[str, Any]:
    """Return the record in a JSON file; an empty one if there is no file."""
    if path is None or not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(record: dict[str, Any], path: Path | None) -> None:
    """Write a record to a JSON file, which replaces an earlier one whole; None writes nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
