"""Masks as Label Studio's results, in the form that a project's labelling configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree.ElementTree import Element, ParseError, fromstring

from diffseg.annotation.brush import encode_brush

if TYPE_CHECKING:
    import numpy as np
    from diffseg.formats.polygons import Polygon
    from diffseg.segmentation import Segmentation
    from numpy.typing import NDArray

MOST_CHARACTERS = 1_000_000
DECLARATIONS = ("<!DOCTYPE", "<!ENTITY")
Kind = Literal["brushlabels", "brush", "polygonlabels", "polygon"]
CONTROLS: tuple[Kind, ...] = ("brushlabels", "brush", "polygonlabels", "polygon")
"""Tags that masks can be drawn with, the preferred one first."""
NAMES = ("segment", "diffseg")
"""Names of a label that is meant for masks without a class."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """How a project annotates its images.

    Attributes:
        field: key of the image in a task's data.
        image: name of the `Image` tag.
        control: name of the tag that draws masks.
        kind: name of this tag's type, in lower case, such as `brushlabels`.
        label: given to all masks, because DiffSeg does not classify them; None for tags without labels.
    """

    field: str
    image: str
    control: str
    kind: Kind
    label: str | None


def read_labelling(config: str) -> Labelling:
    """Read a labelling configuration.

    Brushes are preferred to polygons. The label is the one named "segment" or "diffseg", else the first.

    Raises:
        ValueError: the configuration is not XML, or has no image, no brush and no polygon.
    """
    if len(config) > MOST_CHARACTERS or any(word in config.upper() for word in DECLARATIONS):
        raise ValueError(
            f"the labelling configuration must have at most {MOST_CHARACTERS:,} characters and declare no entities"
        )
    try:
        root = fromstring(config)  # noqa: S314 - no declarations, so no entities
    except ParseError as error:
        line, column = error.position
        raise ValueError(f"the labelling configuration is not XML: error in line {line}, column {column}") from None
    tags = list(root.iter())
    images = {
        tag.get("name", ""): tag.get("value", "")[1:]
        for tag in tags
        if _kind(tag) == "image" and tag.get("value", "").startswith("$")
    }
    for kind in CONTROLS:
        for tag in tags:
            image = tag.get("toName", tag.get("toname", ""))
            if _kind(tag) == kind and image in images:
                return Labelling(images[image], image, tag.get("name", ""), kind, _label(tag))
    raise ValueError(
        "the labelling configuration has no BrushLabels, Brush, PolygonLabels or Polygon for an Image whose value is "
        "a field of the task; add one of them"
    )


def _kind(tag: Element) -> str:
    return tag.tag.lower() if isinstance(tag.tag, str) else ""


def _label(control: Element) -> str | None:
    labels = [value for tag in control.iter() if _kind(tag) == "label" and (value := tag.get("value"))]
    return next((label for label in labels if label.lower() in NAMES), labels[0] if labels else None)


def prediction(
    labelling: Labelling, result: Segmentation, scores: Sequence[float], version: str, tolerance: float = 1.0
) -> dict[str, Any]:
    """Write the masks of an image as a prediction.

    Args:
        labelling: how the project annotates its images.
        result: the masks.
        scores: one per segment, from 0 to 1.
        version: version of the model, as Label Studio shows it.
        tolerance: tolerance of polygons, in pixels.

    Returns:
        `result`, one item per mask, or per connected part of it as a polygon; `score`, the mean of the scores of all
        pixels; and `model_version`. Label Studio's polygons have no holes, so holes are filled.
    """
    height, width = result.labels.shape
    by_label = {segment.label: score for segment, score in zip(result.segments, scores, strict=True)}
    if labelling.kind.startswith("brush"):
        values = [(segment.label, brush_value(result.labels == segment.label)) for segment in result.segments]
    else:
        values = [(polygon.label, polygon_value(polygon, (height, width))) for polygon in result.polygons(tolerance)]
    items = [
        region(f"diffseg-{number}", labelling, value, labelling.label, (height, width)) | {"score": by_label[label]}
        for number, (label, value) in enumerate(values)
    ]
    mean = sum(segment.area * by_label[segment.label] for segment in result.segments) / (height * width)
    return {"result": items, "score": mean, "model_version": version}


def brush_value(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Write a mask (H, W) as the value of a brush."""
    return {"format": "rle", "rle": encode_brush(mask)}


def polygon_value(polygon: Polygon, size: tuple[int, int]) -> dict[str, Any]:
    """Write the outline of a polygon, in an image of a height and width, as the value of a polygon: in percent."""
    percent = 100 / size[1], 100 / size[0]
    return {"points": (polygon.exterior.astype(float) * percent).tolist(), "closed": True}


def region(
    name: str, labelling: Labelling, value: dict[str, Any], label: str | None, size: tuple[int, int]
) -> dict[str, Any]:
    """Return an item of a result.

    Args:
        name: differs from those of the other items of the annotation.
        labelling: how the project annotates its images.
        value: of a brush or a polygon, as the project asks for.
        label: of the region; None for tags without labels.
        size: height and width of the image.
    """
    return {
        "id": name,
        "type": labelling.kind,
        "from_name": labelling.control,
        "to_name": labelling.image,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": value | ({} if label is None else {labelling.kind: [label]}),
    }
