"""Polygons as files that drawing and annotation tools open: SVG and labelme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from diffseg.draw import COLOURS, palette
from diffseg.formats.marks import SVG_ATTRIBUTE
from diffseg.formats.polygons import Polygon, Ring


def svg(polygons: Iterable[Polygon], size: tuple[int, int]) -> str:
    """Draw polygons as an SVG document: one path per part of a mask, holes included.

    Args:
        polygons: the masks, each in the colour that overlays give its label.
        size: `(H, W)` of the image in pixels.
    """
    height, width = size
    colours = palette()
    paths: list[str] = []
    for polygon in polygons:
        red, green, blue = colours[polygon.label % COLOURS].tolist()
        outline = "".join(_path(ring) for ring in (polygon.exterior, *polygon.holes))
        paths.append(
            f'<path id="label-{polygon.label}-{len(paths)}" data-label="{polygon.label}" '
            f'fill="#{red:02x}{green:02x}{blue:02x}" fill-rule="evenodd" d="{outline}"/>'
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f"{SVG_ATTRIBUTE}>"
    )
    return "\n".join([head, *paths, "</svg>\n"])


def labelme(polygons: Sequence[Polygon], size: tuple[int, int], image_path: str) -> dict[str, Any]:
    """Describe polygons as labelme 5 does; the parts of one mask form a group.

    labelme's polygons have no holes, so holes are filled.

    Args:
        polygons: the masks.
        size: `(H, W)` of the image in pixels.
        image_path: path of the image, relative to the file that is written.
    """
    height, width = size
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": [
            {
                "label": f"segment {polygon.label}",
                "points": polygon.exterior.tolist(),
                "group_id": polygon.label,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
            }
            for polygon in polygons
        ],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _path(ring: Ring) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in ring.tolist()) + "Z"
