"""Commands of scripts, as a user types them."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(*words):
    """Run the GPU check in a process of its own."""
    command = [sys.executable, SCRIPTS / "gpu_check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
