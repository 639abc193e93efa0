"""Atomic writing of files and folders, their hashes, and the cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import platformdirs
from diffseg.engines.errors import BundleError, DiffsegError
from diffseg.engines.text import system_reason

CACHE_VARIABLE = "DIFFSEG_CACHE"
"""Environment variable that names the cache folder."""
STALE = 24 * 3600
"""Seconds after which a temporary file or folder is deleted if it is unknown whether its process still runs."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+\.(?P<role>part|old)")
"""Names of temporary paths. `part` marks a path that is being written, `old` a folder that is being replaced."""


def cache_folder() -> Path:
    """Return the folder for files that can be rebuilt: $DIFFSEG_CACHE, or the platform's cache folder for diffseg."""
    named = os.environ.get(CACHE_VARIABLE)
    return expand_user(named) if named else Path(platformdirs.user_cache_dir("diffseg", appauthor=False))


def expand_user(path: str | Path) -> Path:
    """Return the path with its leading `~` replaced. It is unchanged if there is no such user or no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
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

    The temporary name is unique to the machine, the process and the thread. If the block fails, the temporary file is
    deleted and `path` is unchanged. Temporary files that killed processes left in the folder are deleted first. If
    `path` is a symbolic link, the link itself is replaced; the file that it points to is never written.
    """
    _clean_once(path.parent.resolve())
    temporary = _temporary_path(path, "part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    target: Path,
    *,
    kind: str,
    marker: str | None,
    overwrite: bool = False,
    error: type[DiffsegError] = BundleError,
    hint: str = "choose another folder with -o",
) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which is renamed to `target` if the block succeeds.

    If the block fails, the temporary folder is deleted and `target` is unchanged. A folder that is replaced is deleted
    only once the new one is in its place. Temporary folders that killed processes left beside `target` are deleted
    first.

    Args:
        target: folder to write.
        kind: what the folder is, for messages.
        marker: name of a file that every folder of this kind contains; None: any folder may be replaced.
        overwrite: replace an existing folder of the same kind.
        error: class of the error that is raised if the folder can't be written.
        hint: how to fix that error, for its message.

    Raises:
        DiffsegError: of class `error`. `target` exists and `overwrite` is not set, it is not a folder of this kind, or
            the operating system refuses to write it.
    """
    try:
        # "." has no parent of its own, and a symbolic link must not be replaced
        target = expand_user(target).resolve()
        blocked = next((parent for parent in target.parents if parent.exists() and not parent.is_dir()), None)
        if blocked:
            raise error(f"cannot write {target}: {blocked} is not a folder; {hint}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target.parent)
        # Replace only folders that diffseg wrote: `-o ~` must not delete a home folder.
        taken = any(target.iterdir()) if target.is_dir() else target.exists()
        if taken and marker is not None and not (target / marker).is_file():
            raise error(f"{target} exists and is not a {kind}; {hint}")
        if taken and not overwrite:
            raise error(f"{target} exists; {hint}, or overwrite it with --force")
        temporary = _temporary_path(target, "part")
        temporary.mkdir()
        try:
            yield temporary
            _replace_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except DiffsegError:  # some of them are also OSErrors
        raise
    except OSError as problem:
        if problem.errno is None:  # raised by a network library, not by the operating system
            raise
        where = None if problem.filename is None else Path(str(problem.filename)).absolute()
        ours = where is None or where == target or any(part.startswith(f".{target.name}.") for part in where.parts)
        reason = system_reason(problem)
        raise error(f"cannot write {target}: {reason}{'' if ours else f' ({where})'}; {hint}") from problem


def _replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`.

    An existing folder is moved aside first. If the renaming fails, it is moved back; otherwise it is deleted.
    """
    aside = _temporary_path(target, "old")
    if not target.exists():
        new.replace(target)
        return
    target.replace(aside)
    try:
        new.replace(target)
    except OSError:
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _temporary_path(path: Path, role: str) -> Path:
    """Return a hidden path in the folder of `path`, unique to the machine, the process and the thread."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{threading.get_native_id()}.{role}")


@cache
def _host() -> str:
    """Return eight hexadecimal digits that are derived from the name of this machine or container."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@cache
def _clean_once(folder: Path) -> None:
    """Clean a folder when this process first writes a file there: listing it for each file would take too long."""
    _clean(folder)


def _clean(folder: Path) -> None:
    """Delete temporary files and folders of processes that have ended, and restore folders that they moved aside.

    Nothing is raised: files and folders that can't be deleted stay.
    """
    try:
        left = [(path, match) for path in folder.iterdir() if (match := TEMPORARY.fullmatch(path.name))]
    except OSError:
        return
    for path, match in left:
        try:
            if not _is_abandoned(path, match["host"], int(match["process"])):
                continue
            if match["role"] == "old" and not (target := path.with_name(match["name"])).exists():
                path.replace(target)  # the process ended between its two renames
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        except OSError:
            continue


def _is_abandoned(path: Path, host: str, process: int) -> bool:
    """Whether the process that made a temporary path has ended; if that is unknown, whether the path is old."""
    if host != _host() or sys.platform == "win32":
        return time.time() - path.lstat().st_mtime > STALE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's process
        return False
    return False
