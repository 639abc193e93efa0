"""FiftyOne's own zoo, `Model`, labels and samples, and a data set in its database.

The MongoDB comes from a package in requirements.txt. Where there is none of it, `test_a_dataset` runs with the one that
FiftyOne downloads while it is installed, or is skipped.
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fiftyone as fo
import fiftyone.core.models as fom
import fiftyone.zoo as foz
import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.annotation.fiftyone import DiffSegModel
from diffseg.annotation.scores import mask_scores
from diffseg.engines.errors import ImageError
from diffseg.engines.examples import example_images
from fiftyone.operators import types
from PIL import Image

ROOT = Path(__file__).parents[3]
PATHS = example_images()
MONGO = next(Path(fo.__file__).parent.joinpath("db", "bin").glob("mongod*"), None)


@pytest.fixture(scope="module")
def images():
    found = []
    for path in PATHS:
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.load("tiny", provider="cpu", batch=2)


@pytest.fixture(scope="module")
def model(segmenter):
    return DiffSegModel(segmenter)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty zoo, and the URL of an archive of the source in examples/fiftyone."""
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path / "zoo"))
    shutil.make_archive(str(tmp_path / "served" / "diffseg"), "zip", ROOT / "examples" / "fiftyone")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/diffseg.zip"
        server.shutdown()


def rebuilt(detections, shape):
    """The masks of detections at the size of the image."""
    height, width = shape
    whole = np.zeros((len(detections.detections), height, width), bool)
    for mask, detection in zip(whole, detections.detections, strict=True):
        left, top, box_width, box_height = np.round(np.array(detection.bounding_box) * ([width, height] * 2)).astype(
            int
        )
        mask[top : top + box_height, left : left + box_width] = detection.mask
    return whole


def test_detections_hold_every_mask(model, segmenter, images):
    assert isinstance(model, fom.Model)
    result = segmenter(images[3], keep_attention=True)
    label = model.predict(images[3])
    assert isinstance(label, fo.Detections)
    assert np.array_equal(rebuilt(label, result.labels.shape), result.masks())
    assert {detection.label for detection in label.detections} == {"segment"}
    assert [detection.index for detection in label.detections] == list(range(1, len(result.segments) + 1))
    assert np.allclose([detection.confidence for detection in label.detections], mask_scores(result))


def test_batches_of_several_sizes(model, images):
    together = model.predict_all(images)
    assert len({image.shape for image in images}) > 1
    assert [len(label.detections) for label in together] == [len(model.predict(image).detections) for image in images]


def test_a_segmentation_counts_from_one(segmenter, images):
    result = segmenter(images[0])
    label = DiffSegModel(segmenter, output="segmentation").predict(images[0])
    assert isinstance(label, fo.Segmentation)
    for number, segment in enumerate(result.segments, 1):
        assert np.array_equal(label.mask == number, result.labels == segment.label)


def test_a_threshold_changes_the_masks(segmenter, images):
    fine, coarse = (DiffSegModel(segmenter, threshold=t).predict(images[0]) for t in (0.3, 1.5))
    assert len(fine.detections) > len(coarse.detections)


def test_samples_take_the_labels(model, images):
    sample = fo.Sample(filepath=str(PATHS[1]))
    sample.add_labels(model.predict(images[1]), label_field="masks", confidence_thresh=0.6)
    scores = [detection.confidence for detection in sample["masks"].detections]
    assert 0 < len(scores) < len(model.predict(images[1]).detections)
    assert min(scores) >= 0.6


@pytest.mark.parametrize("wrong", [{"output": "boxes"}, {"threshold": -1}])
def test_wrong_options_are_refused(segmenter, wrong):
    with pytest.raises(ValueError, match="found"):
        DiffSegModel(segmenter, **wrong)


def test_a_damaged_image_is_an_error(model):
    with pytest.raises(ImageError):
        model.predict(np.zeros((4, 4, 7), np.uint8))


def test_the_zoo_loads_the_remote_source(zoo, segmenter, images):
    foz.register_zoo_model_source(zoo)
    assert "diffseg" in foz.list_zoo_models(source=zoo)
    model = foz.load_zoo_model("diffseg", provider="cpu", label="thing")
    assert foz.is_zoo_model_downloaded("diffseg")
    label = model.predict(images[0])
    assert np.array_equal(rebuilt(label, images[0].shape[:2]), segmenter(images[0]).masks())
    assert {detection.label for detection in label.detections} == {"thing"}
    inputs = foz.get_zoo_model("diffseg").resolve_input(None)
    assert isinstance(inputs, types.Property)
    assert {"output", "threshold", "bundle"} <= set(inputs.type.properties)


@pytest.mark.skipif(MONGO is None, reason="no MongoDB for this machine, and FiftyOne could not download one")
def test_a_dataset(model, segmenter):
    dataset = fo.Dataset("diffseg-test", overwrite=True)
    try:
        dataset.add_images([str(path) for path in PATHS])
        dataset.apply_model(model, label_field="masks", batch_size=2)
        dataset.reload()
        for path in PATHS:
            expected = segmenter(path).masks()
            assert np.array_equal(rebuilt(dataset[str(path)]["masks"], expected.shape[1:]), expected)
    finally:
        dataset.delete()
