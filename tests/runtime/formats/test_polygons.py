"""Outlines cover the pixels that they were traced around, and simplify within the tolerance."""

import numpy as np
import pytest
from diffseg.formats.polygons import polygons
from diffseg.labels import place_labels
from diffseg.placement import Placement
from hypothesis import given, settings
from hypothesis import strategies as st


def placed(labels):
    labels = np.asarray(labels, np.uint16)
    return place_labels(labels, Placement(labels.shape, labels.shape, 0, 0, *labels.shape))


def filled(parts, shape, label):
    """Even-odd filling: a pixel is inside if an odd number of vertical edges is to its left."""
    count = np.zeros(shape, int)
    for part in parts:
        for ring in (part.exterior, *part.holes) if part.label == label else ():
            for (x0, y0), (x1, y1) in zip(ring.astype(int), np.roll(ring, -1, 0).astype(int), strict=True):
                if x0 == x1:
                    count[min(y0, y1) : max(y0, y1), x0:] += 1
    return count % 2 == 1


def area(ring):
    x, y = ring.astype(float).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_exact_outlines_cover_exactly_the_mask(seed, height, width, count):
    labels, segments = placed(np.random.default_rng(seed).integers(0, count, (height, width)))
    parts = polygons(labels, segments, 0)
    for segment in segments:
        np.testing.assert_array_equal(filled(parts, labels.shape, segment.label), labels == segment.label)
        mine = [part for part in parts if part.label == segment.label]
        assert sum(area(p.exterior) + sum(map(area, p.holes)) for p in mine) == segment.area
        assert all(area(p.exterior) > 0 > max(map(area, p.holes), default=-1) for p in mine)
    assert [*dict.fromkeys(part.label for part in parts)] == [segment.label for segment in segments]


def test_a_ring_within_a_hole_is_a_part_of_its_own():
    labels = np.zeros((9, 9), int)
    labels[1:8, 1:8] = 1
    labels[2:7, 2:7] = 0
    labels[3:6, 3:6] = 1
    labels[4, 4] = 0
    parts = [part for part in polygons(*placed(labels), 0) if part.label == 1]
    assert [(len(part.exterior), len(part.holes)) for part in parts] == [(4, 1), (4, 1)]
    assert [area(part.exterior) for part in parts] == [49, 9]
    assert [area(part.holes[0]) for part in parts] == [-25, -1]


def test_pixels_that_touch_at_a_corner_are_parts_of_their_own():
    parts = [part for part in polygons(*placed([[1, 0], [0, 1]]), 0) if part.label == 1]
    assert sorted(part.exterior.min(0).tolist() for part in parts) == [[0, 0], [1, 1]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.8, 2.0]))
def test_removed_corners_lie_within_the_tolerance(seed, tolerance):
    rng = np.random.default_rng(seed)
    y, x = np.indices((60, 60))
    labels = (np.hypot(x - 30, y - 30) + rng.normal(size=(60, 60)).cumsum(0) * 0.1 < 20).astype(int)
    exact, simple = (polygons(*placed(labels), t) for t in (0, tolerance))
    assert sum(len(p.exterior) for p in simple) < sum(len(p.exterior) for p in exact)
    largest = max(exact, key=lambda p: len(p.exterior)).exterior
    rings = [ring for part in simple for ring in (part.exterior, *part.holes)]
    for corner in largest:
        assert min(distance(corner, ring) for ring in rings) <= tolerance + 1e-4


def distance(point, ring):
    start, end = ring.astype(float), np.roll(ring, -1, 0).astype(float)
    along = ((point - start) * (end - start)).sum(1) / ((end - start) ** 2).sum(1)
    return np.hypot(*(start + np.clip(along, 0, 1)[:, None] * (end - start) - point).T).min()


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="tolerance must be at least 0 pixels, found -1"):
        polygons(*placed([[0]]), -1)
