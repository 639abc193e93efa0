"""Units of work: which images are processed together and share an output file.

A list of images is divided by the hash of each image's key, so the unit of an image does not depend on what else is in
the list or on what is done already. A file that contains images is one unit, or several if it is Parquet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

Kind = Literal["files", "tar", "parquet"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Images that one worker processes, and whose rows are one file.

    Attributes:
        number: number of the unit, from which its name and its shard follow.
        kind: `files` for image files, `tar` and `parquet` for images in such a file.
        items: paths or URIs of images, sorted; or the one file that contains them.
        row_groups: row groups of a Parquet file.
        column: column of a Parquet file that holds the encoded images.
    """

    number: int
    kind: Kind
    items: tuple[str, ...]
    row_groups: tuple[int, ...] = ()
    column: str = ""

    @property
    def name(self) -> str:
        """Name of the unit's file, without its suffix: its number, and a hash of what it contains."""
        parts = (self.kind, *self.items, *map(str, self.row_groups), self.column)
        return f"{self.prefix}-{_hash(*parts):016x}"

    @property
    def prefix(self) -> str:
        """The prefix of the names of all files of this unit."""
        return f"part-{self.number:06d}"

    def without(self, done: Iterable[str]) -> Unit:
        """Return the unit without images that are done."""
        skipped = set(done)
        return replace(self, items=tuple(item for item in self.items if item not in skipped))

    def encode(self) -> str:
        """Return the unit as text."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Unit:
        """Return the unit that `encode` wrote."""
        return msgspec.json.decode(text, type=cls)


def file_units(keys: Sequence[str], count: int) -> list[Unit]:
    """Divide images among `count` units by the hash of their keys. Units without images are left out."""
    groups: dict[int, list[str]] = {}
    for key in keys:
        groups.setdefault(_hash(key) % count, []).append(key)
    return [Unit(number, "files", tuple(sorted(groups[number]))) for number in sorted(groups)]


def container_unit(
    kind: Literal["tar", "parquet"], path: str, row_groups: tuple[int, ...] = (), column: str = ""
) -> Unit:
    """Return the unit of a file that contains images, or of some row groups of it."""
    number = _hash(path, *map(str, row_groups)) % 1_000_000
    return Unit(number, kind, (path,), row_groups, column)


def unit_count(images: int, per_file: int, shards: int) -> int:
    """Return the number of units for some images, so that each file has about `per_file` of them."""
    return max(1, shards, -(-images // per_file))


def of_shard(units: Iterable[Unit], shard: int, shards: int) -> list[Unit]:
    """Return the units of one of `shards` shards, counted from 0."""
    return [unit for unit in units if unit.number % shards == shard]


def _hash(*parts: str) -> int:
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
