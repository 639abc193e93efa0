"""Names of the formats that a result can be written in."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["labels", "overlay", "json", "coco", "polygons", "labelme", "svg", "cutouts", "palette"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = ("labels", "overlay", "json")


def parse_formats(text: str) -> tuple[Format, ...]:
    """Read a list such as `labels,coco`.

    Raises:
        ValueError: the list contains an unknown format or is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, found {', '.join(unknown) or 'none'}")
    return tuple(item for item in FORMATS if item in names)
