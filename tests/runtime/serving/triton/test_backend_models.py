"""The Python models without Triton: their inputs and outputs."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from diffseg import Segmenter, masks
from diffseg.cancellation import StoppedError, checkpoint
from diffseg.engines.errors import MissingPackageError
from diffseg.image import fit_image, read_image
from diffseg.placement import Placement
from diffseg.serving.http.kserve import Inference, write_inference
from diffseg.serving.protocol.masks import to_json
from diffseg.serving.protocol.tensors import MODEL, OUTPUTS
from diffseg.serving.triton import backend_models as models
from diffseg.serving.triton.backend_models import (
    MergeModel,
    Refused,
    Request,
    ResizeModel,
    SegmentModel,
    load_model,
    pack,
    unpack,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.doubles import LendingNetwork
from tests.runtime.serving.samples import blocks, encoded


@pytest.fixture
def fake_segmenter(fake_bundle):
    return Segmenter(fake_bundle, LendingNetwork(), batch=4)


class Chain:
    """Head, network and tail in a row, as an ensemble runs them."""

    def __init__(self, bundle, limit=4):
        self.resize, self.merge = ResizeModel(bundle.manifest, limit), MergeModel(bundle.manifest, limit)
        self.manifest, self.network = bundle.manifest, LendingNetwork()

    def __call__(self, requests):
        answers = []
        for request, fitted in zip(requests, self.resize(requests), strict=True):
            if isinstance(fitted, Refused):
                answers.append(fitted)
                continue
            with self.network.session() as session:
                maps = [output.copy() for output in session.attend(session.encode(fitted["pixels"]))]
            attention = {output.name: found for output, found in zip(self.manifest.attention, maps, strict=True)}
            answers += self.merge([replace(request, tensors=fitted | attention)])
        return answers


@pytest.fixture(params=["whole", "ensemble"])
def model(request, fake_bundle, fake_segmenter):
    return SegmentModel(fake_segmenter) if request.param == "whole" else Chain(fake_bundle)


def images_of(photo, count):
    return np.stack([np.roll(photo, 40 * i, 1) for i in range(count)])


def results_of(model, segmenter, images, threshold, *, fit="stretch", **options):
    """What a segmenter gives; for an ensemble, without the details of the image that its last model does not get."""
    prepared = [segmenter.prepare(image, segmenter.settings.updated(threshold, **options), fit=fit) for image in images]
    assert all((image.guide is not None) == (options["refine"] == "colour") for image in prepared)
    return segmenter.finish([replace(p, guide=None) if isinstance(model, Chain) else p for p in prepared])


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("refine", ["none", "kmeans", "colour"])
def test_masks_are_those_of_the_segmenter(model, fake_segmenter, photo, fit, refine):
    batch = images_of(photo, 2)
    expected = results_of(model, fake_segmenter, batch, 0.3, anchors=4, refine=refine, fit=fit)
    (found,) = model([Request({"image": batch}, {"threshold": 0.3, "anchors": 4, "refine": refine, "fit": fit})])
    assert found["labels"].dtype == np.uint16
    np.testing.assert_array_equal(found["labels"], [result.labels for result in expected])
    assert found["segments"].shape == (2, 1)
    for text, result in zip(found["segments"].ravel(), expected, strict=True):
        document, mine = json.loads(text), json.loads(json.dumps(to_json(result)))
        assert document["segments"] == mine["segments"]
        assert document["settings"] == mine["settings"]


@pytest.mark.parametrize("tau", [0.6, "0.6"])
def test_the_method_is_a_parameter(model, fake_segmenter, photo, tau):
    batch = images_of(photo, 2)
    expected = fake_segmenter(list(batch), method="cut", tau=0.6)
    (found,) = model([Request({"image": batch}, {"method": "cut", "tau": tau})])
    np.testing.assert_array_equal(found["labels"], [result.labels for result in expected])
    for parameters in ({"tau": "much"}, {"tau": True}, {"method": "diffcut"}):
        (refused,) = model([Request({"image": batch}, parameters)])
        assert next(iter(parameters)) in refused.reason


def test_shapes_are_those_of_our_own_endpoint(model, fake_segmenter, photo):
    batch = images_of(photo, 2)
    (found,) = model([Request({"image": batch})])
    wanted = dict.fromkeys(("labels", "segments"), False)
    body, _ = write_inference(Inference("", list(batch), {}, wanted), fake_segmenter(list(batch)))
    answered = {output["name"]: output["shape"] for output in json.loads(body)["outputs"]}
    assert {name: list(array.shape) for name, array in found.items()} == answered
    for output in OUTPUTS:
        shape = answered[output["name"]]
        assert [n if m > 0 else m for n, m in zip(shape, output["shape"], strict=True)] == output["shape"]


class Client:
    """Asks a Python model, in the words of Triton's client."""

    def __init__(self, model):
        self.model = model

    def infer(self, name, inputs, parameters):
        assert name == MODEL
        (self.found,) = self.model([Request({tensor.name: tensor.data for tensor in inputs}, parameters)])
        return self

    def as_numpy(self, name):
        return self.found[name]


class Input:
    def __init__(self, name, shape, datatype):
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, array):
        assert (array.shape, self.datatype) == (self.shape, "UINT8")
        self.data = array


def test_the_documentation_s_client(model, fake_segmenter, photo, tmp_path, monkeypatch):
    """Without a Triton; test_served.py asks a real one, and test_kserve.py `diffseg serve`."""
    http = SimpleNamespace(InferenceServerClient=lambda _: Client(model), InferInput=Input)
    monkeypatch.setitem(sys.modules, "tritonclient", SimpleNamespace(http=http))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    (tmp_path / "photo.jpg").write_bytes(encoded(photo, "JPEG"))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    found = {}
    exec(compile(code, "triton.md", "exec"), found)  # noqa: S102
    (expected,) = results_of(model, fake_segmenter, ["photo.jpg"], 0.5, refine="colour")
    np.testing.assert_array_equal(found["labels"], expected.labels)
    assert [s["area"] for s in found["segments"]] == [s.area for s in expected.segments]


def test_requests_of_one_batch_have_their_own_settings(model, fake_segmenter, photo):
    requests = [
        Request({"image": photo[None]}, {"threshold": 0.05}),
        Request({"image": photo[None, :60]}, {"threshold": -1}),
        Request({"image": images_of(photo[:, :77], 2)}, {"threshold": "2,1.5,0.5", "anchors": "3"}),
        Request({"image": photo[None]}),
    ]
    first, refused, second, default = model(requests)
    assert refused == Refused("threshold must be a number of at least 0, or one per round, found [-1.0, -1.0, -1.0]")
    np.testing.assert_array_equal(first["labels"][0], fake_segmenter(photo, 0.05).labels)
    rounds = fake_segmenter(list(images_of(photo[:, :77], 2)), (2, 1.5, 0.5), anchors=3)
    np.testing.assert_array_equal(second["labels"], [result.labels for result in rounds])
    np.testing.assert_array_equal(default["labels"][0], fake_segmenter(photo).labels)
    assert (first["labels"] != default["labels"]).any()


def test_encoded_images(model, fake_segmenter, photo):
    data = np.array([[encoded(photo)], [encoded(photo[:, ::-1])]], dtype=object)
    (found,) = model([Request({"encoded": data})])
    expected = fake_segmenter([photo, photo[:, ::-1]])
    np.testing.assert_array_equal(found["labels"], [result.labels for result in expected])


def test_encoded_images_of_several_sizes(model, photo):
    data = np.array([[encoded(photo)], [encoded(photo[:50])]], dtype=object)
    both, segments = model([Request({"encoded": data}), Request({"encoded": data}, wanted={"segments"})])
    assert "no common labels" in both.reason
    assert [json.loads(text)["height"] for text in segments["segments"].ravel()] == [120, 50]
    assert set(segments) == {"segments"}


WRONG = [
    ({}, {}, "there must be one input, image or encoded, found 0"),
    ({"image": 1, "encoded": 1}, {}, "found 2"),
    ({"encoded": b""}, {}, "not an image in one of the formats"),
    ({"encoded": b"GIF89a"}, {}, "not an image in one of the formats"),
    ({"encoded": b"BM" + bytes(60)}, {}, "image cannot be opened: its header is damaged"),
    ({"encoded": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, {}, "not an image in one of the formats"),
    ({"image": 1}, {"colour": 1}, "unknown parameter 'colour'; the parameters are threshold, anchors, refine, fit"),
    ({"image": 1}, {"threshold": "low"}, "as in '1,0.8', found 'low'"),
    ({"image": 1}, {"threshold": "nan"}, "threshold must be"),
    ({"image": 1}, {"threshold": "inf"}, "finite"),
    ({"image": 1}, {"threshold": ",".join("1" * 9)}, "at most 8 rounds"),
    ({"image": 1}, {"anchors": 2.5}, "whole number"),
    ({"image": 1}, {"anchors": "many"}, "whole number"),
    ({"image": 1}, {"anchors": 0}, "at least 1"),
    ({"image": 1}, {"fit": "cover"}, "fit must be one of stretch, crop, pad, found 'cover'"),
    ({"image": 1}, {"refine": "edges"}, "refine must be one of"),
]


@pytest.mark.parametrize(("tensors", "parameters", "message"), WRONG)
def test_what_is_refused(model, photo, tensors, parameters, message):
    values = {"image": photo[None]} if "image" in tensors else {}
    if "encoded" in tensors:
        values["encoded"] = np.array([[tensors["encoded"]]], dtype=object)
    (answer,) = model([Request(values, parameters)])
    assert message in answer.reason
    assert "\n" not in answer.reason


def test_too_many_pixels(model, photo, monkeypatch):
    monkeypatch.setattr(models, "MOST_PIXELS", 120 * 200 - 1)
    for tensors in ({"image": photo[None]}, {"encoded": np.array([[encoded(photo)]], dtype=object)}):
        (answer,) = model([Request(tensors)])
        assert "200 × 120; scale the image down" in answer.reason


def test_a_truncated_image(model, photo):
    (answer,) = model([Request({"encoded": np.array([[encoded(photo)[:200]]], dtype=object)})])
    assert "cannot be decoded" in answer.reason


def test_a_graph_without_a_batch_axis(fake_bundle, photo):
    (found,) = Chain(fake_bundle, limit=0)([Request({"image": photo[None]})])
    assert found["segments"].shape == (1, 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(["stretch", "crop", "pad"]))
def test_a_placement_comes_back(height, width, fit):
    _, placement = fit_image(Image.new("RGB", (width, height)), (64, 96), fit)
    assert unpack(pack(placement), (64, 96)) == placement


def test_a_placement_is_of_one_dtype():
    whole = pack(Placement((64, 64), (64, 64), 0, 0, 64, 64))
    assert whole.dtype == np.float64


def test_models_are_loaded_by_their_configuration(tmp_path, fake_bundle):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").write_text(fake_bundle.manifest.to_json(), encoding="utf-8")
    for kind, made in (("resize", ResizeModel), ("merge", MergeModel)):
        config = {"max_batch_size": 3, "parameters": {"model": {"string_value": kind}}}
        arguments = {"model_repository": str(tmp_path), "model_version": "1", "model_config": json.dumps(config)}
        arguments |= {"model_instance_kind": "CPU", "model_instance_device_id": "0"}
        loaded = load_model(arguments)
        assert isinstance(loaded, made)
        assert loaded.limit == 3
        assert loaded.manifest == fake_bundle.manifest


def test_merging_on_a_gpu_needs_cupy(fake_bundle):
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match="pip install"):
            MergeModel(fake_bundle.manifest, 4, gpu=0)


def test_the_head_reads_a_picture_as_the_segmenter_does(fake_bundle, photo):
    (found,) = ResizeModel(fake_bundle.manifest, 4)([Request({"image": photo[None]}, {"fit": "pad"})])
    pixels, placement = fit_image(read_image(photo), (64, 64), "pad")
    np.testing.assert_array_equal(found["pixels"][0], pixels)
    np.testing.assert_array_equal(found["placement"][0], pack(placement))


def test_one_bad_request_fails_alone(model, photo, monkeypatch):
    good = Request({"image": photo[None]})
    bad = [
        Request({"image": photo[None]}, {"anchors": "9" * 5000}),
        Request({"image": photo[None]}, {"anchors": 10**4000}),
        Request({"image": photo[None]}, {"threshold": "9" * 5000}),
        Request({"image": photo[None]}, {"refine": []}),
        Request({"image": photo.ravel()}),
        Request({"image": photo}),
        Request({"encoded": np.array([[1]], dtype=object)}),
    ]
    answers = model([good, *bad, good])
    assert all(isinstance(answer, Refused) and "\n" not in answer.reason for answer in answers[1:-1])
    for answer in (answers[0], answers[-1]):
        assert answer["labels"].shape == (1, *photo.shape[:2])


def test_a_request_that_cannot_be_read_fails_alone(monkeypatch):
    def array(name, data):
        return SimpleNamespace(name=name, is_cpu=lambda: True, as_numpy=lambda: data)

    backend = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error),
        Tensor=lambda name, data: (name, data),
    )
    backend.TritonError = type("TritonError", (str,), {"INVALID_ARG": 1, "__new__": lambda c, s, _: str.__new__(c, s)})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "diffseg.serving.triton.model", raising=False)
    from diffseg.serving.triton.model import TritonPythonModel

    monkeypatch.delitem(sys.modules, "diffseg.serving.triton.model")
    instance = TritonPythonModel()
    instance.inputs, instance.name = ["image"], "diffseg"

    def request(parameters):
        return SimpleNamespace(
            tensors={"image": array("image", np.zeros(3))},
            parameters=lambda: parameters,
            requested_output_names=lambda: ["labels"],
            is_cancelled=lambda: False,
        )

    instance.model = lambda requests: [{"labels": request.tensors["image"]} for request in requests]
    assert instance.read(request("{}")).cancelled() is False
    answers = instance.execute(
        [request("{}"), request("[" * 100_000), request('{"anchors": ' + "9" * 5000 + "}"), request("")]
    )
    assert [answer.error is None for answer in answers] == [True, False, False, True]
    assert all(len(answer.error) < 200 for answer in answers[1:3])


@pytest.fixture
def endless(monkeypatch):
    """Colour refinement that never ends, except at a checkpoint; how often it was stopped."""
    counts = SimpleNamespace(stopped=0)

    def refine(labels, pixels):
        try:
            while True:
                checkpoint()
                sum(range(1000))
        except StoppedError:
            counts.stopped += 1
            raise

    monkeypatch.setitem(masks.PIXEL_REFINEMENTS, "colour", refine)
    return counts


def test_masks_that_take_too_long_are_stopped_and_others_of_the_batch_are_made(model, photo, endless, monkeypatch):
    monkeypatch.setattr(models, "LEAST_MASKING", 0.2)
    plain, costly = Request({"image": photo[None]}), Request({"image": images_of(photo, 2)}, {"refine": "colour"})
    first, refused, last = model([plain, costly, plain])
    assert refused.reason.startswith("the masks of this image take more than 0.2 s with these settings; use fewer")
    assert 1 <= endless.stopped <= 2  # the images of a refused request need no masks
    for answer in (first, last):
        assert answer["labels"].shape == (1, *photo.shape[:2])


def test_masks_of_a_cancelled_request_are_stopped(model, photo, endless):
    asked = iter([False, False, True])
    (refused,) = model([Request({"image": photo[None]}, {"refine": "colour"}, cancelled=lambda: next(asked))])
    assert refused == Refused("the request was cancelled")
    assert endless.stopped == 1
    (answer,) = model([Request({"image": photo[None]}, cancelled=lambda: False)])
    assert answer["labels"].shape == (1, *photo.shape[:2])


def test_masks_may_take_as_long_as_the_network(fake_bundle, photo, endless, monkeypatch):
    """Or in an ensemble, some times as long as the aggregation, which no settings change."""
    monkeypatch.setattr(models, "LEAST_MASKING", 0.01)
    whole = SegmentModel(Segmenter(fake_bundle, LendingNetwork(seconds=0.5), batch=4))
    for _ in range(2):
        whole([Request({"image": photo[None]})])
    (refused,) = whole([Request({"image": photo[None]}, {"refine": "colour"})])
    assert "more than 0.2 s" in refused.reason  # a moving average of 0.5 s
    monkeypatch.setattr(models, "AGGREGATIONS", 0.3 / 1e-9)
    monkeypatch.setattr(models, "stage", lambda timings, name: nullcontext(timings.update({name: 1e-9})))
    (refused,) = Chain(fake_bundle)([Request({"image": photo[None]}, {"refine": "colour"})])
    assert "more than 0.3 s" in refused.reason
