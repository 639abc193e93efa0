"""Peak memory of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_resident() -> int | None:
    """Return the largest resident set of this process so far, in bytes; None on Windows, which does not report it.

    On Linux it is VmHWM, because `ru_maxrss` begins with the size of the parent process.
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
