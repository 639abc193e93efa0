"""The Open Inference Protocol, with requests of Triton's own client and hand-written requests."""

import base64
import json

import numpy as np
import pytest

from tests.runtime.serving.samples import blocks, encoded

URL = "/v2/models/diffseg/infer"


@pytest.fixture
def triton(serve):
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    server = serve()
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield http, client, server
    client.close()


def images_of(photo, count=3):
    return np.stack([np.roll(photo, 40 * i, 1) for i in range(count)])


def test_triton_s_client_sees_a_server(triton):
    _, client, server = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("diffseg")
    assert client.is_model_ready("diffseg", "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("diffseg")
    assert {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]} == {
        "image": "UINT8",
        "encoded": "BYTES",
    }
    assert metadata["parameters"]["bundle"] == "fake"
    assert server.ask("GET", "/v2").json()["name"] == "diffseg"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_batch_of_arrays(triton, photo, binary_in, binary_out):
    http, client, server = triton
    batch = images_of(photo)
    expected = server.service.segmenter(list(batch), threshold=0.3, anchors=4)
    tensor = http.InferInput("image", batch.shape, "UINT8")
    tensor.set_data_from_numpy(batch, binary_data=binary_in)
    outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("labels", "segments")]
    result = client.infer(
        "diffseg", [tensor], outputs=outputs, request_id="7", parameters={"threshold": 0.3, "anchors": 4}
    )
    assert result.get_response()["id"] == "7"
    labels = result.as_numpy("labels")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, [r.labels for r in expected])
    documents = [json.loads(text) for text in result.as_numpy("segments").ravel()]
    assert [[s["area"] for s in d["segments"]] for d in documents] == [[s.area for s in r.segments] for r in expected]


def test_encoded_images_of_several_sizes(triton, photo):
    http, client, _ = triton
    pictures = [photo, photo[:50], photo[:, :77]]
    tensor = http.InferInput("encoded", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([encoded(p) for p in pictures], dtype=object))
    only = [http.InferRequestedOutput("segments", binary_data=True)]
    segments = client.infer("diffseg", [tensor], outputs=only).as_numpy("segments")
    assert segments.shape == (3, 1)
    documents = [json.loads(text) for text in segments.ravel()]
    assert [(d["height"], d["width"]) for d in documents] == [p.shape[:2] for p in pictures]
    with pytest.raises(Exception, match="no common labels"):
        client.infer("diffseg", [tensor])


def test_the_documentation_s_client(triton, photo, tmp_path, monkeypatch):
    _, _, server = triton
    (tmp_path / "photo.jpg").write_bytes(encoded(photo, "JPEG"))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    found = {}
    exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), "triton.md", "exec"), found)  # noqa: S102
    found["client"].close()
    expected = server.service.segmenter("photo.jpg", 0.5, refine="colour")
    np.testing.assert_array_equal(found["labels"], expected.labels)
    assert [s["area"] for s in found["segments"]] == [s.area for s in expected.segments]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("binary", [True, False])
def test_a_batch_of_encoded_images_as_triton_wants_it_or_flat(triton, photo, shape, binary):
    http, client, server = triton
    metadata = client.get_model_metadata("diffseg")
    tensors = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"] + metadata["outputs"]}
    assert tensors["encoded"] == tensors["segments"] == [-1, 1]
    images = [encoded(photo), encoded(photo[:, ::-1])]
    tensor = http.InferInput("encoded", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(shape))
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "segments")]
    result = client.infer("diffseg", [tensor], outputs=outputs)
    assert result.as_numpy("segments").shape == (2, 1)
    expected = server.service.segmenter([photo, photo[:, ::-1]])
    np.testing.assert_array_equal(result.as_numpy("labels"), [r.labels for r in expected])


def test_encoded_images_by_default(triton, photo):
    http, client, server = triton
    tensor = http.InferInput("encoded", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([encoded(photo)], dtype=object))
    labels = client.infer("diffseg", [tensor], model_version="1").as_numpy("labels")
    np.testing.assert_array_equal(labels[0], server.service.segmenter(photo).labels)
    text = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(encoded(photo)).decode()]}
    answer = server.ask("POST", URL, json.dumps({"inputs": [text], "outputs": [{"name": "labels"}]})).json()
    assert answer["model_name"] == "diffseg"
    np.testing.assert_array_equal(np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"]), labels)


def test_errors_reach_the_client(triton, photo):
    http, client, _ = triton
    from tritonclient.utils import InferenceServerException

    tensor = http.InferInput("image", [1, *photo.shape], "UINT8")
    tensor.set_data_from_numpy(photo[None])
    for arguments, message in (
        ({"model_name": "other"}, "no model 'other'"),
        ({"model_name": "diffseg", "model_version": "2"}, "version '2'"),
        ({"model_name": "diffseg", "parameters": {"threshold": -1}}, "threshold"),
        ({"model_name": "diffseg", "parameters": {"anchors": "many"}}, "anchors"),
        ({"model_name": "diffseg", "parameters": {"fit": "cover"}}, "fit"),
        ({"model_name": "diffseg", "parameters": {"colour": 1}}, "unknown parameter 'colour'"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(inputs=[tensor], **arguments)


PLAIN = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}


@pytest.mark.parametrize(
    ("message", "headers", "error"),
    [
        (b"{", {}, "not JSON"),
        (b"[" * 100_000, {}, "not JSON"),
        ([], {}, "list of 'inputs'"),
        ({"inputs": []}, {}, "one input"),
        ({"inputs": [PLAIN, PLAIN]}, {}, "one input"),
        ({"inputs": [PLAIN | {"name": "pixels"}]}, {}, "the input must be"),
        ({"inputs": [PLAIN | {"datatype": "FP32"}]}, {}, "the input must be"),
        ({"inputs": [PLAIN | {"shape": [1, 3]}]}, {}, "(B, H, W, 3)"),
        ({"inputs": [PLAIN | {"shape": [1, -1, 1, 3]}]}, {}, "positive"),
        ({"inputs": [PLAIN | {"shape": [1, 2**62, 2**62, 3]}]}, {}, "cannot hold"),
        ({"inputs": [PLAIN | {"data": [1, 2, 256]}]}, {}, "0 to 255"),
        ({"inputs": [PLAIN | {"data": [1, 2, 2.5]}]}, {}, "0 to 255"),
        ({"inputs": [PLAIN | {"data": [1, 2, None]}]}, {}, "0 to 255"),
        ({"inputs": [PLAIN | {"data": [[1], [2, 3]]}]}, {}, "one length"),
        ({"inputs": [PLAIN | {"data": "x"}]}, {}, "must be numbers"),
        ({"inputs": [{k: v for k, v in PLAIN.items() if k != "data"}]}, {}, "neither data"),
        ({"inputs": [PLAIN | {"parameters": {"binary_data_size": 9}}]}, {}, "says 9 binary bytes"),
        ({"inputs": [PLAIN], "outputs": [{"name": "masks"}]}, {}, "labels or segments"),
        ({"inputs": [PLAIN], "parameters": [1]}, {}, "must be an object"),
        ({"inputs": [PLAIN], "parameters": {"timeout": -5}}, {}, "microseconds"),
        ({"inputs": [PLAIN], "parameters": {"threshold": "x"}}, {}, "threshold must be a number, or a list"),
        ({"inputs": [PLAIN]}, {"Inference-Header-Content-Length": "99999"}, "the body has"),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["%%"]}]}, {}, "base64"),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [2], "data": ["AAAA"]}]}, {}, "cannot hold"),
        ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}]}, {}, "not an image"),
    ],
)
def test_what_is_no_request_for_inference(serve, message, headers, error):
    body = message if isinstance(message, bytes) else json.dumps(message)
    answer = serve().ask("POST", URL, body, headers)
    assert answer.status == 400
    assert error in answer.error


@pytest.mark.parametrize("tail", [b"\x05\x00\x00\x00abcd", b"\x05\x00", b"\xff\xff\xff\xffabcd"])
def test_binary_strings_that_end_early(serve, tail):
    size = {"binary_data_size": len(tail)}
    head = json.dumps({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "parameters": size}]}).encode()
    answer = serve().ask("POST", URL, head + tail, {"Inference-Header-Content-Length": str(len(head))})
    assert answer.status == 400
    assert "end within" in answer.error


def test_a_batch_larger_than_the_queue(serve, photo):
    batch = images_of(photo, 5)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(batch.shape), "data": batch.ravel().tolist()}
    assert serve(queue=4).ask("POST", URL, json.dumps({"inputs": [tensor]})).status == 503
    assert serve(queue=5).ask("POST", URL, json.dumps({"inputs": [tensor]})).status == 200
