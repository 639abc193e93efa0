"""Which packages are installed here."""

from __future__ import annotations


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None if it is missing."""
    from importlib.metadata import PackageNotFoundError, version  # some 30 ms, which only reports need

    try:
        return version(name)
    except PackageNotFoundError:
        return None
