"""Maps that compete in tiles give the labels of all maps on all pixels, and enlarged label maps have no stairs."""

import numpy as np
import pytest
from diffseg.arrays import resize_last
from diffseg.methods.tiles import GridPositions, Points, label_by_labels, label_by_maps
from hypothesis import given, settings
from hypothesis import strategies as st


def labelled(grid, size, label=label_by_maps, **options):
    out = np.full(size, 9999, np.uint16)
    label(grid, Points.evenly(size[0]), Points.evenly(size[1]), out, **options)
    return out


def dense(maps, size):
    """All maps at all pixels."""
    tall = np.swapaxes(resize_last(np.ascontiguousarray(np.swapaxes(maps, 1, 2)), size[0]), 1, 2)
    return resize_last(np.ascontiguousarray(tall), size[1]).argmax(0)


@settings(deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 200), st.integers(1, 200),
    st.integers(0, 10_000), st.sampled_from([np.float32, np.float64]), st.booleans(),
)  # fmt: skip
def test_tiles_give_what_all_maps_give(count, rows, columns, height, width, seed, dtype, rough):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(count, rows, columns)).astype(dtype)
    if not rough:
        maps = np.round(maps)  # many ties, which the lowest index wins
    maps[rng.integers(count)] = maps[rng.integers(count)]
    np.testing.assert_array_equal(labelled(maps, (height, width)), dense(maps, (height, width)))


def test_maps_that_are_nowhere_the_largest_are_not_looked_at(monkeypatch):
    maps = np.stack([np.full((8, 8), 2.0, np.float32), np.full((8, 8), 1.0, np.float32)])
    monkeypatch.setattr("diffseg.methods.tiles._winners", None)
    assert not labelled(maps, (300, 200)).any()


def test_tiles_are_neither_small_nor_empty():
    for cells, pixels in ((64, 512), (64, 4000), (8, 5), (1, 1000), (64, 64)):
        axis = GridPositions.of(Points.evenly(pixels), cells)
        tiles = axis.tiles()
        assert [tile.start for tile in tiles] == [0, *(tile.stop for tile in tiles)][:-1]
        assert tiles[-1].stop == pixels
        assert all(tile.stop - tile.start >= min(48, pixels) for tile in tiles[:-1])
        assert all(0 <= axis.cells(tile).start < axis.cells(tile).stop <= cells for tile in tiles)


def test_pixels_beyond_the_grid_take_its_border():
    out = np.empty((4, 4), np.uint16)
    points = Points(np.array([-3.0, 0.5, 1.5, 9.0]), 2)
    label_by_maps(np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 1]]], np.float32), points, points, out)
    np.testing.assert_array_equal(out, [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]])


@pytest.mark.parametrize("spread", [0, 2])
def test_labels_of_the_same_size_keep_straight_borders(spread):
    labels = np.zeros((60, 50), np.uint16)
    labels[:, 20:] = 7
    labels[30:, 20:] = 3
    found = labelled(labels, labels.shape, label_by_labels, spread=spread)
    differ = found != labels
    assert differ.sum() <= (0 if spread == 0 else 4)  # of the corner


def test_enlarged_labels_have_no_stairs():
    y, x = np.mgrid[:64, :64]
    labels = (x > 20 + y / 3).astype(np.uint16)
    found = labelled(labels, (1024, 1024), label_by_labels)
    border = (found == 0).sum(1)[64:-64]
    assert np.abs(np.diff(border)).max() <= 2  # repeated, each would be a step of 16 pixels
    line = 16 * (20.5 + (np.arange(1024)[64:-64] / 16 - 0.5) / 3)
    assert np.abs(border - line).max() <= 12
