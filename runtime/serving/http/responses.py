"""Responses with masks: JSON with run lengths, an image of labels, or an overlay."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.arrays import resize_last, to_host
from diffseg.features import EncoderFeatures
from diffseg.formats.files import png_bytes
from diffseg.formats.rle import Counts
from diffseg.labels import finish_labels
from diffseg.placement import Placement
from diffseg.segmentation import Segmentation
from diffseg.serving.http.errors import HTTPRequestError
from diffseg.serving.protocol.echo import shorten
from diffseg.serving.protocol.errors import bad_request
from diffseg.serving.protocol.masks import to_json

if TYPE_CHECKING:
    from diffseg.attention import AggregatedAttention
    from numpy.typing import NDArray


class Kind(StrEnum):
    """The kinds of response."""

    JSON = "json"
    LABELS = "labels"
    OVERLAY = "overlay"


OFFERED = {"application/json": Kind.JSON, "image/png": Kind.LABELS, "image/png;kind=overlay": Kind.OVERLAY}
MEDIA_TYPES = {Kind.JSON: "application/json", Kind.LABELS: "image/png", Kind.OVERLAY: "image/png"}


def negotiate(accept: str) -> Kind:
    """Choose the kind of response from an Accept header. Without one, choose JSON.

    Raises:
        RequestError: the header accepts none of the three kinds (406).
    """
    wanted: list[tuple[float, Kind]] = []
    for item in accept.split(",") if accept.strip() else ["*/*"]:
        media, *parameters = ("".join(part.split()).lower() for part in item.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            quality = float(given.get("q", 1))
        except ValueError:
            quality = 0.0
        if media == "image/*":
            media = "image/png"
        elif media in ("*/*", "application/*"):
            media = "application/json"
        kind = OFFERED.get(media + (f";kind={given['kind']}" if "kind" in given else ""))
        if kind is not None and quality > 0:
            wanted.append((quality, kind))
    if not wanted:
        raise HTTPRequestError(
            HTTPStatus.NOT_ACCEPTABLE,
            "bad_request",
            f"the Accept header must accept one of {', '.join(OFFERED)}; found {shorten(accept)}",
        )
    return max(wanted, key=lambda pair: pair[0])[1]


def encode(result: Segmentation, kind: Kind, facts: dict[str, Any], counts: Counts = "string") -> bytes:
    """Return a result as the body of a response.

    Args:
        result: must contain its image if `kind` is an overlay.
        kind: the kind of response.
        facts: further fields of the JSON object.
        counts: run lengths as the string that pycocotools writes, or as a list.
    """
    if kind is Kind.JSON:
        return json.dumps(facts | to_json(result, counts)).encode()
    return png_bytes(result.label_image() if kind is Kind.LABELS else result.overlay())


def shrunk(placement: Placement, side: int | None) -> Placement:
    """Return a placement whose results take evenly spaced pixels, at most `side` along the longest side."""
    height, width = placement.image_size
    scale = min(1.0, side / max(height, width)) if side else 1.0
    if scale == 1:
        return placement
    return replace(placement, shown=(max(1, round(height * scale)), max(1, round(width * scale))))


def kept(result: Segmentation) -> AggregatedAttention | EncoderFeatures:
    """Return the attention that a result contains, or with DiffCut the features."""
    assert result.attention is not None  # noqa: S101 - requested by the caller
    return result.attention


def shrink(result: Segmentation, side: int | None) -> Segmentation:
    """Scale the labels and segments of a result so that their longest side is at most `side` pixels.

    The result must contain its attention. A segment that loses all of its pixels disappears, and the labels are
    renumbered without gaps.
    """
    whole = kept(result).placement
    placement = shrunk(whole, side)
    if placement is whole:
        return result
    # The same pixels as in masks that are made at the smaller size.
    labels, segments = finish_labels(result.labels[np.ix_(*placement.taken())], placement)
    void = len(segments) - 1 if placement.hides else None
    return replace(result, labels=labels, segments=segments, void=void)


def attention_map(result: Segmentation, x: float, y: float, side: int | None = None) -> NDArray[np.uint8]:
    """Return the attention map of one point in the image (DiffSeg, figure 2), or with DiffCut its similarity to others.

    Args:
        result: must contain its attention or features.
        x: horizontal position of the point, as a fraction of the image's width.
        y: vertical position, as a fraction of the image's height.
        side: longest side of the map in pixels, at most that of the image. None: the image's size.

    Returns:
        uint8 map (H, W), 255 where the attention or similarity is largest.

    Raises:
        RequestError: the point is outside the image (400).
    """
    if not (0 <= x < 1 and 0 <= y < 1):
        raise bad_request(f"x and y must be fractions of the image, at least 0 and below 1, found {x:g} and {y:g}")
    attention = kept(result)
    placement = attention.placement
    rows, columns = placement.indices()
    row, column = rows[int(y * len(rows))], columns[int(x * len(columns))]
    size = placement.size
    (height, width) = attention.grid if isinstance(attention, EncoderFeatures) else attention.values.shape[:2]
    place = int(row) * height // size[0], int(column) * width // size[1]
    if isinstance(attention, EncoderFeatures):
        one = attention.similarities(*place)
    else:
        one = to_host(attention.values[*place, ...])
    tall = resize_last(np.ascontiguousarray(one.T), size[0]).T
    full = resize_last(np.ascontiguousarray(tall), size[1])
    rows, columns = shrunk(placement, side).indices()
    return np.asarray(np.round(full / max(float(full.max()), 1e-30) * 255).astype(np.uint8)[np.ix_(rows, columns)])
