"""Folders from a model hub; cached copies are preferred (extra `hub`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.errors import BundleNotFoundError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.engines.text import first_line


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A downloaded revision of a hub repository."""

    folder: Path
    revision: str


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name`, with an optional `@revision`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", name) is not None


def blobs_folder(snapshot: Path) -> Path | None:
    """Return the folder of a hub's cache that holds the contents of a snapshot's links; None for other folders."""
    repository = snapshot.parents[1] if len(snapshot.parents) > 1 else snapshot
    in_cache = snapshot.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository / "blobs" if in_cache else None


def snapshot(name: str, patterns: list[str], *, required: Sequence[str] = (), ignored: Sequence[str] = ()) -> Snapshot:
    """Return the local folder of `owner/name[@revision]`, downloaded if it is not in the hub's cache.

    Args:
        name: repository, with an optional revision.
        patterns: files to fetch.
        required: files that a complete download contains, as glob patterns; a cached folder that lacks one of them is
            downloaded again.
        ignored: files that are not fetched.

    Raises:
        MissingPackageError: huggingface-hub is not installed.
        BundleNotFoundError: the repository is not cached and can't be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise MissingPackageError(
            f"{name!r} looks like a hub id, which needs huggingface-hub: {install_command('hub')}"
        ) from None
    repository, _, revision = name.partition("@")
    options = {
        "repo_id": repository,
        "revision": revision or None,
        "allow_patterns": patterns,
        "ignore_patterns": ["*non_ema*", *ignored],
    }
    try:
        try:
            folder = Path(snapshot_download(**options, local_files_only=True))
            complete = all(next(folder.glob(pattern), None) for pattern in required)
        except LocalEntryNotFoundError:
            complete = False
        if not complete:
            folder = Path(snapshot_download(**options))
    except Exception as error:  # the hub's client does not wrap the errors of its HTTP library  # noqa: BLE001
        reason = first_line(error)
        raise BundleNotFoundError(
            f"{name!r} is not a local folder, is not in the hub's cache and could not be downloaded ({reason}); "
            "check the name and the network, or pass a folder"
        ) from None
    return Snapshot(folder, folder.name)
