"""The tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bench.record import ROOT
from gpu_check.context import CheckFailedError, Context


def check(_: Context) -> Iterator[dict[str, Any]]:
    """Run pytest on tests/gpu in a process of its own."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rfEs", "--tb=line", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["it said nothing"]
    yield {"said": lines[-40:]}
    if done.returncode:
        raise CheckFailedError(f"pytest tests/gpu: {lines[-1]}")
