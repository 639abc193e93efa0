"""The encoded images of a unit, read ahead of the network."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import IO, Any

from diffseg.arrays import prefetched
from diffseg.engines.errors import ClusterError, ImageError
from diffseg.engines.text import first_line, system_reason
from diffseg.image import SUFFIXES
from diffseg.scale.inputs import URI_COLUMNS, open_table
from diffseg.scale.storage import MOST_BYTES, is_remote, open_remote, read_bytes
from diffseg.scale.units import Unit
from diffseg.scale.worker import Item, encoded_image

READERS = 4
"""Number of files that are read ahead at the same time, and held in memory."""


def read_unit(unit: Unit) -> Iterator[Item]:
    """Yield the images of a unit, in order. An image that cannot be read yields its error.

    Raises:
        ClusterError: a file that contains images cannot be read to its end.
    """
    if unit.kind == "files":
        yield from prefetched(_read, unit.items, READERS)
    elif unit.kind == "tar":
        yield from _read_tar(unit.items[0])
    else:
        yield from _read_table(unit)


def _read(key: str) -> Item:
    try:
        return key, read_bytes(key)
    except ImageError as error:
        return key, error
    except ClusterError as error:
        return key, ImageError(str(error))


def _read_tar(name: str) -> Iterator[Item]:
    """Yield the images of a WebDataset file; their keys are `FILE#SAMPLE`, or `FILE#MEMBER` for further images."""
    try:
        with closing(_open(name)) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            seen: set[str] = set()
            for member in archive:
                base, ending = _split(member.name)
                if not member.isfile() or ending.lower() not in SUFFIXES:  # `.mask.png` belongs to another image
                    continue
                key = f"{name}#{member.name if base in seen else base}"
                seen.add(base)
                if member.size > MOST_BYTES:
                    yield key, ImageError(f"has more than {MOST_BYTES >> 20} MiB")
                    continue
                content = archive.extractfile(member)
                yield key, content.read() if content is not None else ImageError("cannot be read")
    except (tarfile.TarError, EOFError) as error:  # the rest of the file is lost, on another attempt too
        yield name, ImageError(f"the tar file is damaged ({first_line(error)})")
    except OSError as error:
        raise ClusterError(f"{name}: cannot be read ({system_reason(error)})") from None


def _split(member: str) -> tuple[str, str]:
    """Return a sample's name and the ending of a member, as WebDataset divides them: at the first dot of the name."""
    path = PurePosixPath(member)
    stem, dot, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else member, dot + ending


def _open(name: str) -> IO[bytes] | Any:  # noqa: ANN401 - or a stream of pyarrow
    if is_remote(name):
        system, path = open_remote(name)
        return system.open_input_stream(path)
    return open(name, "rb")  # noqa: PTH123 - closed by the caller


def _read_table(unit: Unit) -> Iterator[Item]:
    """Yield the images of row groups; their keys are those of a key column, else `FILE#ROW`."""
    name = unit.items[0]
    with open_table(name) as table:
        rows = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
        named = next((item for item in URI_COLUMNS if item in table.schema_arrow.names), None)
        columns = [unit.column] if named is None else [unit.column, named]
        for number in unit.row_groups:
            row = sum(rows[:number])
            for batch in table.iter_batches(batch_size=READERS, row_groups=[number], columns=columns):
                values = batch.column(unit.column)
                keys = None if named is None else batch.column(named)
                for i in range(len(values)):
                    key = keys[i].as_py() if keys is not None else None
                    yield str(key) if key is not None else f"{name}#{row}", encoded_image(values[i])
                    row += 1
