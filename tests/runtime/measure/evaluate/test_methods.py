import numpy as np
import pytest
from diffseg.engines.bundle.settings import MergeSettings
from diffseg.measure.evaluate.columns import columns_of
from diffseg.measure.evaluate.methods import (
    Method,
    kmeans_attention,
    kmeans_colour,
    merge_superpixels,
    methods_of,
    parse_methods,
    parse_refinements,
    parse_taus,
    parse_thresholds,
)
from diffseg.measure.overlap import Overlap, covering
from PIL import Image

from tests.labelled import draw_sample


def test_thresholds():
    assert parse_thresholds("0.5:1.5:0.1") == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    assert parse_thresholds("0.3, 0.6,0.3") == (0.3, 0.6)
    assert parse_thresholds("1") == (1.0,)
    assert parse_thresholds("0.5:0.5:0.1") == (0.5,)


@pytest.mark.parametrize("text", ["", "x", "1:0:0.1", "0:1", "0:1:0", "0:1:-1", "-1", "0:1:0.001", "nan", "0:inf:1"])
def test_wrong_thresholds(text):
    with pytest.raises(ValueError, match="thresholds must be FIRST:LAST:STEP"):
        parse_thresholds(text)


def test_methods():
    assert parse_methods("kmeans-c, diffseg") == (Method.DIFFSEG, Method.KMEANS_C)
    for text in ("", "diffseg,magic"):
        with pytest.raises(ValueError, match="methods must be some of diffseg, cut, diffcut"):
            parse_methods(text)


def test_taus_and_refinements():
    assert parse_taus("0.45, 0.5,0.45") == (0.45, 0.5)
    assert parse_refinements("pamr, none,pamr") == ("pamr", "none")
    for text in ("", "x", "-1", "3", "nan"):
        with pytest.raises(ValueError, match="tau must be a number from 0 to 2"):
            parse_taus(text)
    for text in ("", "none,magic"):
        with pytest.raises(ValueError, match="refine must be some of none, kmeans, colour, pamr"):
            parse_refinements(text)


def test_names_say_method_number_and_refinement():
    base = {"protocol": "full"}
    settings = MergeSettings((0.6,) * 3, refine="colour")
    methods = (Method.DIFFSEG, Method.CUT, Method.COLOUR)
    columns = columns_of(methods, settings, (), base, {}, taus=(0.3, 0.5))
    assert [column.name for column in columns] == ["diffseg 0.6", "cut 0.3 colour", "cut 0.5 colour", "colour"]
    columns = columns_of(methods, settings, (0.9,), base, {}, refinements=("none", "pamr"))
    assert [(column.name, column.default) for column in columns] == [
        ("diffseg 0.6 none", True),
        ("diffseg 0.9 none", False),
        ("diffseg 0.6 pamr", True),
        ("diffseg 0.9 pamr", False),
        ("cut 0.45 none", True),
        ("cut 0.45 pamr", True),
        ("colour", True),
    ]
    assert len({column.fingerprint for column in columns}) == len(columns)
    assert [column.settings.method for column in columns[:-1]] == ["diffseg"] * 4 + ["cut"] * 2
    features = MergeSettings(method="diffcut", tau=0.5)
    (column,) = columns_of((Method.DIFFCUT,), features, (), base, {})
    assert (column.name, column.settings) == ("diffcut 0.5", features)
    with pytest.raises(ValueError, match="refine 'kmeans' needs attention"):
        columns_of((Method.DIFFCUT,), features, (), base, {}, refinements=("kmeans",))


def test_a_bundle_whose_default_is_cut_still_merges():
    (column,) = columns_of((Method.DIFFSEG,), MergeSettings(method="cut"), (), {}, {})
    assert (column.name, column.settings.method) == ("diffseg 1", "diffseg")


def fingerprints(settings, thresholds=(), base=None, model=None):
    methods = methods_of(features=False)
    columns = columns_of(methods, settings, thresholds, base or {"protocol": "full"}, model or {"graphs": ["a"]})
    return {column.name: column.fingerprint for column in columns}


def test_every_setting_is_in_the_fingerprint():
    settings = MergeSettings((0.6,) * 3, 16)
    usual = fingerprints(settings, (0.3, 0.6))
    assert list(usual) == ["diffseg 0.6", "diffseg 0.3", "cut 0.45", "kmeans-c", "kmeans-s", "colour", "superpixels"]
    assert len(set(usual.values())) == len(usual)
    assert fingerprints(settings, (0.3,))["diffseg 0.3"] == usual["diffseg 0.3"]
    assert fingerprints(MergeSettings((0.6,) * 3, 8))["diffseg 0.6"] != usual["diffseg 0.6"]
    other_model = fingerprints(settings, (0.3,), model={"graphs": ["b"]})
    same = {name for name in usual if other_model[name] == usual[name]}
    assert same == {"colour", "superpixels"}  # which need no model
    assert not set(fingerprints(settings, base={"protocol": "paper"}).values()) & set(usual.values())


def test_settings_that_differ_by_round_have_a_name():
    assert "diffseg 0.6/0.5/0.4" in fingerprints(MergeSettings((0.6, 0.5, 0.4), 16))


def blocks(side=12):
    """Attention (side, side, side, side) of two halves that attend to themselves, and the halves (side, side)."""
    half = (np.arange(side * side) % side >= side // 2).astype(int)
    attention = np.where(half[:, None] == half[None, :], 1.0, 0.05)
    attention += np.random.default_rng(0).random(attention.shape) * 0.02
    attention /= attention.sum(1, keepdims=True)
    return attention.astype(np.float32).reshape((side,) * 4), half.reshape(side, side)


def test_kmeans_on_attention():
    attention, halves = blocks()
    labels = kmeans_attention(attention, 2)
    assert covering(Overlap.of(halves.astype(np.uint8), labels)) == 1
    assert len(np.unique(kmeans_attention(attention, 1000))) <= 144


@pytest.mark.parametrize(("method", "least"), [(kmeans_colour, 0.6), (merge_superpixels, 0.9)])
def test_floors_follow_plain_regions(method, least):
    picture, truth = draw_sample(1, (200, 120))
    labels = method(Image.fromarray(picture), 3)
    assert labels.shape == (120, 200)
    assert covering(Overlap.of(truth, labels)) > least
    np.testing.assert_array_equal(labels, method(Image.fromarray(picture), 3))


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 2)])
@pytest.mark.parametrize("method", [kmeans_colour, merge_superpixels])
def test_floors_take_the_smallest_pictures(method, size):
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    assert method(Image.fromarray(picture)).shape == (size[1], size[0])


def test_merging_joins_neighbours_only():
    # Two white fields with black between them: alike, but apart.
    picture = np.full((60, 180, 3), 255, np.uint8)
    picture[:, 60:120] = 0
    labels = merge_superpixels(Image.fromarray(picture), 3)
    assert len({int(labels[30, x]) for x in (20, 90, 160)}) == 3
    assert len(np.unique(kmeans_colour(Image.fromarray(picture), 2))) == 2
