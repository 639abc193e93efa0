"""Outlines of masks as polygons with holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from diffseg.labels import Segment
from numpy.typing import NDArray

Ring = NDArray[np.float32]
"""(n, 2) x and y of the corners in pixels, closed implicitly. Pixel (x, y) covers the square from (x, y) to
(x + 1, y + 1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected part of a mask.

    Attributes:
        label: label of the mask; a mask of several parts has several polygons.
        exterior: the outer ring, clockwise as seen on the screen.
        holes: inner rings, counterclockwise.
    """

    label: int
    exterior: Ring
    holes: tuple[Ring, ...] = ()


def polygons(labels: NDArray[np.uint16], segments: Sequence[Segment], tolerance: float = 1.0) -> tuple[Polygon, ...]:
    """Trace the outlines of all masks along the edges of their pixels.

    Pixels that touch only at a corner belong to different parts (4-connectivity). With a tolerance of 0, the polygons
    cover exactly the pixels of the masks. Otherwise each ring is simplified independently (Douglas and Peucker, 1973),
    so neighbours may overlap or leave gaps of up to twice the tolerance, and rings that shrink to a line are left out.

    Args:
        labels: (H, W).
        segments: the masks to trace.
        tolerance: largest distance of a removed corner from the simplified ring, in pixels.

    Returns:
        Polygons in the order of `segments`; the polygons of one mask are sorted by decreasing size.

    Raises:
        ValueError: the tolerance is negative or not a number.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 pixels, found {tolerance}")
    found: list[Polygon] = []
    for segment in segments:
        left, top, width, height = segment.bbox
        rings = _rings(labels[top : top + height, left : left + width] == segment.label)
        areas = [_area(ring) for ring in rings]
        order = sorted((i for i, area in enumerate(areas) if area > 0), key=lambda i: -areas[i])
        outer = [rings[i] for i in order]
        boxes = np.array([[*ring.min(0), *ring.max(0)] for ring in outer])
        holes: list[list[NDArray[np.int64]]] = [[] for _ in outer]
        for ring, area in zip(rings, areas, strict=True):
            if area < 0:
                holes[_owner(ring, outer, boxes)].append(ring)
        offset = np.array([left, top])
        for exterior, inner in zip(outer, holes, strict=True):
            simple = _simplified(exterior, tolerance)
            if len(simple) > 2:  # noqa: PLR2004
                rest = (_simplified(ring, tolerance) for ring in inner)
                kept = tuple((ring + offset).astype(np.float32) for ring in rest if len(ring) > 2)  # noqa: PLR2004
                found.append(Polygon(segment.label, (simple + offset).astype(np.float32), kept))
    return tuple(found)


def _rings(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the rings of (x, y) corners around the 4-connected parts of a mask.

    The inside is to the right of each edge.
    """
    padded = np.pad(mask, 1)
    across, down = padded[:, 1:] ^ padded[:, :-1], padded[1:, :-1] ^ padded[:-1, :-1]
    turns = (across[1:] ^ across[:-1]) | (across[1:] & across[:-1] & down)  # the second term: parts touch at a corner
    y, x = np.nonzero(turns)
    nw, ne, sw, se = padded[y, x], padded[y, x + 1], padded[y + 1, x], padded[y + 1, x + 1]
    # Per direction, clockwise from the right: whether an edge leaves the corner, and whether one arrives.
    leaving = np.stack([se & ~ne, sw & ~se, nw & ~sw, ne & ~nw])
    arriving = np.stack([sw & ~nw, nw & ~ne, ne & ~se, se & ~sw])
    starts, ends = [], []
    by_column = np.argsort(x, kind="stable")
    for direction in range(4):
        # Along a line, starts and ends of edges alternate, so the two lists pair up in reading order.
        order = by_column if direction % 2 else np.arange(len(x))
        starts.append(order[leaving[direction, order]])
        ends.append(order[arriving[direction, order]])
    offsets = np.cumsum([0, *map(len, starts)])
    following = np.empty(offsets[-1], dtype=np.int64)
    for direction, end in enumerate(ends):
        right, left = (_find(starts[turn % 4], end) for turn in (direction + 1, direction - 1))
        # Where two parts touch at a corner, a right turn stays on the current part.
        following[offsets[direction] : offsets[direction + 1]] = np.where(
            right >= 0, right + offsets[(direction + 1) % 4], left + offsets[(direction - 1) % 4]
        )
    corners = np.stack([x, y], axis=1)[np.concatenate(starts)]
    return [corners[ring] for ring in _cycles(following.tolist())]


def _find(values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each of `wanted` in `values`, which has no duplicates, or -1 if it is absent."""
    if not len(values):
        return np.full(len(wanted), -1)
    order = np.argsort(values)
    at = order[np.searchsorted(values, wanted, sorter=order).clip(max=len(values) - 1)]
    return np.where(values[at] == wanted, at, -1)


def _cycles(following: list[int]) -> list[list[int]]:
    """Return the cycles of a permutation, each as a list of its members in order."""
    cycles, seen = [], [False] * len(following)
    for start in range(len(following)):
        cycle, i = [], start
        while not seen[i]:
            seen[i] = True
            cycle.append(i)
            i = following[i]
        if cycle:
            cycles.append(cycle)
    return cycles


def _area(ring: NDArray[np.number]) -> float:
    """Return the signed area in pixels, which is positive if the ring is clockwise on the screen."""
    x, y = ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _owner(hole: NDArray[np.int64], outer: Sequence[NDArray[np.int64]], boxes: NDArray[np.int64]) -> int:
    """Return the index of the smallest outer ring around a hole.

    Args:
        hole: (n, 2).
        outer: rings by decreasing size.
        boxes: (len(outer), 4) smallest x and y, then largest x and y of each outer ring.
    """
    # The pixel to the right of the hole's first edge belongs to the mask.
    (x, y), (next_x, next_y) = hole[0].tolist(), hole[1].tolist()
    step_x, step_y = np.sign(next_x - x), np.sign(next_y - y)
    px, py = x + (step_x - step_y) / 2, y + (step_y + step_x) / 2
    around = (boxes[:, 0] < px) & (boxes[:, 1] < py) & (boxes[:, 2] > px) & (boxes[:, 3] > py)
    return next(int(i) for i in np.flatnonzero(around)[::-1] if _contains(outer[i], px, py))


def _contains(ring: NDArray[np.int64], x: float, y: float) -> bool:
    """Whether a point off the lattice lies inside: an odd number of vertical edges is to the left of such a point."""
    x0, y0 = ring[:, 0], ring[:, 1]
    y1 = np.roll(y0, -1)
    crossed = (np.minimum(y0, y1) < y) & (y < np.maximum(y0, y1)) & (x0 < x)
    return bool(crossed.sum() % 2)


def _simplified(ring: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Remove corners that lie within `tolerance` of the simplified ring."""
    if tolerance == 0 or len(ring) <= 4:  # noqa: PLR2004
        return ring
    # Divide the ring at two corners that are far apart, and simplify the two halves.
    apart = int(((ring - ring[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, apart, len(ring)]] = True
    waiting = [(0, apart), (apart, len(ring))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:  # noqa: PLR2004
            continue
        base, between = closed[first], closed[first + 1 : last] - closed[first]
        chord = closed[last] - base
        length = float(np.hypot(*chord))
        if length == 0:
            distance = np.hypot(between[:, 0], between[:, 1])
        else:
            along = np.clip(between @ chord / length**2, 0, 1)
            distance = np.hypot(*(between - along[:, None] * chord).T)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    return closed[:-1][kept[:-1]]
