"""Folders from a model hub, local copies first (extra `hub`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.errors import BundleNotFoundError, MissingPackageError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A downloaded revision of a hub repository."""

    folder: Path
    revision: str


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name`, with an optional `@revision`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", name) is not None


def snapshot(name: str, patterns: list[str] | None = None) -> Snapshot:
    """Return the local folder of `owner/name[@revision]`, downloaded if it is not in the hub's cache.

    Raises:
        MissingPackageError: huggingface-hub is not installed.
        BundleNotFoundError: it is neither in the cache nor can it be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingPackageError(
            f"{name!r} looks like a hub id, which needs huggingface-hub: pip install 'diffseg[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    options = {"repo_id": repository, "revision": revision or None, "allow_patterns": patterns}
    try:
        try:
            folder = Path(snapshot_download(**options, local_files_only=True))
        except LocalEntryNotFoundError:
            folder = Path(snapshot_download(**options))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleNotFoundError(
            f"{name!r} is no local folder, not in the hub's cache and could not be downloaded ({reason}); "
            "check the name and the network, or pass a folder"
        ) from None
    return Snapshot(folder, folder.name)
