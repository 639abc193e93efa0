"""Runs steps, each in a separate process with a time limit, and keeps their results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.record import environment, read_record, write_record
from gpu_check.context import CheckFailedError, Context
from gpu_check.plan import STEPS, Step, find_step
from gpu_check.progress import DONE, FAILED, SKIPPED, Progress

FOLDER = Path(__file__).parent
NO_GPU = "no GPU"
ASK = """
import diffseg.image
from diffseg.engines.machine import find_gpus
print(find_gpus().first.name if find_gpus().first else "")
"""


@dataclass(slots=True)
class Runner:
    """Runs the chosen steps that are not done.

    Attributes:
        context: the context of the steps.
        progress: stores their outcomes.
        variables: the environment of their processes.
        only: names of the steps to choose from; None: all.
        again: names of steps to run even if they are done.
    """

    context: Context
    progress: Progress
    variables: dict[str, str]
    only: Sequence[str] | None = None
    again: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        names = [step.name for step in STEPS]
        if unknown := sorted({*(self.only or ()), *self.again} - set(names)):
            raise SystemExit(f"gpu_check: unknown step {', '.join(unknown)}; choose from {', '.join(names)}")

    @property
    def steps(self) -> list[Step]:
        """The chosen steps, in their order."""
        return [step for step in STEPS if self.only is None or step.name in self.only]

    def run(self, minutes: float | None = None) -> list[str]:
        """Run the remaining steps, and return the names of those that failed.

        Args:
            minutes: time within which the steps must end; None: no limit. A step that might take longer is not started.
        """
        begin, failed = time.monotonic(), []
        for step in self.steps:
            if self.progress.is_done(step.name) and step.name not in self.again:
                print(f"{step.name}: done before", flush=True)
                continue
            left = None if minutes is None else minutes - (time.monotonic() - begin) / 60
            if left is not None and left < step.minutes:
                print(f"{step.name}: not begun: it may take {step.minutes:g} minutes, {max(0, left):.1f} are left")
                continue
            outcome = self.run_step(step)
            self.progress.put(step.name, outcome)
            reason = f": {outcome['reason']}" if outcome.get("reason") else ""
            print(f"{step.name}: {outcome['status']} after {outcome['seconds']} s{reason}", flush=True)
            if outcome["status"] == DONE:
                print(json.dumps(outcome["result"], indent=1), flush=True)
            failed += [step.name] if outcome["status"] == FAILED else []
        if self.progress.published:
            print(f"the record: {self.progress.published}")
        return failed

    def run_step(self, step: Step) -> dict[str, Any]:
        """Run one step in a process. If it takes too long, it is killed, and its results so far are kept."""
        gemm = self.progress.result("machine", "gemm", "float16_tflops") or 0.0
        context = replace(self.context, gemm=float(gemm))
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            path = Path(folder) / "outcome.json"
            command = [sys.executable, str(FOLDER), "step", step.name, context.to_json(), str(path)]
            # A separate session, so that the processes that it starts can be ended with it.
            process = subprocess.Popen(command, env=self.variables, start_new_session=True)
            try:
                status = process.wait(60 * step.minutes)
                reason = f"its process ended with {status}" if status else None
            except subprocess.TimeoutExpired:
                reason = f"not ended after {step.minutes:g} minutes"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            outcome = read_record(path) or {"status": FAILED, "result": {}}
        if reason:
            outcome |= {"status": FAILED, "reason": reason}
        return outcome | {"seconds": round(time.monotonic() - begin, 1)}


def execute(name: str, context: Context, path: Path) -> None:
    """Run one step in this process; its outcome is written to a file after each part that it finds."""
    step = find_step(name)
    from gpu_check.machine import PACKAGES

    outcome: dict[str, Any] = {"status": FAILED, "environment": environment(*PACKAGES), "result": {}}
    if reason := step.missing(context):
        outcome |= {"status": SKIPPED, "reason": reason}
        write_record(outcome, path)
        return
    try:
        for part in step.load()(context):
            outcome["result"] |= part
            write_record(outcome, path)
        outcome["status"] = DONE
    except Exception as error:  # whatever a library raises is this step's outcome  # noqa: BLE001
        if not isinstance(error, CheckFailedError):
            traceback.print_exc()
        kind = "" if isinstance(error, CheckFailedError) else f"{type(error).__name__}: "
        outcome["reason"] = kind + (str(error).strip() or "?").splitlines()[0]
    write_record(outcome, path)


def find_device(variables: dict[str, str]) -> tuple[str, str | None]:
    """Return the name of the GPU, or `NO_GPU`, and why diffseg can't be imported, or None if it can."""
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    problem = (done.stderr.strip() or "?").splitlines()[-1] if done.returncode else None
    return done.stdout.strip() or NO_GPU, problem


def print_plan(progress: Progress, steps: Sequence[Step]) -> None:
    """Print the steps in their order: what each does, what it needs, and how it stands."""
    for number, step in enumerate(steps, 1):
        entry = progress.entry(step.name)
        state = entry.get("status", "not run") + (f" ({entry['reason']})" if entry.get("reason") else "")
        needs = ", ".join(need.words for need in step.needs)
        print(f"{number:2} {step.name:13} at most {step.minutes:g} min  {step.does}")
        print(f"   {'':13} needs {needs}; {state}")
