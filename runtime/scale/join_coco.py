"""Join the COCO files of a run into one data set, with consecutive ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from diffseg.formats.coco import CATEGORY
from diffseg.formats.marks import GENERATOR, JSON_KEY
from diffseg.scale.sinks import CocoSink
from diffseg.scale.storage import Folder

MERGED = "annotations.json"


def join_coco(folder: Folder) -> str | None:
    """Write `annotations.json` from the COCO files in a folder, one after another.

    Images are numbered in the order of the files. The label and overlay images stay where they are.

    Returns:
        The name of the file, or None if there is nothing to join.
    """
    names = [name for name in folder.names() if name.startswith("part-") and name.endswith(CocoSink.suffix)]
    if not names:
        return None
    with folder.writing(MERGED) as path, path.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"{JSON_KEY}": "{GENERATOR}", "categories": {json.dumps([CATEGORY])}, "images": [')
        _write(stream, _numbered(folder, names, "images"))
        stream.write('], "annotations": [')
        _write(stream, _numbered(folder, names, "annotations"))
        stream.write('], "errors": [')
        _write(stream, (item for name in names for item in _load(folder, name)["errors"]))
        stream.write("]}\n")
    return MERGED


def _numbered(folder: Folder, names: list[str], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the images or annotations of all files, with consecutive ids."""
    images = annotations = 0
    for name in names:
        dataset = _load(folder, name)
        for item in dataset[kind]:
            if kind == "images":
                yield item | {"id": images + item["id"]}
            else:
                yield item | {"id": annotations + item["id"], "image_id": images + item["image_id"]}
        images += len(dataset["images"])
        annotations += len(dataset["annotations"])


def _load(folder: Folder, name: str) -> dict[str, Any]:
    dataset: dict[str, Any] = json.loads(folder.read(name))
    return dataset


def _write(stream: IO[str], items: Iterator[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        stream.write(("" if number == 0 else ",") + "\n" + json.dumps(item))
