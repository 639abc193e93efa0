"""Run the command line in a separate process."""

import os
import subprocess
import sys


def diffseg(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "diffseg", *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=cwd,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "200", "PYTHONUTF8": "1"},
    )
