"""The inputs of a batch: folders, globs, lists of URIs, Parquet and WebDataset files, on this machine or elsewhere."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffseg.engines.errors import ClusterError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.engines.text import first_line
from diffseg.image import SUFFIXES
from diffseg.scale.storage import is_remote, local_path, open_remote, read_bytes

TAR, PARQUET, LIST = ".tar", ".parquet", ".txt"
URI_COLUMNS = ("uri", "url", "path", "key")
BYTES_COLUMNS = ("bytes", "image", "image_bytes", "content")
ROWS_TOGETHER = 100
"""Row groups of a Parquet file are joined until they hold this many rows. Fixed, as it decides what a unit holds."""


@dataclass(slots=True)
class Inputs:
    """The inputs that were found.

    Attributes:
        files: paths or URIs of images, each once.
        tars: paths or URIs of WebDataset files.
        tables: Parquet files with encoded images: path, row groups that are read together, and column.
    """

    files: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    tables: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)


def find_inputs(
    inputs: Sequence[str], *, column: str | None = None, per_unit: int = ROWS_TOGETHER, output: str = ""
) -> Inputs:
    """List the images that arguments name, without reading them.

    Args:
        inputs: folders, which are searched to any depth; glob patterns; images; `.tar`, `.parquet`; `.txt` files with
            a path or URI per line. Each may be local or a URI.
        column: column of Parquet files with encoded images, paths or URIs. None looks for a usual name.
        per_unit: row groups of a Parquet file are joined until they hold this many images.
        output: folder of the results, which is left out if it lies in a folder of the arguments.

    Raises:
        ClusterError: an argument names nothing, or a table has no such column.
        MissingPackageError: a package for a scheme or for Parquet is missing.
    """
    found = Inputs()
    files: dict[str, None] = {}
    skipped = f"{output.rstrip('/')}/" if output else None
    for argument in inputs:
        names = [name for name in _expand(argument) if skipped is None or not name.startswith(skipped)]
        if not names:
            raise ClusterError(f"{argument}: no images, .tar or .parquet files found")
        for name in names:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a URI is not a Path
            if suffix == TAR:
                found.tars.append(name)
            elif suffix == PARQUET:
                _table(name, column, per_unit, found, files)
            elif suffix == LIST:
                files |= dict.fromkeys(_listed(name))
            else:
                files[name] = None
    found.files = sorted(files)
    found.tars = sorted(set(found.tars))
    found.tables = sorted(set(found.tables))
    return found


def _expand(argument: str) -> Iterable[str]:
    """Return the files that an argument names: absolute paths or URIs, sorted."""
    if is_remote(argument):
        return sorted(_expand_remote(argument))
    path = local_path(argument)
    if path.is_dir():
        return sorted(str(Path(folder) / name) for folder, _, names in os.walk(path) for name in names if _wanted(name))
    if glob.has_magic(argument) and not path.exists():
        return sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
    return [str(path)] if path.exists() else []


def _expand_remote(uri: str) -> Iterator[str]:
    from pyarrow.fs import FileSelector, FileType

    base, question, query = uri.partition("?")
    if not glob.has_magic(base):
        system, path = open_remote(uri)
        (info,) = system.get_file_info([path])
        if info.type == FileType.File:
            yield uri
            return
        pattern, root = None, base.rstrip("/")
    else:
        pattern = base
        root = base[: min(base.find(sign) for sign in "*?[" if sign in base)].rpartition("/")[0]
        system, path = open_remote(root + question + query)
    try:
        infos = system.get_file_info(FileSelector(path, recursive=True))
    except OSError as error:
        raise ClusterError(f"{uri}: cannot be listed ({first_line(error)})") from None
    for info in infos:
        name = f"{root}{info.path.removeprefix(path.rstrip('/'))}"
        wanted = _wanted(info.base_name) if pattern is None else fnmatch.fnmatchcase(name, pattern)
        if info.type == FileType.File and wanted:
            yield name + question + query


def _wanted(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return not name.startswith(".") and (suffix in SUFFIXES or suffix in (TAR, PARQUET))


def _listed(name: str) -> Iterator[str]:
    """Yield the paths and URIs in a list. Relative paths are relative to the list."""
    try:
        lines = read_bytes(name).decode("utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise ClusterError(f"{name}: the list cannot be read ({error})") from None
    folder = name.rpartition("/")[0]
    for line in filter(None, map(str.strip, lines)):
        if is_remote(line) or is_remote(name):
            yield line if is_remote(line) else f"{folder}/{line}"
        else:
            yield os.path.abspath(Path(folder) / line)  # noqa: PTH100 - a path that need not exist


def _table(name: str, column: str | None, per_unit: int, found: Inputs, files: dict[str, None]) -> None:
    """Add the images of a Parquet file: those in it, or those that it names."""
    with open_table(name) as table:
        schema = table.schema_arrow
        usual = [item for item in (*BYTES_COLUMNS, *URI_COLUMNS) if item in schema.names]
        chosen = column or (usual[0] if usual else None)
        if chosen is None or chosen not in schema.names:
            raise ClusterError(
                f"{name}: there is no column {chosen or 'with a usual name'}, found {', '.join(schema.names)}; "
                "name the one with encoded images, paths or URIs with --column"
            )
        import pyarrow as pa

        kind = schema.field(chosen).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            for batch in table.iter_batches(columns=[chosen]):
                files |= dict.fromkeys(filter(None, batch.column(0).to_pylist()))
            return
        groups: list[int] = []
        rows = 0
        for number in range(table.num_row_groups):
            groups.append(number)
            rows += table.metadata.row_group(number).num_rows
            if rows >= per_unit or number == table.num_row_groups - 1:
                found.tables.append((name, tuple(groups), chosen))
                groups, rows = [], 0


def open_table(name: str) -> Any:  # noqa: ANN401 - pyarrow's ParquetFile
    """Open a Parquet file.

    Raises:
        ClusterError: it cannot be read.
        MissingPackageError: pyarrow is missing.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingPackageError(f"{name}: Parquet needs pyarrow: {install_command('parquet')}") from None
    try:
        if not is_remote(name):
            return ParquetFile(name)
        system, path = open_remote(name)
        return ParquetFile(path, filesystem=system)
    except (OSError, ValueError) as error:
        raise ClusterError(f"{name}: cannot be read as Parquet ({first_line(error)})") from None
