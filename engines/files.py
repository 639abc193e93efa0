"""Files and folders that appear whole or not at all, their hashes, and the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from diffseg.engines.errors import BundleError

CACHE_VARIABLE = "DIFFSEG_CACHE"
"""Environment variable that names the cache folder."""


def cache_folder() -> Path:
    """Folder for files that can be rebuilt: $DIFFSEG_CACHE, else the platform's cache folder for diffseg."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("diffseg", appauthor=False))


def sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until its contents are on the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` if the block succeeds.

    The temporary name is unique to the process and the thread. If the block fails, the temporary file is deleted and
    `path` is unchanged. A symbolic link is replaced itself: the file that it points to is never written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, kind: str, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which is renamed to `target` if the block succeeds.

    If the block fails, the temporary folder is deleted and `target` is unchanged.

    Args:
        target: folder to write.
        kind: what the folder is, for messages.
        marker: name of a file that every folder of this kind contains.
        overwrite: replace an existing folder of the same kind.

    Raises:
        BundleError: `target` exists and `overwrite` is not set, or it is not a folder of this kind.
    """
    target = target.expanduser().resolve()  # "." has no parent of its own, and a symbolic link must not be replaced
    # Replace only folders that diffseg wrote: `-o ~` must not delete a home folder.
    taken = any(target.iterdir()) if target.is_dir() else target.exists()
    if taken and not (target / marker).is_file():
        raise BundleError(f"{target} exists and is no {kind}; choose another folder with -o")
    if taken and not overwrite:
        raise BundleError(f"{target} exists; choose another folder with -o, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
