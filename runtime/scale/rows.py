"""Rows: what a batch writes for each image, as plain values and as an Arrow schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from diffseg.engines.text import printable
from diffseg.formats.files import png_bytes
from diffseg.formats.rle import compress, run_lengths
from msgspec import structs

if TYPE_CHECKING:
    import pyarrow as pa
    from diffseg.segmentation import Segmentation

Row: TypeAlias = dict[str, Any]
"""One image.

key             path, URI, or URI of a file and the name of a sample in it
sha256          of the encoded image; None if it could not be read
width, height   of the upright image, in pixels; None with an error, like all columns down to `void`
segments        largest first: label, area in pixels, bbox (left, top, width, height), counts (COCO run lengths)
void            label of the pixels that the network did not see, with `fit="crop"`, else None
settings        JSON of the merge settings; the fit has a column of its own
bundle, bundle_sha256, provider   what made the masks
error           one line that says why there are no masks, else None
labels_png, overlay_png   encoded images, if they are asked for
"""
LABELS, OVERLAY = "labels_png", "overlay_png"
LONGEST_ERROR = 500


def result_row(key: str, digest: str, result: Segmentation, *, labels: bool = False, overlay: bool = False) -> Row:
    """Return the row of an image.

    Args:
        key: key of the image.
        digest: SHA-256 of the encoded image.
        result: result of a segmenter, so that its origin is known.
        labels: add the labels as a PNG, 8-bit grey or 16-bit for over 256 labels.
        overlay: add the image with its masks drawn over it, as a PNG.
    """
    assert result.origin is not None  # noqa: S101 - segmenters always set it
    height, width = result.labels.shape
    runs = run_lengths(result.labels, len(result.segments))
    row: Row = {
        "key": key,
        "sha256": digest,
        "width": width,
        "height": height,
        "segments": [
            {
                "label": segment.label,
                "area": segment.area,
                "bbox": list(segment.bbox),
                "counts": compress(runs[segment.label]),
            }
            for segment in result.segments
        ],
        "void": result.void,
        "settings": json.dumps(structs.asdict(result.settings)),
        "fit": result.origin.fit,
        "bundle": result.origin.bundle,
        "bundle_sha256": result.origin.bundle_sha256,
        "provider": result.origin.provider,
        "error": None,
    }
    if labels:
        row[LABELS] = png_bytes(result.label_image())
    if overlay:
        row[OVERLAY] = png_bytes(result.overlay())
    return row


def error_row(key: str, digest: str | None, error: str, like: Row) -> Row:
    """Return the row of an image that has no masks.

    Args:
        key: key of the image.
        digest: SHA-256 of the encoded image; None if it could not be read.
        error: why, in one line.
        like: values of the columns that are the same for all images of a worker.
    """
    nothing = dict.fromkeys(("width", "height", "segments", "void"))
    return {"key": key, "sha256": digest} | nothing | like | {"error": printable(error)[:LONGEST_ERROR]}


def arrow_schema(*, labels: bool = False, overlays: bool = False) -> pa.Schema:
    """Return the schema of rows."""
    import pyarrow as pa

    segment = pa.struct([
        ("label", pa.int32()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32())),
        ("counts", pa.string()),
    ])  # fmt: skip
    fields = [
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("segments", pa.list_(segment)),
        ("void", pa.int32()),
        *((name, pa.string()) for name in ("settings", "fit", "bundle", "bundle_sha256", "provider", "error")),
    ]
    fields += [(LABELS, pa.binary())] * labels + [(OVERLAY, pa.binary())] * overlays
    return pa.schema(fields)


def arrow_table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. Columns that a row lacks are null."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema)
