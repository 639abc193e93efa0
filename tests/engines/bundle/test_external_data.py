"""The files that a graph really takes its weights from, compared with those that the manifest lists."""

import shutil

import onnx
import pytest
from diffseg.engines.bundle.bundle import MODELS, Bundle, write_manifest
from diffseg.engines.bundle.external_data import external_data
from onnx import TensorProto, helper


def tensor(name, location):
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        found.external_data.add(key=key, value=value)
    return found


def model(location):
    """A graph that names external data wherever one can."""
    sparse = onnx.SparseTensorProto(values=tensor("v", "sparse.data"), indices=tensor("i", "./indices.data"), dims=[1])
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=tensor("c", "sub/../node.data"))], "inner", [], []
    )
    node = helper.make_node("If", ["a"], ["b"], then_branch=inner, tensors=[tensor("t", "list.data")])
    graph = helper.make_graph([node], "outer", [], [], [tensor("weights", location)], sparse_initializer=[sparse])
    return helper.make_model(graph)


def test_external_data_is_found_wherever_a_graph_names_it(tmp_path):
    (tmp_path / "x.onnx").write_bytes(model("weights.data").SerializeToString())
    names = {"weights.data", "sparse.data", "indices.data", "node.data", "list.data"}
    assert external_data(tmp_path / "x.onnx", "x.onnx") == names
    assert external_data(tmp_path / "x.onnx", "sub/x.onnx") == {f"sub/{name}" for name in names}


@pytest.mark.parametrize("name", ["unet.onnx", "unet.cpu.onnx", "unet.queries_keys.onnx", "vae_encoder.onnx"])
def test_it_agrees_with_the_onnx_package(name):
    path = MODELS / "tiny" / name
    loaded = onnx.load(path, load_external_data=False)
    expected = {e.value for t in loaded.graph.initializer for e in t.external_data if e.key == "location"}
    assert external_data(path, name) == expected


@pytest.mark.parametrize("data", [b"", b"\xff" * 99, b"\x3a\x7f", b"\x07", b"\x39\x00", b"unet.onnx" * 9])
def test_what_is_no_graph_names_nothing(data, tmp_path):
    (tmp_path / "x.onnx").write_bytes(data)
    assert external_data(tmp_path / "x.onnx", "x.onnx") == set()


@pytest.mark.parametrize("location", [".hidden.data", "../elsewhere", "/etc/passwd"])
def test_verify_refuses_weights_that_the_manifest_does_not_list(fake_bundle, location):
    found = model(location)
    found.graph.ClearField("node")
    found.graph.ClearField("sparse_initializer")
    (fake_bundle.folder / "unet.onnx").write_bytes(found.SerializeToString())
    (fake_bundle.folder / ".hidden.data").write_bytes(b"1234")  # not listed, since hidden
    bundle = Bundle(fake_bundle.folder, write_manifest(fake_bundle.folder, fake_bundle.manifest))
    problems = {name: problem for name, problem in bundle.verify() if problem}
    assert set(problems) == {"unet.onnx"}
    assert problems["unet.onnx"].startswith("takes weights from ")
    assert problems["unet.onnx"].endswith(", which the manifest does not list")


def test_a_whole_bundle_is_sound(tmp_path):
    shutil.copytree(MODELS / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("plans"))
    assert [problem for _, problem in Bundle.open(tmp_path / "tiny").verify() if problem] == []
