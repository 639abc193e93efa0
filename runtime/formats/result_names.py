"""Names of results: each maps back to the file of its image, and none depends on other images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from diffseg.engines.files import sha256

RULE = "the image's path below the folder that was named, or its file name, and an ending such as .labels.png"
SOURCE_KEY, RULE_KEY = "source", "naming"


def result_name(image: PurePath, folder: PurePath | None = None) -> str:
    """Name the results of an image: `a.jpg` for `a.jpg.labels.png` and so on.

    The suffix stays, so `a.jpg` and `a.png` have different results. A result's name without its ending is its image's.

    Args:
        image: path of the image.
        folder: the name keeps the path below this folder; None: the name is the file name.

    Returns:
        A relative path with `/` between its parts.

    Raises:
        ValueError: the image does not lie in the folder.
    """
    return image.name if folder is None else image.relative_to(folder).as_posix()


def source_record(image: Path, name: str) -> dict[str, Any]:
    """Return what the JSON of a result records about the image's file.

    Args:
        image: the file.
        name: its result's name; see `result_name`.

    Raises:
        OSError: the file cannot be read.
    """
    return {SOURCE_KEY: {"name": name, "bytes": image.stat().st_size, "sha256": sha256(image)}, RULE_KEY: RULE}


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the JSON of a result; None if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def same_work(record: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a result was made from the same image in the same way.

    Args:
        record: the JSON of the result.
        made: the values that some of its keys must have, as in JSON. A value may be another such mapping.
    """
    return all(
        key in record
        and (
            isinstance(record[key], Mapping) and same_work(record[key], value)
            if isinstance(value, Mapping)
            else record[key] == value
        )
        for key, value in made.items()
    )
