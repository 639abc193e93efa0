"""A run: its folder below the output, the units that are done, and the writing of a unit's file.

    OUTPUT/run-0123456789ab/_run.json                     what decides the contents of the rows
    OUTPUT/run-0123456789ab/part-000012-….parquet         the rows of one unit

A file is written under a temporary name and then renamed, or uploaded whole. It holds the keys of its images, so there
is no second record that could disagree with it: an image is done if and only if it is in a file. The file of a unit has
the same name and the same bytes whichever worker writes it, so a unit that is done twice exists once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from diffseg.engines.errors import ClusterError
from diffseg.engines.text import system_reason
from diffseg.formats.marks import GENERATOR, JSON_KEY
from diffseg.scale.options import BatchOptions
from diffseg.scale.read import read_unit
from diffseg.scale.rows import Row
from diffseg.scale.sinks import BatchFormat, open_sink
from diffseg.scale.storage import open_folder
from diffseg.scale.units import Unit
from diffseg.scale.worker import SegmentWorker

RECORD = "_run.json"
"""Readers of Parquet folders skip names that begin with an underscore."""
DIGITS = 12


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A folder of results of one bundle with one set of settings.

    Attributes:
        output: folder or URI that the user named.
        format: format of the files.
        options: settings of the work on each image.
    """

    output: str
    format: BatchFormat
    options: BatchOptions

    def record(self) -> dict[str, Any]:
        """Return what decides the contents of the files."""
        return self.options.describe() | {"format": self.format}

    @property
    def name(self) -> str:
        """Name of the run's folder, which follows from its record."""
        text = json.dumps(self.record(), sort_keys=True)
        return f"run-{hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}"

    @property
    def folder(self) -> str:
        """Path or URI of the run's folder."""
        return f"{self.output.rstrip('/')}/{self.name}"

    def begin(self, units: int) -> tuple[int, list[str]]:
        """Write the run's record, or read it if the run is resumed.

        Args:
            units: number of units among which images are divided, if the run is new.

        Returns:
            The number of units among which images are divided, and one line per other run in the output that differs.

        Raises:
            ClusterError: the output cannot be read or written, or the record is damaged.
            MissingPackageError: the format needs a package that is missing.
        """
        open_sink(self.format, open_folder(self.folder))  # raises before anything is written
        try:
            others = [name for name in _runs(self.output) if name != self.name]
            folder = open_folder(self.folder)
            record = self.record()
            if RECORD in folder.names():
                units = int(json.loads(folder.read(RECORD))["units"])
            with folder.writing(RECORD) as path:  # also deletes what killed processes left in the folder
                path.write_text(
                    json.dumps({JSON_KEY: GENERATOR, **record, "units": units}, indent=1) + "\n", encoding="utf-8"
                )
            return units, [_difference(self.output, name, record) for name in others]
        except (ValueError, KeyError, TypeError):
            raise ClusterError(f"{self.folder}/{RECORD} is damaged; delete the folder or choose another one") from None
        except OSError as error:
            reason = system_reason(error)
            raise ClusterError(f"cannot write to {self.output}: {reason}; choose another folder with -o") from None

    def pending(self, units: Iterable[Unit]) -> tuple[list[Unit], int]:
        """Return the units, or parts of units, that are not done, and how many units are done."""
        folder = open_folder(self.folder)
        sink = open_sink(self.format, folder, labels=self.options.labels, overlays=self.options.overlays)
        names = {name for name in folder.names() if name.endswith(sink.suffix) and name.startswith("part-")}
        by_prefix: dict[str, list[str]] = {}
        for name in names:
            by_prefix.setdefault(name.rpartition("-")[0], []).append(name)
        rest: list[Unit] = []
        done = 0
        for unit in units:
            if f"{unit.name}{sink.suffix}" in names:
                done += 1
                continue
            earlier = by_prefix.get(unit.prefix, []) if unit.kind == "files" else []
            remaining = unit
            for name in earlier:  # the input has changed since
                with folder.reading(name) as path:
                    remaining = remaining.without(sink.keys(path))
            if remaining.items:
                rest.append(remaining)
            else:
                done += 1
        return rest, done


@dataclass(slots=True)
class BatchReport:
    """Counts and times of processed units, which can be added up.

    Attributes:
        images: rows that were written, including those with errors.
        errors: rows with an error.
        seconds: seconds per stage, and `total`, summed over the workers.
    """

    images: int = 0
    errors: int = 0
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, other: BatchReport) -> None:
        """Add another report."""
        self.images += other.images
        self.errors += other.errors
        self.seconds.update(other.seconds)


class UnitWorker:
    """Turns units into files of a run, with one worker.

    Args:
        run: the run whose files are written.
        threads: CPU threads of the network; None uses those of the run's options.
    """

    def __init__(self, run: BatchRun, threads: int | None = None) -> None:
        arguments = run.options.arguments()
        if threads is not None:
            arguments["threads"] = threads
        self.worker = SegmentWorker(**arguments)
        self.folder = open_folder(run.folder)
        self.sink = open_sink(run.format, self.folder, labels=run.options.labels, overlays=run.options.overlays)

    def process(self, unit: Unit) -> BatchReport:
        """Segment a unit and write its file.

        Raises:
            ClusterError: a file that contains images cannot be read, or the file cannot be written.
        """
        start = time.perf_counter()
        self.worker.seconds.clear()
        report = BatchReport()
        try:
            with self.folder.writing(f"{unit.name}{self.sink.suffix}") as path:
                self.sink.write(path, _counted(self.worker.rows(read_unit(unit)), report))
        except OSError as error:
            reason = system_reason(error)
            raise ClusterError(f"cannot write to {self.folder}: {reason}") from None
        report.seconds.update(self.worker.seconds)
        report.seconds["total"] = time.perf_counter() - start  # type: ignore[assignment]  # a counter of seconds
        return report


def _counted(rows: Iterator[Row], report: BatchReport) -> Iterator[Row]:
    for row in rows:
        report.images += 1
        report.errors += row["error"] is not None
        yield row


def _runs(output: str) -> list[str]:
    """Return the names of the runs in an output folder."""
    return [name for name in open_folder(output).names() if name.startswith("run-")]


def _difference(output: str, name: str, record: dict[str, Any]) -> str:
    """Say how an earlier run differs from `record`."""
    try:
        other = json.loads(open_folder(f"{output.rstrip('/')}/{name}").read(RECORD))
        before, now = (
            {**found, **found["settings"], "settings": None} for found in (other, json.loads(json.dumps(record)))
        )
        changed = [
            f"{key} {_flat(before.get(key))}, now {_flat(now[key])}" for key in now if before.get(key) != now[key]
        ]
    except (OSError, ValueError, TypeError, KeyError):
        changed = ["its record cannot be read"]
    return f"{name}: {'; '.join(changed)}"


def _flat(value: Any) -> str:  # noqa: ANN401 - a value of JSON
    return value[:DIGITS] if isinstance(value, str) else json.dumps(value)
