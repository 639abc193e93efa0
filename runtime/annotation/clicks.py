"""Clicks and boxes of Label Studio's smart tools, and the masks that answer them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diffseg.annotation.label_studio import Labelling, brush_value, polygon_value, region
from diffseg.annotation.picking import PickableMasks, Point
from diffseg.formats.polygons import polygons
from diffseg.labels import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 1000
"""Largest number of clicks and boxes of one request."""
KEYPOINTS = ("keypoint", "keypointlabels")
RECTANGLES = ("rectangle", "rectanglelabels")


@dataclass(frozen=True, slots=True)
class Clicks:
    """What was drawn with smart tools on one image, in fractions of its width and height.

    Attributes:
        positive: places in the object.
        negative: places beside it.
        boxes: around the object: left, top, right, bottom.
        label: of the tool; None for tools without labels.
    """

    positive: tuple[Point, ...]
    negative: tuple[Point, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    label: str | None


def read_clicks(context: object) -> Clicks | None:
    """Read the context of a request for a prediction: a result of key points and rectangles, in percent.

    Returns:
        None if there is no context, or nothing was drawn: the request asks for the prediction of whole images.

    Raises:
        ValueError: the context is not one of smart tools.
    """
    items = context.get("result") if isinstance(context, Mapping) else None
    if not items:
        return None
    if not isinstance(items, list) or len(items) > MOST:
        raise ValueError(f"the result of a context must be a list of at most {MOST:,} items")
    positive, negative, boxes, label = list[Point](), list[Point](), list[tuple[float, float, float, float]](), None
    for item in items:
        kind, value = (item.get(key) if isinstance(item, Mapping) else None for key in ("type", "value"))
        if kind not in (*KEYPOINTS, *RECTANGLES) or not isinstance(value, Mapping):
            raise ValueError("a context may hold key points and rectangles of smart tools only")
        x, y = _fraction(value, "x"), _fraction(value, "y")
        if kind in RECTANGLES:
            boxes.append((x, y, x + _fraction(value, "width"), y + _fraction(value, "height")))
        else:
            (positive if item.get("is_positive", True) else negative).append((x, y))
        labels = value.get(kind)
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            label = labels[0]
    return Clicks(tuple(positive), tuple(negative), tuple(boxes), label)


def _fraction(value: Mapping[str, Any], key: str) -> float:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{key} of a context's item must be a number of percent")
    return number / 100


def clicked_mask(masks: PickableMasks, clicks: Clicks) -> NDArray[np.bool_]:
    """Return the mask at the positive places and in the boxes, without what belongs to the negative places, (H, W)."""
    height, width = masks.placement.image_size
    positive, negative = ([(x * width, y * height) for x, y in places] for places in (clicks.positive, clicks.negative))
    picked = masks.pick(positive, negative)
    for left, top, right, bottom in clicks.boxes:
        boxed = masks.inside(left * width, top * height, right * width, bottom * height)
        picked |= boxed & ~masks.pick(negative) if negative else boxed
    return picked


def answer(labelling: Labelling, mask: NDArray[np.bool_], clicks: Clicks, version: str) -> dict[str, Any]:
    """Write the mask that answers clicks as a prediction, in the form that the project's masks have.

    Args:
        labelling: how the project annotates its images.
        mask: (H, W) bool.
        clicks: whose label the mask gets.
        version: of the model.

    Returns:
        `result`, empty if the mask is, and `model_version`. A mask as polygons gives one per connected part.
    """
    size = mask.shape[0], mask.shape[1]
    if not mask.any():
        values = []
    elif labelling.kind.startswith("brush"):
        values = [brush_value(mask)]
    else:
        whole = Segment(1, int(mask.sum()), (0, 0, size[1], size[0]))
        values = [polygon_value(polygon, size) for polygon in polygons(mask.astype(np.uint16), (whole,))]
    label = None if labelling.label is None else clicks.label or labelling.label
    name = secrets.token_hex(4)  # an annotation holds the regions of several answers
    items = [region(f"diffseg-{name}-{n}", labelling, value, label, size) for n, value in enumerate(values)]
    return {"result": items, "model_version": version}
