"""Example images under free licences (see LICENCES.md), for demonstrations, profiles and parity checks."""

from __future__ import annotations

from pathlib import Path


def example_images() -> list[Path]:
    """Paths of the example images."""
    return sorted(Path(__file__).parent.glob("*.jpg"))
