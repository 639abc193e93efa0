"""The licence that a model card states. This module does not need PyTorch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

MOST_LINES = 1000


def read_licence(card: Path) -> str | None:
    """Return the licence in the front matter of a model card; None if there is none.

    If the licence is the hub's `other`, the name that the card gives is added: `other
    (sai-nc-community)`.
    """
    if not card.is_file():
        return None
    fields: dict[str, str] = {}
    with card.open(encoding="utf-8", errors="replace") as lines:
        for i, line in enumerate(islice(lines, MOST_LINES)):
            if line.rstrip() == "---" and i:  # the end of the front matter
                break
            key, colon, value = line.partition(":")
            if colon and key in ("license", "license_name"):
                fields[key] = value.strip().strip("\"'")
    licence, name = fields.get("license") or None, fields.get("license_name")
    return f"{licence} ({name})" if licence and name else licence
