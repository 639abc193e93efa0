"""Which packages are installed here, and how to install those that are missing."""

from __future__ import annotations

import json
import shlex
from typing import Any

NAME = "diffseg"


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None if it is missing."""
    from importlib.metadata import PackageNotFoundError, version  # some 30 ms, which only reports need

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Command that adds an extra to this installation of diffseg, from the place it was installed from.

    An index need not have the package: a folder, a file or a repository that it came from is named in its place,
    whether or not that still exists. It is read from the installation's `direct_url.json` (PEP 610).
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
    """What the installation records of its source; empty if it came from an index, or is none."""
    from importlib.metadata import distributions

    # A clone that was built holds metadata, too, which have no record and come first where the clone is the
    # current folder: only those of the installation count.
    for distribution in distributions(name=NAME):
        if text := distribution.read_text("direct_url.json"):
            source: dict[str, Any] = json.loads(text)
            return source
    return {}
