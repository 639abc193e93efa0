"""Weights that two graphs have in common are stored once."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffseg.engines.kernels.twin import averaged_attention
from diffseg.engines.providers.onnxruntime import load_session
from diffseg.export.recorders import Accumulator, QueriesKeys
from diffseg.export.share import share_weights


def write(path, weights):
    """A graph whose output is x times each weight in turn."""
    value = ir.Value(name="x", shape=ir.Shape([1, 32]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[], name="g", opset_imports={"": 18})
    for name, weight in weights.items():
        constant = ir.tensor(weight, name=name)
        initializer = ir.Value(
            name=name, shape=constant.shape, type=ir.TensorType(constant.dtype), const_value=constant
        )
        graph.register_initializer(initializer)
        result = ir.Value(name=f"{name}_y", shape=ir.Shape([1, 32]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.append(ir.node("MatMul", [value, initializer], outputs=[result]))
        value = result
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def test_equal_weights_are_pointed_at_and_others_stay(tmp_path):
    rng = np.random.default_rng(0)
    first, second, third = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(3))
    source = tmp_path / "a.onnx"
    ir.save(write(source, {"a": first, "b": second}), source, external_data="a.onnx.data")
    model = write(tmp_path / "b.onnx", {"other": second, "new": third})
    assert share_weights(model, source) == ("a.onnx.data",)
    ir.save(model, tmp_path / "b.onnx")
    stored = ir.load(tmp_path / "b.onnx").graph.initializers
    assert isinstance(stored["other"].const_value, ir.ExternalTensor)
    assert not isinstance(stored["new"].const_value, ir.ExternalTensor)
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data", "b.onnx"}
    x = rng.standard_normal((1, 32)).astype(np.float32)
    found = load_session(tmp_path / "b.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ second @ third, rtol=1e-4, atol=1e-4)


def test_nothing_in_common_uses_no_file(tmp_path):
    source = tmp_path / "a.onnx"
    ir.save(write(source, {"a": np.ones((32, 32), np.float32)}), source, external_data="a.onnx.data")
    assert share_weights(write(source, {"a": np.zeros((32, 32), np.float32)}), source) == ()


@pytest.mark.parametrize("upcast", [False, True])
def test_both_recorders_attend_alike(upcast):
    torch.manual_seed(0)
    accumulator, recorder = Accumulator(), QueriesKeys()
    for places in (16, 4, 16):
        query, key, value = torch.randn(3, 2, 3, places, 8)
        results = [r.attend(query, key, value, upcast=upcast) for r in (accumulator, recorder)]
        torch.testing.assert_close(*results)
    assert recorder.heads == accumulator.heads == {16: [3, 3], 4: [3]}
    assert recorder.widths == accumulator.widths == {16: 8, 4: 8}
    outputs = [output.numpy() for output in recorder.results()]
    assert [output.shape for output in outputs] == [(2, 6, 16, 8)] * 2 + [(2, 3, 4, 8)] * 2
    for expected, queries, keys in zip(accumulator.results(), outputs[::2], outputs[1::2], strict=True):
        np.testing.assert_allclose(averaged_attention(queries, keys), expected.numpy(), atol=1e-6)
    recorder.clear()
    assert recorder.results() == ()
