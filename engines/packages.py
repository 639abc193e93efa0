"""Versions of installed packages, and commands that install missing ones."""

from __future__ import annotations

import json
import shlex
from typing import Any

NAME = "diffseg"


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None if it is missing."""
    from importlib.metadata import PackageNotFoundError, version  # takes about 30 ms, so import it only when needed

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation of diffseg, from its original source.

    If diffseg was installed from a folder, a file or a repository, the command names that source, because a package
    index may not have diffseg. The source is read from `direct_url.json` (PEP 610); it may no longer exist.
    """
    source = _source()
    url = source.get("url")
    if not url:
        return f"pip install {shlex.quote(f'{NAME}[{extra}]')}"
    if (folder := source.get("dir_info")) is not None:
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        option = "-e " if folder.get("editable") else ""
        return f"pip install {option}{shlex.quote(f'{url2pathname(urlsplit(url).path)}[{extra}]')}"
    if repository := source.get("vcs_info"):
        url = f"{repository['vcs']}+{url}@{repository.get('requested_revision') or repository['commit_id']}"
    if subfolder := source.get("subdirectory"):
        url += f"#subdirectory={subfolder}"
    return f"pip install {shlex.quote(f'{NAME}[{extra}] @ {url}')}"


def _source() -> dict[str, Any]:
    """Return the recorded source of the installation; empty if it came from an index or diffseg is not installed."""
    from importlib.metadata import distributions

    # A built clone contains metadata without `direct_url.json`. If the clone is the current folder, that metadata is
    # listed before that of the installation, so skip it.
    for distribution in distributions(name=NAME):
        if text := distribution.read_text("direct_url.json"):
            source: dict[str, Any] = json.loads(text)
            return source
    return {}
