"""Records of measurements: the environment, percentiles, and the JSON file.

It works without diffseg and NumPy, because a machine that checks containers may not have them.
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
    """Describe a measurement: date, commit, machine and versions of installed packages."""
    return {
        "date": date.today().isoformat(),  # noqa: DTZ011 - the local date
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
    """Return the commit that is measured, with `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Return the name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs that the driver reports; an empty list if diffseg is not installed."""
    try:
        from diffseg.engines.machine import find_gpus
    except ImportError:
        return []
    return [asdict(gpu) for gpu in find_gpus().gpus]


def installed(package: str) -> str | None:
    """Return the version of an installed distribution, or None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def percentiles(seconds: Iterable[float], unit: float = 1.0) -> dict[str, float]:
    """Return p50, p95 and p99 of durations in units of `unit` seconds, interpolated linearly; empty without any."""
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
    """Return the record in a JSON file, or an empty record if there is no file."""
    if path is None or not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(record: dict[str, Any], path: Path | None) -> None:
    """Write a record to a JSON file, replacing an existing one. If the path is None, nothing is written."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
