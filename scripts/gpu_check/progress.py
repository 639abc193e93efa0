"""The record of a check: which steps are done, and what they found. A later run goes on from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.record import read_record, write_record

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


class Progress:
    """The state of all steps on one device, written after each step.

    Args:
        path: the file from which a later run resumes.
        device: name of the GPU. If the file belongs to another one, everything starts again.
        results: folder for the same record under the name of the device and the day; None: none is written there.
    """

    def __init__(self, path: Path, device: str, results: Path | None = None) -> None:
        self.path, self.results = path, results
        found = read_record(path)
        self.other = found.get("device") if found.get("device") not in (None, device) else None
        self.record: dict[str, Any] = found if found and not self.other else {"device": device, "steps": {}}

    def entry(self, step: str) -> dict[str, Any]:
        """Return the stored outcome of a step; empty if it has not run."""
        found: dict[str, Any] = self.record["steps"].get(step, {})
        return found

    def is_done(self, step: str) -> bool:
        """Whether a step need not run again. Skipped and failed steps do."""
        return bool(self.entry(step).get("status") == DONE)

    def result(self, step: str, *keys: str) -> Any:  # noqa: ANN401 - a value of a result
        """Return a value of a step's result; None if it is missing."""
        value: Any = self.entry(step).get("result", {})
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def put(self, step: str, outcome: dict[str, Any]) -> None:
        """Keep the outcome of a step, with its commit, and write everything."""
        surroundings = outcome.pop("environment", {})
        revision = surroundings.pop("revision", "unknown")
        started = self.record.get("date")
        self.record |= surroundings | ({"date": started} if started else {})
        steps = self.record.pop("steps")  # last, to be read after the environment
        self.record["steps"] = steps | {step: outcome | {"revision": revision}}
        write_record(self.record, self.path)
        write_record(self.record, self.published)

    @property
    def published(self) -> Path | None:
        """The file for the device and the day of the first step; None without a folder."""
        if self.results is None:
            return None
        device = re.sub(r"[^a-z0-9]+", "-", self.record["device"].lower()).strip("-")
        return self.results / f"gpu_{device}_{self.record.get('date', 'undated')}.json"
