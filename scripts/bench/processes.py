"""Steps of a benchmark that run in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def run(*command: str | Path) -> dict[str, float]:
    """Run a command, and return its seconds, the seconds of CPU time and the peak of its resident set in GB.

    Exits with a line if the command fails.
    """
    print("$", *command, flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with exit status {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * scale / 1e9, 2),
    }
