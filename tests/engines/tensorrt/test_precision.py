"""Reading the layers that an engine reports, from reports in the formats of the builders."""

import json

import pytest
from diffseg.engines.tensorrt.precision import EngineLayers, read_inspector, read_program

# The form that TensorRT-RTX 1.7 writes, cut down; the tests of the builder read real ones.
PROGRAM = """header {
  version = 5
  region = { name=devmem_topdown_0 size=1000 alignment=128 instance=0 type=user place=accelerator unified=false }
  region = { name=devmem_topdown_1 size=500 alignment=128 instance=0 type=user place=accelerator unified=false }
  region = { name=hmem_topdown_0 size=128 alignment=128 instance=0 type=user place=host unified=false }
}
descriptors {
  tensor={ alignment=128 dims={ 2 4 3 3 } name="weight" offset=0 rank0=0 type=half }
  tensor={ alignment=128 dims={ "batch" 4 64 64 } name="input" offset=0 rank0=0 type=half }
  tensor={ alignment=128 dims={ "batch" 64 64 } name="matrix" offset=0 rank0=0 type=float }
  tensor={ alignment=128 dims={ 1 } name="alpha" offset=0 rank0=0 type=float }
  tensor={ alignment=128 dims={ 1 } name="size" offset=0 rank0=0 type=int64 }
  sub_tensor={ base="matrix" dims={ 64 64 } name="view" offset=0 rank0=0 strides={ 64 1 } }
}
main {
 label bb1:
  corrltn={ name="conv" output={"x" } input={"input" "weight" "alpha" "alpha" "input" } stream=0 layers="[a]" }
  fully_connected={ name="mm" output={"x" } input={"view" "matrix" "alpha" "alpha" } stream=0 layers="[b]" }
  runtime_fusion={ name=__myl_FcAdd input_args={ "view" "input" "weight" "size" } output_args={ "x" } backbone=gemm }
  runtime_fusion={ name=__myl_Add input_args={ "matrix" "matrix" } output_args={ "x" } backbone=other }
  function={ name=__myl_Cast args={ "input" } }
}
"""


def plan(text):
    data = text.encode()
    return (
        b"ptrt" + b"NLYM no length" + b"x" * 40 + b"NLYM\1\2\3\4" + len(data).to_bytes(8, "little") + data + b"weights"
    )


def test_a_program_tells_kinds_formats_and_memory():
    found = read_program(plan(PROGRAM))
    assert found.counts == {"convolution": {"float16": 1}, "matmul": {"float32": 1, "float16": 1}}
    assert found.activation_bytes == 1500
    assert found.count == 3
    assert found.wrong_precision("fp16") == {"float32": 1}
    assert found.wrong_precision("fp32") == {"float16": 2}
    assert found.wrong_precision("bf16") == {"float32": 1, "float16": 2}


def test_what_the_graph_has_in_another_format_is_meant_so():
    found = EngineLayers({"matmul": {"float16": 9, "float32": 3}, "convolution": {"float16": 2, "float32": 1}})
    assert found.wrong_precision("fp16") == {"float32": 4}
    assert found.wrong_precision("fp16", {"MatMul": {"float32": 2}, "Gemm": {"float32": 1}}) == {"float32": 1}
    assert found.wrong_precision("fp16", {"MatMul": {"float32": 9}, "Conv": {"float32": 1}}) == {}
    assert found.wrong_precision("fp16", {"MatMul": {"float32": 1}, "Softmax": {"float32": 9}}) == {"float32": 3}


@pytest.mark.parametrize(
    "data", [b"", b"NLYM", b"no program", plan("header {\n}\n"), plan("other text"), plan(PROGRAM)[:-300]]
)
def test_where_no_program_is_nothing_is_claimed(data):
    assert read_program(data) is None


def layer(kind, *described):
    return {"Name": kind, "LayerType": kind, "Inputs": list(described), "Outputs": [], "TacticName": "t"}


# Both forms stand in TensorRT's documentation: one field in 10.x, two in 11.x.
OLD = [
    layer("CaskConvolution", {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}),
    layer("CaskConvolution", {"Format/Datatype": "Row major linear FP32"}),
    layer("gemm", {"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}),
    layer("Reformat", {"Format/Datatype": "Float"}),
    layer("kgen", {"Format/Datatype": "Float"}),
]
NEW = [
    layer("CaskConvolution", {"Format": "kHWC8", "DataType": "Half"}),
    layer("CaskConvolution", {"Format": "kLINEAR", "DataType": "Float"}),
    layer("gemm", {"Format": "kLINEAR", "DataType": "Half"}),
    layer("SoftMax", {"Format": "kLINEAR", "DataType": "Float"}),
]


@pytest.mark.parametrize("layers", [OLD, NEW])
def test_an_inspector_tells_kinds_and_formats(layers):
    found = read_inspector(json.dumps({"Layers": layers}), 77)
    assert found == EngineLayers({"convolution": {"float16": 1, "float32": 1}, "matmul": {"float16": 1}}, 77)
    assert found.wrong_precision("fp16") == {"float32": 1}


def test_what_an_inspector_does_not_tell_is_not_held_against_the_engine():
    found = read_inspector(json.dumps({"Layers": [layer("gemm"), layer("gemm", {"Format/Datatype": "N/A"})]}))
    assert found.counts == {"matmul": {"unknown": 2}}
    assert found.wrong_precision("fp16") == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv1", "conv2"]}'])
def test_an_inspector_without_details_claims_nothing(text):
    assert read_inspector(text) is None


def test_an_engine_is_wrong_throughout_only_without_a_right_layer():
    assert EngineLayers({"convolution": {"float32": 3}, "matmul": {"float32": 2}}).wrong_throughout("fp16")
    assert EngineLayers({"convolution": {"float32": 3}, "matmul": {"unknown": 2}}).wrong_throughout("fp16")
    assert not EngineLayers({"convolution": {"float32": 3}, "matmul": {"float16": 1}}).wrong_throughout("fp16")
    assert not EngineLayers({"matmul": {"unknown": 2}}).wrong_throughout("fp16")
