"""Photographs under free licences (LICENCES.md beside them), for demonstrations and parity checks."""

from __future__ import annotations

from pathlib import Path


def example_images() -> list[Path]:
    """Paths of the example photographs."""
    return sorted(Path(__file__).parent.glob("*.jpg"))
