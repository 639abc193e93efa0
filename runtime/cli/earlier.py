"""Find the images that `segment` skips because an earlier run has done them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffseg.engines.bundle.settings import MergeSettings
from diffseg.formats.files import output_paths
from diffseg.formats.marks import is_marked
from diffseg.formats.names import Format
from diffseg.formats.result_names import read_record, same_work, source_record
from msgspec import structs


class Earlier:
    """The results of earlier runs.

    Args:
        folder: folder of the results.
        formats: formats that are written for each image.
        made: values that the JSON of a result must have, if it was made with the present settings; None: it need only
            exist.
    """

    def __init__(self, folder: Path, formats: Sequence[Format], made: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.formats = formats
        self.made = made

    def has(self, source: object, name: str) -> bool:
        """Whether all results of an image exist. Downloads and standard input are always segmented again."""
        record = read_record(self.folder / f"{name}.json") if "json" in self.formats or self.made else None
        masks = len(record["segments"]) if record and isinstance(record.get("segments"), list) else None
        if not all(is_marked(path) for path in output_paths(self.folder, name, self.formats, masks)):
            return False
        if self.made is None:
            return "cutouts" not in self.formats or masks is not None
        if record is None or not isinstance(source, Path):
            return False
        try:
            return same_work(record, {**self.made, **source_record(source, name)})
        except OSError:
            return False


def made_with(bundle_sha256: str, settings: MergeSettings, fit: str) -> dict[str, Any]:
    """Return the values by which the JSON of a result records how it was made."""
    plain: dict[str, Any] = json.loads(json.dumps(structs.asdict(settings)))  # tuples become lists
    return {"origin": {"bundle_sha256": bundle_sha256, "fit": fit}, "settings": plain}
