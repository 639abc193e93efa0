"""Run the tests of each module on changed copies of it; see scripts/release/mutants."""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).parents[3]))  # for the modules that scripts share

from scripts.release.mutation.reasons import REASONS
from scripts.release.mutation.targets import TARGETS

ROOT = Path(__file__).parents[3]
PRELOADED = (
    "hypothesis",
    "numpy",
    "PIL.Image",
    "PIL.ImageOps",
    "pytest",
    "msgspec",
    "sklearn.cluster",
    "fastapi",
    "uvicorn",
)
SLOW = ("--deselect=tests/runtime/methods/test_numerics.py::test_memory_above_the_inputs_is_bounded",)
CPU_SECONDS, WALL_SECONDS = 180, 900
"""Time for the tests of one change. More means that the change caused an endless loop, which counts as noticed."""
BYTES = 12 << 30
NOTICED, UNNOTICED, ENDLESS = "noticed", "unnoticed", "endless"


class Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from changed source code."""

    def __init__(self, name: str, path: str, code: str) -> None:
        super().__init__(name, path)
        self.code = code

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:  # noqa: ANN401, ARG002
        """Find this one module."""
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, _: str) -> Any:  # noqa: ANN401 - as its base says
        """Compile the changed code."""
        return compile(self.code, self.path, "exec", dont_inherit=True)


def package_name(path: str) -> str:
    """Return the name with which a module of the repository is imported."""
    folder, *rest = path.removesuffix(".py").split("/")
    return ".".join({"runtime": ["diffseg"], "engines": ["diffseg", "engines"]}[folder] + rest)


def run_child(change: dict[str, Any], tests: Sequence[str]) -> None:
    """Run tests with a changed module in a separate process. The exit status is that of pytest."""
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(dir=os.environ["TMPDIR"])
    sys.meta_path.insert(0, Changed(package_name(change["module"]), str(ROOT / change["module"]), change["code"]))
    import pytest

    status = 1
    try:
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
        status = pytest.main(["-x", "-q", *plugins, "--hypothesis-seed=0", *SLOW, *tests])
    finally:
        os._exit(int(status))


def outcome(change: dict[str, Any], tests: Sequence[str]) -> tuple[str, float]:
    """Run the tests of one change, and return the outcome and the CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = os.fork()
    if process == 0:
        run_child(change, tests)
    end = time.monotonic() + WALL_SECONDS
    while (found := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return ENDLESS, float(WALL_SECONDS)
        time.sleep(0.05)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if os.WIFSIGNALED(found[1]) and os.WTERMSIG(found[1]) in (signal.SIGXCPU, signal.SIGKILL):
        return ENDLESS, spent
    return (UNNOTICED if found[1] == 0 else NOTICED), spent


def summary(found: list[dict[str, Any]], possible: dict[str, int]) -> dict[str, Any]:
    """Return the record: per module and in all, how many changes were noticed, and which were not."""
    modules = {}
    for module, count in possible.items():
        own = [change for change in found if change["module"] == module]
        missed = sum(change["outcome"] == UNNOTICED for change in own)
        modules[module] = {"changes": count, "sampled": len(own), "noticed": len(own) - missed}
    unnoticed = [change for change in found if change["outcome"] == UNNOTICED]
    for change in unnoticed:
        change["reason"] = REASONS.get((change["module"], change["before"], change["after"]), "")
    share = 1 - len(unnoticed) / max(1, len(found))
    return {"sampled": len(found), "noticed_share": round(share, 4), "modules": modules, "unnoticed": unnoticed}


def main() -> None:
    """Sample changes, run them, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", required=True, help="Python with cosmic-ray")
    parser.add_argument("--per-module", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the path of a module")
    parser.add_argument("--again", type=Path, help="a record, whose unnoticed changes alone are run")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/results/mutants.json")
    options = parser.parse_args()
    targets = {module: tests for module, tests in TARGETS.items() if options.only in module}
    command = [
        options.tool,
        "scripts/release/mutation/changes.py",
        str(options.per_module),
        str(options.seed),
        *targets,
    ]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    changes = [json.loads(line) for line in lines]
    possible = {change["module"]: change["possible"] for change in changes}
    known = json.loads(options.again.read_text(encoding="utf-8"))["unnoticed"] if options.again else None
    if known is not None:
        keys = {(change["module"], change["before"], change["after"]) for change in known}
        changes = [change for change in changes if (change["module"], change["before"], change["after"]) in keys]
    for name in PRELOADED:
        importlib.import_module(name)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        for module in dict(zip(targets.values(), targets, strict=True)).values():  # one module per group of tests
            unchanged = {"module": module, "code": (ROOT / module).read_text(encoding="utf-8")}
            result, seconds = outcome(unchanged, targets[module])
            print(f"unchanged {seconds:5.1f} s  {module}", flush=True)
            if result != UNNOTICED:
                sys.exit(f"the tests of {module} fail without a change; see pytest {' '.join(targets[module])}")
        for change in changes:
            result, seconds = outcome(change, targets[change["module"]])
            change["outcome"] = result
            print(f"{result:9} {seconds:5.1f} s  {change['module']}:{change['line']}  {change['after']}", flush=True)
            found.append({key: value for key, value in change.items() if key not in ("code", "possible")})
    record = {"seed": options.seed, "per_module": options.per_module} | summary(found, possible)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
