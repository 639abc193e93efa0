import numpy as np
import pytest
from diffseg.annotation.label_studio import Labelling, prediction, read_labelling

from tests.runtime.annotation.test_brush import decode

IMAGE = '<Image name="img" value="$photo"/>'


def view(*tags):
    return f"<View>{''.join(tags)}</View>"


def control(kind, *labels, name="c"):
    inside = "".join(f'<Label value="{label}"/>' for label in labels)
    return f'<{kind} name="{name}" toName="img">{inside}</{kind}>'


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([IMAGE, control("BrushLabels", "Cat", "Dog")], Labelling("photo", "img", "c", "brushlabels", "Cat")),
        (
            [control("PolygonLabels", "Cat", "Segment"), IMAGE],
            Labelling("photo", "img", "c", "polygonlabels", "Segment"),
        ),
        ([IMAGE, control("Polygon"), control("Brush", name="b")], Labelling("photo", "img", "b", "brush", None)),
        ([IMAGE, "<!-- a comment -->", control("brushlabels")], Labelling("photo", "img", "c", "brushlabels", None)),
        ([IMAGE, "<Style>.a { b: c }</Style>", view(control("Brush"))], Labelling("photo", "img", "c", "brush", None)),
    ],
)
def test_configurations_are_read(tags, expected):
    assert read_labelling(view(*tags)) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("<View>", "line 1, column 6"),
        (view(IMAGE), "BrushLabels, Brush, PolygonLabels or Polygon"),
        (view(control("BrushLabels", "a")), "for an Image"),
        (view('<Image name="img" value="photo"/>', control("Brush")), "field of the task"),
        (view(IMAGE, '<RectangleLabels name="r" toName="img"/>'), "add one of them"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "declare no entities"),
        (" " * 1_000_001, "1,000,000 characters"),
    ],
)
def test_other_configurations_are_refused(config, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_labelling(config)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def result(segmenter):
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:60], pixels[60:], pixels[30:100, 70:130] = (90, 150, 230), (60, 140, 50), (200, 60, 40)
    return segmenter(pixels)


@pytest.fixture(scope="module")
def scores(result):
    return [0.1 * (i + 1) for i in range(len(result.segments))]


def test_brush_masks(result, scores):
    written = prediction(Labelling("photo", "img", "c", "brushlabels", "Cat"), result, scores, "v1")
    assert written["model_version"] == "v1"
    for item, mask, score in zip(written["result"], result.masks(), scores, strict=True):
        assert item | {"value": None, "id": None} == {
            "id": None,
            "type": "brushlabels",
            "from_name": "c",
            "to_name": "img",
            "original_width": 200,
            "original_height": 120,
            "image_rotation": 0,
            "score": score,
            "value": None,
        }
        assert item["value"]["format"] == "rle"
        assert item["value"]["brushlabels"] == ["Cat"]
        assert np.array_equal(decode(item["value"]["rle"]).reshape(120, 200, 4)[..., 0] == 255, mask)
    assert len({item["id"] for item in written["result"]}) == len(scores)


def test_the_score_of_a_prediction_is_the_mean_over_its_pixels(result, scores):
    written = prediction(Labelling("photo", "img", "c", "brush", None), result, scores, "v1")
    areas = [segment.area for segment in result.segments]
    assert written["score"] == pytest.approx(np.average(scores, weights=areas))
    assert "brush" not in written["result"][0]["value"]


def test_polygons_are_in_percent(result, scores):
    written = prediction(Labelling("photo", "img", "c", "polygonlabels", "Cat"), result, scores, "v1", tolerance=0)
    outlines = result.polygons(0)
    by_label = dict(zip([segment.label for segment in result.segments], scores, strict=True))
    assert len(written["result"]) == len(outlines)
    for item, outline in zip(written["result"], outlines, strict=True):
        assert np.allclose(np.array(item["value"]["points"]) * [2, 1.2], outline.exterior)
        assert item["value"]["closed"] is True
        assert item["value"]["polygonlabels"] == ["Cat"]
        assert item["score"] == by_label[outline.label]
