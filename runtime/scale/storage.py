"""Storage of images and results: files of this machine, and every file system that pyarrow and fsspec support."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffseg.engines.errors import ClusterError, ImageError, MissingPackageError
from diffseg.engines.files import atomic_file, expand_user
from diffseg.engines.packages import install_command
from diffseg.engines.text import first_line, system_reason

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")
CHUNK = 8 << 20
MOST_BYTES = 256 << 20
"""Largest size of an encoded image, in bytes."""


def is_remote(path: str) -> bool:
    """Whether a path is a URI, and not a file of this machine."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """Return the absolute path of a local file or folder."""
    return expand_user(path.removeprefix("file://")).absolute()


def open_remote(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of a URI, and the path in it.

    Raises:
        MissingPackageError: a package for this scheme is missing.
        ClusterError: there is no such scheme, or the URI is malformed.
    """
    scheme = uri.partition("://")[0].lower()
    try:
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    except ImportError:
        raise MissingPackageError(f"{scheme}:// needs pyarrow: {install_command('parquet')}") from None
    try:
        if scheme in ARROW_SCHEMES:
            found: tuple[FileSystem, str] = FileSystem.from_uri(uri)
            return found
        from fsspec.core import url_to_fs

        system, path = url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(system)), path
    except ImportError as error:
        raise MissingPackageError(f"{scheme}:// needs another package: {first_line(error)}") from None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{uri}: cannot be opened ({system_reason(error)})") from None


def read_bytes(path: str) -> bytes:
    """Read a whole file of at most 256 MiB.

    Raises:
        ImageError: it cannot be read, or is too large. The message is one line without the path.
    """
    try:
        if not is_remote(path):
            file = local_path(path)
            if not file.is_file():
                raise ImageError("not a regular file" if file.exists() else "no such file")
            with file.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        else:
            system, inner = open_remote(path)
            with system.open_input_stream(inner) as stream:
                data = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({system_reason(error)})") from None
    if len(data) > MOST_BYTES:
        raise ImageError(f"has more than {MOST_BYTES >> 20} MiB")
    return data


class Folder(Protocol):
    """A folder of results. Files appear whole or not at all."""

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted; an empty list if there is no folder yet."""

    def read(self, name: str) -> bytes:
        """Return the contents of a file."""

    def writing(self, name: str) -> Any:  # noqa: ANN401 - a context manager of a path
        """Yield a path to write to, which becomes the file `name` if the block succeeds."""

    def reading(self, name: str) -> Any:  # noqa: ANN401 - a context manager of a path
        """Yield a local path of a file."""


class LocalFolder:
    """A folder of this machine, or one that is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Return the names of the files in the folder, without temporary ones."""
        if not self.path.is_dir():
            return []
        return sorted(item.name for item in self.path.iterdir() if not item.name.startswith("."))

    def read(self, name: str) -> bytes:
        """Return the contents of a file."""
        return (self.path / name).read_bytes()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path, which is flushed to the disk and renamed to `name` if the block succeeds."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Yield the path of a file."""
        yield self.path / name


class RemoteFolder:
    """A folder of an object store: an object is there only once its upload is complete."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._system, self._path = open_remote(self.uri)

    def __str__(self) -> str:
        return self.uri

    def names(self) -> list[str]:
        """Return the names of the objects right below the folder."""
        from pyarrow.fs import FileSelector

        found = self._system.get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self, name: str) -> bytes:
        """Return the contents of an object."""
        with self._system.open_input_stream(f"{self._path}/{name}") as stream:
            data: bytes = stream.read()
        return data

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path, whose contents are uploaded as `name` if the block succeeds."""
        with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
            temporary = Path(folder) / "part"
            yield temporary
            with temporary.open("rb") as source:
                # Not a `with`: after an error, closing the stream would complete the upload of a part of the file.
                target = self._system.open_output_stream(f"{self._path}/{name}")
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                target.close()

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Yield the path of a copy of an object."""
        with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
            path = Path(folder) / "part"
            path.write_bytes(self.read(name))
            yield path


def open_folder(path: str) -> LocalFolder | RemoteFolder:
    """Return the folder for results at a path or URI. Nothing is created.

    Raises:
        MissingPackageError: a package for the URI's scheme is missing.
        ClusterError: the URI cannot be opened.
    """
    return RemoteFolder(path) if is_remote(path) else LocalFolder(local_path(path))
