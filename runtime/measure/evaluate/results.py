"""Stored results: one file of JSON lines per method and settings, one line per image."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.engines.errors import DatasetError
from diffseg.measure.evaluate.boundary import BoundaryCounts
from diffseg.measure.overlap import Overlap

if TYPE_CHECKING:
    from diffseg.measure.evaluate.columns import Column


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Everything that is needed to compute the scores of one image.

    Attributes:
        image: name of the image.
        overlap: overlap of classes and masks.
        boundary: numbers of boundary pixels.
        seconds: time of making the masks, without the network's pass.
    """

    image: str
    overlap: Overlap
    boundary: BoundaryCounts
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as it is stored in the file."""
        found = self.boundary
        return {
            "image": self.image,
            "classes": list(self.overlap.classes),
            "table": self.overlap.table.tolist(),
            "boundary": [found.found, found.found_right, found.true, found.true_found],
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Record:
        """Read the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the value is not such a result.
        """
        classes = tuple(int(c) for c in value["classes"])
        table = np.array(value["table"], dtype=np.int64).reshape(len(classes), -1)
        boundary = BoundaryCounts(*(int(count) for count in value["boundary"]))
        return cls(str(value["image"]), Overlap(classes, table), boundary, float(value["seconds"]))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder of results: two that store in one would write every line twice.

    Raises:
        DatasetError: another run uses the folder, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DatasetError(
            f"another run stores its results in {folder}; wait for it, or choose another folder with -o"
        ) from None
    except OSError as error:
        raise DatasetError(f"{folder}: results cannot be kept there ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


class Store:
    """The records of one column. Threads may share a store.

    A record is found by a hash of its image and label, so data sets and runs share a file, and an image that was
    changed is evaluated again. A line that a crash cut off is dropped when the file is opened again.
    """

    def __init__(self, folder: Path, column: Column) -> None:
        name = column.name.replace(" ", "-").replace("/", "_")
        self.path = folder / f"{name}-{column.fingerprint}.jsonl"
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError as error:
            raise DatasetError(f"{self.path}: results cannot be kept there ({error.strerror})") from None

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        for line in data[:whole].splitlines():
            try:
                value = json.loads(line)
                self._records[value["content"]] = Record.from_dict(value)
            except (KeyError, TypeError, ValueError):
                continue  # the image is evaluated again

    def get(self, content: str) -> Record | None:
        """Return the record of the image and label with this content hash, or None."""
        return self._records.get(content)

    def add(self, content: str, record: Record) -> None:
        """Store a record in memory and as one line of the file."""
        line = json.dumps({"content": content, **record.to_dict()}, separators=(",", ":")) + "\n"
        with self._lock:
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(line)
            except OSError as error:
                raise DatasetError(f"{self.path}: results cannot be kept there ({error.strerror})") from None
            self._records[content] = record
