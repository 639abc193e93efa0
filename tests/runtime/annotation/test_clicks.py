"""Clicks and boxes as Label Studio's editor sends them: percent of the image, with the label of the smart tool."""

import numpy as np
import pytest
from diffseg.annotation.clicks import Clicks, answer, clicked_mask, read_clicks
from diffseg.annotation.label_studio import Labelling
from diffseg.annotation.picking import PickableMasks
from diffseg.placement import Placement

from tests.runtime.annotation.test_brush import decode

BRUSH = Labelling("image", "img", "masks", "brushlabels", "Segment")
SIZE = (60, 80)


def drawn(kind, label="Thing", **value):
    """An item of a context, without the fields that are not read."""
    positive = value.pop("is_positive", 1)
    labels = {kind: [label]} if kind.endswith("labels") else {}
    return {"id": "a", "type": kind, "is_positive": positive, "original_width": 80, "value": value | labels}


@pytest.fixture
def masks():
    """Three columns: 0, 1 and 2."""
    labels = np.repeat([0, 1, 2], [20, 30, 30])[None, :].repeat(60, 0).astype(np.uint16)
    shares = np.eye(3, dtype=np.float32)[labels[::15, ::20]]
    return PickableMasks(labels, shares, Placement(SIZE, SIZE, 0, 0, *SIZE))


def test_points_and_boxes_are_read():
    items = [
        drawn("keypointlabels", x=10, y=20, width=0.3),
        drawn("keypointlabels", x=30, y=40, is_positive=0),
        drawn("rectanglelabels", "Other", x=50, y=60, width=10, height=20),
    ]
    clicks = read_clicks({"result": items})
    assert clicks == Clicks(((0.1, 0.2),), ((0.3, 0.4),), ((0.5, 0.6, 0.6, 0.8),), "Other")
    assert read_clicks({"result": [drawn("keypoint", x=1, y=2)]}) == Clicks(((0.01, 0.02),), (), (), None)


@pytest.mark.parametrize("context", [None, {}, {"result": []}, {"result": None}, "text", []])
def test_without_anything_drawn_there_are_no_clicks(context):
    assert read_clicks(context) is None


@pytest.mark.parametrize(
    "items",
    [
        "text",
        ["text"],
        [{"type": "keypoint"}],
        [drawn("brushlabels", format="rle")],
        [drawn("keypoint", x=1)],
        [drawn("keypoint", x="1", y=2)],
        [drawn("keypoint", x=float("nan"), y=2)],
        [drawn("rectangle", x=1, y=2, width=3)],
        [drawn("keypoint", x=1, y=2)] * 1001,
    ],
)
def test_other_contexts_are_refused(items):
    with pytest.raises(ValueError, match="context") as caught:
        read_clicks({"result": items})
    assert "\n" not in str(caught.value)


def test_a_click_picks_a_mask_and_a_negative_one_takes_it_away(masks):
    click, other = drawn("keypointlabels", x=10, y=50), drawn("keypointlabels", x=40, y=50)
    both = clicked_mask(masks, read_clicks({"result": [click, other]}))
    assert np.array_equal(both, masks.labels < 2)
    away = drawn("keypointlabels", x=40, y=50, is_positive=False)
    assert np.array_equal(clicked_mask(masks, read_clicks({"result": [click, away]})), masks.labels == 0)


def test_a_box_picks_masks_without_the_negative_clicks(masks):
    box = drawn("rectanglelabels", x=0, y=0, width=70, height=100)
    assert np.array_equal(clicked_mask(masks, read_clicks({"result": [box]})), masks.labels < 2)
    away = drawn("keypointlabels", x=10, y=10, is_positive=False)
    assert np.array_equal(clicked_mask(masks, read_clicks({"result": [box, away]})), masks.labels == 1)


def test_the_answer_has_the_form_of_the_masks_and_the_label_of_the_tool(masks):
    clicks = read_clicks({"result": [drawn("keypointlabels", x=10, y=50)]})
    mask = clicked_mask(masks, clicks)
    (item,) = answer(BRUSH, mask, clicks, "v")["result"]
    assert (item["type"], item["from_name"], item["to_name"]) == ("brushlabels", "masks", "img")
    assert item["value"]["brushlabels"] == ["Thing"]
    assert np.array_equal(decode(item["value"]["rle"]).reshape(60, 80, 4)[..., 3] == 255, mask)
    polygon = Labelling("image", "img", "masks", "polygonlabels", "Segment")
    (item,) = answer(polygon, mask, Clicks((), (), (), None), "v")["result"]
    assert item["value"]["polygonlabels"] == ["Segment"]
    assert np.array(item["value"]["points"]).max(0).tolist() == [25, 100]


def test_nothing_picked_is_an_empty_answer(masks):
    nothing = np.zeros(SIZE, dtype=bool)
    for kind in ("brush", "polygon"):
        found = answer(Labelling("image", "img", "masks", kind, None), nothing, Clicks((), (), (), None), "v")
        assert found == {"result": [], "model_version": "v"}
