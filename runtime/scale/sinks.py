"""Files of rows: Parquet, WebDataset and COCO. Equal rows give equal bytes, so writing a file again changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.formats.coco import CATEGORY
from diffseg.formats.marks import GENERATOR, JSON_KEY
from diffseg.scale.rows import LABELS, OVERLAY, Row, arrow_schema, arrow_table
from diffseg.scale.storage import Folder

BatchFormat = Literal["parquet", "webdataset", "coco"]
ROW_GROUP = 256
"""Rows held in memory at a time while a Parquet file is written."""
ENDINGS = {LABELS: "labels.png", OVERLAY: "overlay.png"}


class Sink(Protocol):
    """Writes rows to a file, and reads their keys back."""

    suffix: ClassVar[str]

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write a file."""

    def keys(self, path: Path) -> list[str]:
        """Return the keys of the rows in a file."""


class ParquetSink:
    """One row per image, with the schema of `arrow_schema`.

    Raises:
        MissingPackageError: pyarrow is missing.
    """

    suffix: ClassVar[str] = ".parquet"

    def __init__(self, *, labels: bool, overlays: bool) -> None:
        try:
            self.schema = arrow_schema(labels=labels, overlays=overlays)
        except ImportError:
            raise MissingPackageError(
                f"Parquet needs pyarrow: {install_command('parquet')}; or choose --format webdataset or coco"
            ) from None

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write a file, compressed by Zstandard."""
        from pyarrow.parquet import ParquetWriter

        waiting = iter(rows)
        with ParquetWriter(path, self.schema, compression="zstd") as writer:
            while group := list(islice(waiting, ROW_GROUP)):
                writer.write_table(arrow_table(group, self.schema))

    def keys(self, path: Path) -> list[str]:
        """Return the keys of the rows in a file."""
        from pyarrow.parquet import read_table

        keys: list[str] = read_table(path, columns=["key"])["key"].to_pylist()
        return keys


class WebDatasetSink:
    """A tar file with `NAME.json` per image, and `NAME.labels.png` and `NAME.overlay.png` on request.

    NAME is the SHA-256 of the encoded image, or of the key if it could not be read. For a second image with the
    same bytes, `-2` is appended, and so on.
    """

    suffix: ClassVar[str] = ".tar"

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write a file. Its members carry neither times nor owners."""
        taken: Counter[str] = Counter()
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in rows:
                digest = row["sha256"] or hashlib.sha256(row["key"].encode()).hexdigest()
                taken[digest] += 1
                name = digest if taken[digest] == 1 else f"{digest}-{taken[digest]}"
                plain = {key: value for key, value in row.items() if key not in ENDINGS}
                _add(archive, f"{name}.json", json.dumps(plain).encode())
                for column, ending in ENDINGS.items():
                    if row.get(column) is not None:
                        _add(archive, f"{name}.{ending}", row[column])

    def keys(self, path: Path) -> list[str]:
        """Return the keys of the rows in a file."""
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".json")]
            return [json.load(archive.extractfile(member))["key"] for member in members]  # type: ignore[arg-type]


class CocoSink:
    """A COCO data set whose ids count from 1 in each file. Label and overlay images are files beside it.

    `file_name` is the key. Images without masks are listed under `errors`.

    Args:
        folder: folder of the label and overlay images.
    """

    suffix: ClassVar[str] = ".coco.json"

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write a file. The label and overlay images are written before it."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for row in rows:
            if row["error"] is not None:
                errors.append({"file_name": row["key"], "error": row["error"]})
                continue
            for column, ending in ENDINGS.items():
                if row.get(column) is not None:
                    with self.folder.writing(f"images/{row['sha256']}.{ending}") as target:
                        target.write_bytes(row[column])
            images.append({"id": len(images) + 1, "file_name": row["key"]} | _facts(row))
            for segment in row["segments"]:
                annotations.append(annotation(row, segment, len(annotations) + 1, len(images)))
        dataset = {
            JSON_KEY: GENERATOR,
            "images": images,
            "annotations": annotations,
            "categories": [CATEGORY],
            "errors": errors,
        }
        path.write_text(json.dumps(dataset) + "\n", encoding="utf-8")

    def keys(self, path: Path) -> list[str]:
        """Return the keys of the rows in a file, including rows with errors."""
        dataset = json.loads(path.read_text(encoding="utf-8"))
        return [item["file_name"] for item in (*dataset["images"], *dataset["errors"])]


def annotation(row: Row, segment: dict[str, Any], number: int, image: int) -> dict[str, Any]:
    """Return the COCO annotation of one segment."""
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": segment["counts"]},
        "area": segment["area"],
        "bbox": segment["bbox"],
        "iscrowd": 0,
    }


def open_sink(kind: BatchFormat, folder: Folder, *, labels: bool = False, overlays: bool = False) -> Sink:
    """Return the sink of a format.

    Raises:
        MissingPackageError: a package that the format needs is missing.
    """
    if kind == "parquet":
        return ParquetSink(labels=labels, overlays=overlays)
    return WebDatasetSink() if kind == "webdataset" else CocoSink(folder)


def _facts(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("height", "width", "sha256", "provider")}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(data))
