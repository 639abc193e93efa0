"""Formats of a result, read back with the libraries that users read them with."""

import contextlib
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from diffseg.formats.names import FORMATS, parse_formats
from diffseg.labels import place_labels
from diffseg.placement import Placement
from PIL import Image
from pycocotools.coco import COCO

from tests.pictures import pixels

# pycocotools has not followed NumPy 2's __array__
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def result(segmenter):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, (6, 8)).repeat(10, 0).repeat(10, 1).astype(np.uint16)
    labels, segments = place_labels(labels, Placement((60, 80), (60, 80), 0, 0, 60, 80))
    image = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8))
    return replace(segmenter(image), labels=labels, segments=segments, image=image)


def coco(dataset):
    index = COCO()
    index.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def test_masks_are_in_the_order_of_the_segments(result):
    masks = result.masks()
    assert masks.dtype == bool
    for mask, segment in zip(masks, result.segments, strict=True):
        np.testing.assert_array_equal(mask, result.labels == segment.label)


@pytest.mark.parametrize("shape", ["rle", "polygon"])
def test_pycocotools_reads_the_masks(result, shape):
    index = coco(result.to_coco(image_id=7, file_name="a.jpg", shape=shape, tolerance=0))
    assert index.loadImgs([7])[0]["file_name"] == "a.jpg"
    annotations = index.loadAnns(index.getAnnIds(imgIds=[7]))
    assert len({annotation["id"] for annotation in annotations}) == len(result.segments)
    for annotation, mask, segment in zip(annotations, result.masks(), result.segments, strict=True):
        assert annotation["area"] == segment.area
        assert tuple(annotation["bbox"]) == segment.bbox
        read = index.annToMask(annotation).astype(bool)
        if shape == "rle":
            np.testing.assert_array_equal(read, mask)
        else:  # no holes, and half a pixel of rounding at the borders
            assert read[mask].mean() > 0.85


def test_an_unknown_shape_is_refused(result):
    with pytest.raises(ValueError, match="shape must be rle or polygon, found 'box'"):
        result.to_coco(shape="box")


def test_cutouts_are_the_image_within_the_mask(result):
    image = np.asarray(result.image)
    for cutout, mask, segment in zip(result.cutouts(), result.masks(), result.segments, strict=True):
        left, top, width, height = segment.bbox
        box = np.s_[top : top + height, left : left + width]
        read = np.asarray(cutout)
        np.testing.assert_array_equal(read[..., 3] == 255, mask[box])
        np.testing.assert_array_equal(read[mask[box], :3], image[box][mask[box]])


def test_every_format_is_written_and_read_back(result, tmp_path):
    files = {file.name: file for file in result.save(tmp_path, "x", FORMATS, source="x.jpg")}
    assert {p.name for p in tmp_path.iterdir()} == set(files)
    endings = ["labels.png", "overlay.png", "json", "coco.json", "polygons.json", "labelme.json", "svg", "palette.png"]
    cutouts = [f"{segment.label}.png" for segment in result.segments]
    assert set(files) == {f"x.{ending}" for ending in endings + cutouts}
    np.testing.assert_array_equal(pixels(files["x.labels.png"]), result.labels)
    colours = pixels(files["x.labels.png"], "RGB")
    np.testing.assert_array_equal(colours, pixels(files["x.palette.png"]))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == len(result.segments)
    assert len(coco(json.loads(files["x.coco.json"].read_text())).anns) == len(result.segments)
    parts = json.loads(files["x.polygons.json"].read_text())["polygons"]
    shapes = json.loads(files["x.labelme.json"].read_text())
    paths = ET.parse(files["x.svg"]).getroot()  # noqa: S314 - our own file
    assert len(parts) == len(shapes["shapes"]) == len(paths) == len(result.polygons())
    assert (shapes["imagePath"], shapes["imageHeight"], shapes["imageWidth"]) == ("x.jpg", 60, 80)
    record = json.loads(files["x.json"].read_text())
    for segment, mask in zip(record["segments"], result.masks(), strict=True):
        counts = segment["segmentation"]["counts"]
        read = coco({"images": [{"id": 1, "height": 60, "width": 80}], "annotations": []})
        annotation = {"segmentation": {"size": [60, 80], "counts": counts}, "image_id": 1}
        np.testing.assert_array_equal(read.annToMask(annotation), mask)


def test_only_what_was_asked_for_is_written(result, tmp_path):
    assert [file.name for file in result.save(tmp_path, "x", ["svg", "labels"])] == ["x.labels.png", "x.svg"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "jpeg", "labels,tiff"])
def test_unknown_formats_are_refused(text):
    with pytest.raises(ValueError, match="formats must be some of labels, overlay, json"):
        parse_formats(text)


def test_results_are_equal_by_their_labels_and_fit_on_a_line(result):
    same = replace(result, labels=result.labels.copy(), timings={})
    assert result == same
    assert result != replace(result, labels=result.labels + 1)
    assert result != "labels"
    assert repr(result) == f"<Segmentation 80 × 60, {len(result.segments)} segments>"
