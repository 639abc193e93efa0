"""Run the tests of each module on changed copies of it; see scripts/release/mutants."""

from __future__ import annotations

import argparse
import hashlib
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

from scripts.release.mutation.order import Durations, FastestFirst
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
    "scipy.linalg",
    "prometheus_client",
    "structlog",
    "typer",
)
SLOW = ("--deselect=tests/runtime/methods/test_numerics.py::test_memory_above_the_inputs_is_bounded",)
CPU_SECONDS, WALL_SECONDS = 180, 900
"""Time for the tests of one change. More means that the change caused an endless loop, which counts as noticed."""
HYPOTHESIS_EXAMPLES = 25
"""Examples of each test with hypothesis that does not set a number. Usually there are 100."""
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


def run_child(change: dict[str, Any], tests: Sequence[str], plugin: object) -> None:
    """Run tests with a changed module, in a separate process. The exit status is that of pytest."""
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp(dir=os.environ["TMPDIR"])
    sys.meta_path.insert(0, Changed(package_name(change["module"]), str(ROOT / change["module"]), change["code"]))
    import pytest
    from hypothesis import settings

    settings.register_profile("changes", max_examples=HYPOTHESIS_EXAMPLES)
    settings.load_profile("changes")
    status = 1
    try:
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
        status = pytest.main(["-x", "-q", *plugins, "--hypothesis-seed=0", *SLOW, *tests], plugins=[plugin])
    finally:
        os._exit(int(status))


def outcome(change: dict[str, Any], tests: Sequence[str], plugin: object) -> tuple[str, float]:
    """Run the tests of one change, and return the outcome and the CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = os.fork()
    if process == 0:
        run_child(change, tests, plugin)
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


class Record:
    """The record on disk, which is written after each module: a run that was stopped goes on with the next one."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.head = {"seed": seed}
        self.modules: dict[str, dict[str, Any]] = {}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if self.head.items() <= known.items():
            self.modules = {module: facts for module, facts in known["modules"].items() if module in TARGETS}

    def knows(self, module: str) -> bool:
        """Whether the module was run, and has not changed since."""
        return module in self.modules and self.modules[module]["sha256"] == digest(module)

    def add(self, module: str, possible: int, found: list[dict[str, Any]]) -> None:
        """Record the outcomes of a module's changes. Where it was run before, they are those of its survivors."""
        missed = [shown(change) for change in found if change["outcome"] == UNNOTICED]
        if not self.knows(module):
            first = len(found) - len(missed)
            facts = {"sha256": digest(module), "possible": possible, "changes": len(found), "noticed_at_first": first}
            self.modules[module] = facts
        self.modules[module]["unnoticed"] = missed
        self.write()

    def write(self) -> None:
        """Write the record with its sums."""
        modules = {module: self.modules[module] for module in TARGETS if module in self.modules}
        changes = sum(facts["changes"] for facts in modules.values())
        left = [change for facts in modules.values() for change in facts["unnoticed"]]
        for change in left:
            change["reason"] = REASONS.get((change["module"], change["before"], change["after"]), "")
        equivalent = sum(change["reason"].startswith("equivalent") for change in left)
        sums = {
            "modules_run": len(modules),
            "modules_of_targets": len(TARGETS),
            "changes": changes,
            "noticed_at_first": sum(facts["noticed_at_first"] for facts in modules.values()),
            "noticed": changes - len(left),
            "equivalent": equivalent,
            "noticed_share": round(1 - len(left) / max(1, changes), 4),
            "noticed_share_without_equivalent": round(1 - (len(left) - equivalent) / max(1, changes - equivalent), 4),
        }
        text = json.dumps(self.head | sums | {"modules": modules}, indent=2)
        self.path.write_text(text + "\n", encoding="utf-8")


def digest(module: str) -> str:
    """Return the SHA-256 of a module's code."""
    return hashlib.sha256((ROOT / module).read_bytes()).hexdigest()


def key(change: dict[str, Any]) -> tuple[str, int, str, str]:
    """Return what a change is found by."""
    return change["module"], change["line"], change["before"], change["after"]


def shown(change: dict[str, Any]) -> dict[str, Any]:
    """Return what the record shows of a change."""
    return {name: change[name] for name in ("module", "operator", "line", "before", "after", "outcome")}


def make_changes(tool: str, module: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return at most `count` changes of a module, always the same for the same code and seed."""
    command = [tool, "scripts/release/mutation/changes.py", str(count), str(seed), module]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Sample changes, run them, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", required=True, help="Python with cosmic-ray")
    parser.add_argument("--per-module", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=25, help="processor seconds of tests per change")
    parser.add_argument("--only", default="", help="part of the path of a module")
    parser.add_argument("--again", action="store_true", help="run the survivors of the record, and nothing else")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/results/mutants.json")
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    record = Record(options.out, options.seed)
    measured = dict[tuple[str, ...], Path]()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        for module, tests in TARGETS.items():
            known = record.knows(module)
            survivors = {key(change) for change in record.modules[module]["unnoticed"]} if known else set()
            if options.only not in module or known != options.again or (known and not survivors):
                continue
            if tests not in measured:
                measured[tests] = Path(folder, f"seconds{len(measured)}.json")
                check_unchanged(module, tests, Durations(measured[tests], 2 * options.seconds))
            fastest = FastestFirst(measured[tests], options.seconds)
            count = record.modules[module]["changes"] if known else options.per_module
            changes = make_changes(options.tool, module, count, options.seed)
            for change in (wanted := [c for c in changes if not known or key(c) in survivors]):
                change["outcome"], seconds = outcome(change, tests, fastest)
                print(
                    f"{change['outcome']:9} {seconds:5.1f} s  {module}:{change['line']}  {change['after']}", flush=True
                )
            record.add(module, changes[0]["possible"], wanted)
    record.write()


def check_unchanged(module: str, tests: Sequence[str], durations: Durations) -> None:
    """Check that the tests of a module pass without a change, and write how long each takes."""
    unchanged = {"module": module, "code": (ROOT / module).read_text(encoding="utf-8")}
    result, spent = outcome(unchanged, tests, durations)
    print(f"unchanged {spent:5.1f} s  {module}", flush=True)
    if result != UNNOTICED:
        sys.exit(f"the tests of {module} fail without a change; see pytest {' '.join(tests)}")


if __name__ == "__main__":
    main()
