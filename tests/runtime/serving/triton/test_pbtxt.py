"""Text format, read back by Google's own parser."""

import pytest
from diffseg.serving.triton.pbtxt import Map, Word, to_text
from hypothesis import given
from hypothesis import strategies as st

text_format = pytest.importorskip("google.protobuf.text_format", reason="needs tritonclient[grpc]")
proto = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")


def parse(message):
    return text_format.Parse(to_text(message), proto.ModelConfig())


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_string(text):
    found = parse({"name": text, "parameters": Map({text: {"string_value": text}})})
    assert found.name == text
    assert found.parameters[text].string_value == text


def test_every_kind_of_value():
    found = parse({
        "max_batch_size": 0,
        "input": [{"name": "a", "data_type": Word("TYPE_UINT8"), "dims": [-1, 3], "optional": True}, {"name": "b"}],
        "dynamic_batching": {"preserve_ordering": False, "preferred_batch_size": []},
        "model_warmup": [{"inputs": Map({"x": {"zero_data": True}, "y": {"dims": [2]}})}],
    })  # fmt: skip
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in found.input] == [
        ("a", proto.TYPE_UINT8, [-1, 3]),
        ("b", proto.TYPE_INVALID, []),
    ]
    assert found.input[0].optional
    assert found.HasField("dynamic_batching")
    assert found.model_warmup[0].inputs["x"].zero_data
    assert list(found.model_warmup[0].inputs["y"].dims) == [2]
