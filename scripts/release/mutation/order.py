"""The order of the tests of a change: the fastest first, and none after a limit, so that a change costs little."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Durations:
    """Measures the processor seconds of each test while nothing is changed, and skips those after `limit` seconds."""

    def __init__(self, path: Path, limit: float) -> None:
        self.path = path
        self.limit = limit
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:  # noqa: ANN401 - as pytest has it
        """Measure a test with its fixtures."""
        start = time.process_time()
        enough = sum(self.seconds.values()) > self.limit
        if enough:
            item.add_marker(pytest.mark.skip(reason="enough tests"))
        yield
        if not enough:
            self.seconds[item.nodeid] = time.process_time() - start

    def pytest_sessionfinish(self) -> None:
        """Write what was measured."""
        self.path.write_text(json.dumps(self.seconds), encoding="utf-8")


class FastestFirst:
    """Takes the fastest tests up to `limit` seconds in all, the fastest first."""

    def __init__(self, path: Path, limit: float) -> None:
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        self.limit = limit

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort and shorten the list of tests."""
        known = [item for item in items if item.nodeid in self.seconds]
        kept, total = [], 0.0
        for item in sorted(known, key=lambda item: self.seconds[item.nodeid]):
            total += self.seconds[item.nodeid]
            if total > self.limit and kept:
                break
            kept.append(item)
        items[:] = kept
