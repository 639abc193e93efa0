"""Served by a real Triton, and asked by Triton's own client: the masks are the segmenter's.

This server has the Python backend alone. For the ensemble, `scripts/release/triton_backend/model.py` takes the place of
ONNX Runtime's backend: it runs the repository's model.onnx, under the configuration as it was written.
"""

import json
import shutil
import sys

import numpy as np
import pytest
from diffseg.engines.examples import example_images
from diffseg.image import read_image
from diffseg.serving.triton.config import RepositoryOptions
from diffseg.serving.triton.platforms import Platform
from diffseg.serving.triton.repository import write_repository

from scripts.release.triton_server import Triton
from tests.runtime.serving.samples import blocks, encoded

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["python", "onnxruntime"])
def served(request, tiny, tmp_path_factory, triton_here):
    """A client of `tiny` on a real server."""
    folder = tmp_path_factory.mktemp(request.param)
    provider = "cpu" if request.param == "python" else None
    write_repository(
        tiny, folder / "repository", RepositoryOptions(Platform(request.param), batch=2, provider=provider)
    )
    with Triton(folder / "repository", folder) as server:
        client = triton_here.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4, network_timeout=300)
        yield triton_here, client, server
        client.close()


@pytest.fixture(scope="module")
def pictures():
    return [np.asarray(read_image(path)) for path in example_images()[:2]]


def image_tensor(http, batch):
    tensor = http.InferInput("image", batch.shape, "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(batch))
    return tensor


def test_every_model_is_up(served):
    _, client, _ = served
    models = client.get_model_repository_index()
    assert {model["state"] for model in models} == {"READY"}
    assert client.is_model_ready("diffseg", "1")
    assert {tensor["name"]: tensor["datatype"] for tensor in client.get_model_metadata("diffseg")["inputs"]} == {
        "image": "UINT8",
        "encoded": "BYTES",
    }


def test_masks_are_those_of_the_segmenter(served, segmenter, pictures):
    http, client, _ = served
    batch = np.stack([pictures[0], pictures[0][:, ::-1]])
    result = client.infer("diffseg", [image_tensor(http, batch)])
    expected = segmenter(list(batch))
    labels = result.as_numpy("labels")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, [one.labels for one in expected])
    documents = [json.loads(text) for text in result.as_numpy("segments").ravel()]
    assert [[s["area"] for s in d["segments"]] for d in documents] == [[s.area for s in r.segments] for r in expected]


def test_parameters_and_sizes_of_requests_that_meet(served, segmenter, pictures):
    http, client, _ = served
    asked = [
        (pictures[0][:200], {"threshold": 0.4, "fit": "pad", "refine": "none"}),
        (pictures[1][:, :150], {"threshold": "1,0.5", "anchors": 9, "refine": "kmeans", "fit": "crop"}),
    ]
    waiting = [
        client.async_infer("diffseg", [image_tensor(http, image[None])], parameters=parameters)
        for image, parameters in asked
    ]
    for (image, parameters), future in zip(asked, waiting, strict=True):
        threshold = (1, 0.5) if parameters["threshold"] == "1,0.5" else parameters["threshold"]
        settings = {name: parameters.get(name) for name in ("anchors", "refine")}
        expected = segmenter(image, threshold, fit=parameters["fit"], **settings)
        np.testing.assert_array_equal(future.get_result().as_numpy("labels")[0], expected.labels)


def test_encoded_images(served, segmenter, pictures):
    http, client, _ = served
    tensor = http.InferInput("encoded", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[encoded(pictures[1])]], dtype=object))
    labels = client.infer("diffseg", [tensor]).as_numpy("labels")
    np.testing.assert_array_equal(labels[0], segmenter(pictures[1]).labels)


def test_errors_reach_the_client(served, pictures):
    http, client, server = served
    from tritonclient.utils import InferenceServerException

    whole = image_tensor(http, pictures[0][None])
    no_image = http.InferInput("encoded", [1, 1], "BYTES")
    no_image.set_data_from_numpy(np.array([[b"no image"]], dtype=object))
    for tensors, parameters, message in (
        ([whole], {"threshold": -1}, "threshold must be a number of at least 0"),
        ([whole], {"fit": "cover"}, "fit must be one of stretch, crop, pad, found 'cover'"),
        ([whole], {"colour": 1}, "unknown parameter 'colour'"),
        ([whole, no_image], {}, "there must be one input"),
        ([no_image], {}, "not an image in one of the formats AVIF, BMP"),
        ([image_tensor(http, np.stack([pictures[0]] * 3))], {}, "batch-size must be <= 2"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer("diffseg", tensors, parameters=parameters)
    assert "Traceback" not in server.text()


def test_the_documentation_s_client(served, segmenter, tmp_path, monkeypatch):
    _, _, server = served
    shutil.copy(example_images()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    found = {}
    exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), "triton.md", "exec"), found)  # noqa: S102
    found["client"].close()
    expected = segmenter("photo.jpg", 0.5, refine="colour")
    np.testing.assert_array_equal(found["labels"], expected.labels)
    assert [s["area"] for s in found["segments"]] == [s.area for s in expected.segments]


def test_a_backend_that_is_missing_is_all_that_is_missing(tiny, tmp_path, triton_here, monkeypatch):
    """Triton takes every configuration; what it lacks is the backend, and with it the ensemble."""
    import scripts.release.triton_server as serving

    make = serving.make_backends

    def only_python(folder, python):
        libraries = make(folder, python)
        (folder / "onnxruntime" / "model.py").unlink()
        (folder / "onnxruntime").rmdir()
        return libraries

    monkeypatch.setattr(serving, "make_backends", only_python)
    write_repository(tiny, tmp_path / "repository", RepositoryOptions(Platform.ONNXRUNTIME, batch=1))
    with Triton(tmp_path / "repository", tmp_path, fails=True) as server:
        text = server.text()
    assert "unable to find backend library for backend 'onnxruntime'" in text
    assert text.count("successfully loaded 'diffseg_resize'") == text.count("successfully loaded 'diffseg_merge'") == 1


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="needs NumPy 2 in the tests' own Python")
def test_zeros_are_not_served(tiny, tmp_path, triton_here):
    """This server reads zeros out of NumPy 2's arrays: the model says so instead of loading."""
    write_repository(tiny, tmp_path / "repository", RepositoryOptions(batch=1, provider="cpu"))
    with Triton(tmp_path / "repository", tmp_path, fails=True, python=sys.executable) as server:
        text = server.text()
    assert f"cannot read arrays of NumPy {np.__version__}, and would return zeros;" in text
    assert "run pip install 'numpy<2'" in text
