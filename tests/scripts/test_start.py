"""Every Python script starts: it finds the files beside it and prints its usage, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = 'if __name__ == "__main__":'
SCRIPTS = [path for path in sorted((ROOT / "scripts").rglob("*.py")) if SCRIPT in path.read_text(encoding="utf-8")]
OWN = {path.stem for path in (ROOT / "scripts").rglob("*.py")} | {"diffseg", "tests", "scripts"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT / "scripts").as_posix())
def test_a_script_prints_its_usage(script, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1:] or [""]
    if last[0].startswith("ModuleNotFoundError: No module named "):
        name = last[0].split("'")[1].split(".")[0]
        if name not in OWN:
            pytest.skip(f"needs {name}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
