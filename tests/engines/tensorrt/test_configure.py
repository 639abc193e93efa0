"""The builder's configuration, and the interpretation of its errors and layers, without a build."""

import dataclasses
import logging
import sys
from types import SimpleNamespace

import pytest
from diffseg.engines.errors import PlanError
from diffseg.engines.machine import Gpu, Gpus
from diffseg.engines.tensorrt import build, pipeline
from diffseg.engines.tensorrt.build import read_layers, specific_error
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.engines.tensorrt.plan import BuildOptions, PlanSpec, Target
from diffseg.engines.tensorrt.precision import EngineLayers
from msgspec.structs import replace

L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, 58, "13.0")


@pytest.fixture
def spec(fake_bundle):
    return PlanSpec(
        engine="tensorrt-rtx",
        version="1.7.1.116",
        target=Target(("8.9",), None, None, "linux", "x86_64"),
        options=BuildOptions(),
        precision="fp16",
        content={name: fake_bundle.content_hash(name) for name in fake_bundle.manifest.graphs},
        profiles={name: graph.tensors.profile() for name, graph in fake_bundle.manifest.graphs.items()},
    )


@pytest.fixture
def flags():
    """Flags that a real configuration has after ours."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    log = build.make_logger(trt)
    builder = trt.Builder(log)

    def flags(spec):
        config = builder.create_builder_config()
        build._configure(trt, config, spec)
        return {name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)}

    return flags


def test_tf32_is_off_for_fp32_bundles_only(spec, flags):
    assert "TF32" not in flags(replace(spec, precision="fp32"))
    assert "TF32" in flags(spec)


def test_a_tensorrt_rtx_engine_allocates_nothing_at_run_time(spec, flags):
    assert "REQUIRE_USER_ALLOCATION" in flags(spec)
    assert "REQUIRE_USER_ALLOCATION" not in flags(replace(spec, engine="tensorrt"))


def test_the_check_of_a_version_compatible_plan_allows_its_host_code(spec, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build', whose signatures the double takes")
    pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
    from tests.engines.doubles.device import Machine
    from tests.engines.doubles.tensorrt import HOST_CODE, make_tensorrt
    from tests.engines.toy import make_toy

    path = tmp_path / "unet.plan"
    path.write_bytes(HOST_CODE + make_toy(tmp_path / "toy").graph_path("unet").read_bytes())
    module = make_tensorrt(Machine(), rtx=False)
    native = replace(spec, engine="tensorrt", options=BuildOptions(version_compatible=True))
    assert read_layers(module, native, path) == EngineLayers({"matmul": {"float16": 1}}, 4321)
    with pytest.raises(PlanError, match="cannot load what it built: host code is not allowed"):
        read_layers(module, replace(native, options=BuildOptions()), path)


@pytest.fixture
def built(fake_bundle, monkeypatch):
    """A build whose engines say that they have the given layers."""

    def built(layers):
        module = SimpleNamespace(__version__="11.3.0.99")
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(pipeline, "build_graph", lambda *_: memoryview(b"plan"))
        monkeypatch.setattr(pipeline, "read_layers", lambda *_: EngineLayers(layers))
        bundle = dataclasses.replace(fake_bundle, manifest=replace(fake_bundle.manifest, precision="fp16"))
        return build_plan(bundle, "tensorrt", gpus=Gpus((L4,)))

    return built


def test_a_plan_with_some_layers_in_another_precision_is_kept_with_a_warning(built, caplog):
    with caplog.at_level(logging.WARNING):
        plan = built({"convolution": {"float16": 9}, "matmul": {"float16": 5, "float32": 1}})
    assert "1 in float32 of 15 convolutions and matrix products, though the graph is fp16; the plan was kept" in (
        caplog.text
    )
    assert plan.read("unet") == b"plan"


def test_a_plan_that_computes_in_fp32_throughout_is_refused(built):
    with pytest.raises(PlanError, match="14 in float32 of 14 .*; the plan was not kept"):
        built({"convolution": {"float32": 9}, "matmul": {"float32": 5}})


TOLD = {
    "": [],
    "Error Code 1: Cuda Runtime (no kernel image is available for execution on the device)": [
        "Error Code 1: Cuda Runtime (no kernel image is available for execution on the device)",
        "Error Code 4: Internal Error (Engine deserialization failed.)",
    ],
    "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)": [
        "Skipping tactic 0x3e8 due to insufficient memory on requested size",
        "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)",
        "Error Code 10: Internal Error (Could not find any implementation for node conv)",
        "Engine build failed",
    ],
    "In node 7 (importFoo): UNSUPPORTED_NODE: Assertion failed: no importer for Foo": [
        "In node 7 (importFoo): UNSUPPORTED_NODE: Assertion failed: no importer for Foo",
        "Failed to parse the model",
    ],
    "something else": ["something else"],
}


@pytest.mark.parametrize("cause", TOLD)
def test_the_error_that_names_a_cause_is_reported(cause):
    errors = TOLD[cause]
    expected = cause or "it gave no reason"
    more = len(errors) - 1
    if more > 0:
        expected += f" (and {more} more error{'s' if more > 1 else ''})"
    assert specific_error(errors) == expected
