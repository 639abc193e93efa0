"""Configurations, parsed with the official proto and compared with the manifest that they are derived from."""

import numpy as np
import pytest
from diffseg.engines.bundle import specs
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.errors import PlanError
from diffseg.serving.protocol.tensors import INPUTS, OUTPUTS
from diffseg.serving.triton.config import RepositoryOptions, model_configs
from diffseg.serving.triton.pbtxt import to_text
from diffseg.serving.triton.platforms import Device, Platform
from msgspec.structs import replace

json_format = pytest.importorskip("google.protobuf.json_format", reason="needs tritonclient[grpc]")
text_format = pytest.importorskip("google.protobuf.text_format", reason="needs tritonclient[grpc]")
proto = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")

ENSEMBLES = (Platform.ONNXRUNTIME, Platform.TENSORRT)
NUMPY = {"TYPE_UINT8": "uint8", "TYPE_FP16": "float16", "TYPE_FP32": "float32"}
PROTOCOL = {"TYPE_UINT8": "UINT8", "TYPE_UINT16": "UINT16", "TYPE_STRING": "BYTES"}


def read(manifest, **options):
    """Parsed configurations by name. The parsed text must equal the intended configuration."""
    models = model_configs(manifest, RepositoryOptions(**options))
    parsed = {name: text_format.Parse(to_text(model), proto.ModelConfig()) for name, model in models.items()}
    for name, model in models.items():
        assert parsed[name] == json_format.ParseDict(model, proto.ModelConfig())
        assert parsed[name].name == name
    return parsed


def kind_of(tensor):
    return proto.DataType.Name(tensor.data_type)


def shape_of(tensor, config):
    """Shape on the wire, with -1 for the batch where there is one."""
    return [-1, *tensor.dims] if config.max_batch_size else list(tensor.dims)


def single(manifest):
    """The manifest of a bundle for single images."""
    graphs = {
        ENCODER: replace(manifest.graphs[ENCODER], tensors=specs.encoder_tensors(manifest.image_size, 4, 1)),
        UNET: replace(manifest.graphs[UNET], tensors=specs.unet_tensors(manifest.image_size, 4, manifest.attention, 1)),
    }
    return replace(manifest, graphs=graphs)


@pytest.mark.parametrize("platform", Platform)
@pytest.mark.parametrize("which", ["tiny", "fake", "single"])
def test_clients_find_the_tensors_of_our_own_endpoint(platform, which, tiny, fake_bundle):
    manifest = {"tiny": tiny.manifest, "fake": fake_bundle.manifest, "single": single(fake_bundle.manifest)}[which]
    config = read(manifest, platform=platform)["diffseg"]
    for found, expected in ((config.input, INPUTS), (config.output, OUTPUTS)):
        assert [(t.name, PROTOCOL[kind_of(t)]) for t in found] == [(t["name"], t["datatype"]) for t in expected]
        for tensor, ours in zip(found, expected, strict=True):
            shape = shape_of(tensor, config)
            if which == "single" and platform in ENSEMBLES:
                assert shape == [1, *ours["shape"][1:]]  # a graph without a batch axis takes one image
            else:
                assert shape == ours["shape"]
    assert all(tensor.optional for tensor in config.input)


@pytest.mark.parametrize("platform", ENSEMBLES)
def test_graphs_are_declared_as_the_manifest_has_them(platform, tiny):
    models = read(tiny.manifest, platform=platform)
    for graph in (ENCODER, UNET):
        config, declared = models[f"diffseg_{graph}"], tiny.manifest.graphs[graph].tensors
        for found, expected in ((config.input, declared.inputs), (config.output, declared.outputs)):
            assert [(t.name, NUMPY[kind_of(t)], (1, *t.dims)) for t in found] == [
                (t.name, t.dtype, t.shape(1)) for t in expected
            ]
        assert config.platform == {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}[platform]
        assert config.max_batch_size == tiny.manifest.max_batch
        assert list(config.dynamic_batching.preferred_batch_size) == [tiny.manifest.max_batch]
        assert config.dynamic_batching.max_queue_delay_microseconds == 4000


@pytest.mark.parametrize("platform", ENSEMBLES)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_the_ensemble_s_pipes_fit(platform, batch, fake_bundle):
    models = read(fake_bundle.manifest, platform=platform, batch=batch)
    ensemble = models["diffseg"]
    known = {tensor.name: (tensor.data_type, tensor.dims) for tensor in ensemble.input}
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [name for name in models if name != "diffseg"]
    for step in steps:
        config = models[step.model_name]
        assert config.max_batch_size == ensemble.max_batch_size == (batch or 4)
        assert list(config.version_policy.specific.versions) == [step.model_version] == [1]
        assert set(step.input_map) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            assert known[step.input_map[tensor.name]] == (tensor.data_type, tensor.dims)
        for tensor in config.output:
            assert step.output_map[tensor.name] not in known
            known[step.output_map[tensor.name]] = (tensor.data_type, tensor.dims)
    assert all(known[tensor.name] == (tensor.data_type, tensor.dims) for tensor in ensemble.output)


@pytest.mark.parametrize("platform", Platform)
@pytest.mark.parametrize("which", ["tiny", "single"])
def test_every_model_is_warmed_up_with_what_it_takes(platform, which, tiny):
    for name, config in read(tiny.manifest if which == "tiny" else single(tiny.manifest), platform=platform).items():
        if config.platform == "ensemble":
            continue
        assert config.model_warmup[0].batch_size == 1, name
        for sample in config.model_warmup:
            assert sample.batch_size <= max(1, config.max_batch_size)
            required = {tensor.name for tensor in config.input if not tensor.optional} or {"image"}
            assert set(sample.inputs) == required
            declared = {tensor.name: tensor for tensor in config.input}
            for tensor, data in sample.inputs.items():
                assert data.data_type == declared[tensor].data_type
                assert len(data.dims) == len(declared[tensor].dims)
                assert all(n > 0 and m in (n, -1) for n, m in zip(data.dims, declared[tensor].dims, strict=True))
                assert np.prod(data.dims) > 1


@pytest.mark.parametrize("platform", Platform)
def test_queues_are_bounded(platform, tiny):
    for config in read(tiny.manifest, platform=platform).values():
        if config.platform != "ensemble":
            policy = config.dynamic_batching.default_queue_policy
            assert policy.timeout_action == proto.ModelQueuePolicy.REJECT
            assert policy.max_queue_size == 64
            assert policy.allow_timeout_override


@pytest.mark.parametrize(
    ("options", "network", "merge"),
    [
        ({"platform": Platform.ONNXRUNTIME}, "KIND_CPU", None),
        ({"platform": Platform.ONNXRUNTIME, "device": Device.GPU}, "KIND_GPU", "no"),
        ({"platform": Platform.TENSORRT}, "KIND_GPU", "no"),
    ],
)
def test_where_an_ensemble_runs(tiny, options, network, merge):
    models = read(tiny.manifest, **options)
    kinds = {
        name: [proto.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group]
        for name, config in models.items()
    }
    assert kinds["diffseg_resize"] == ["KIND_CPU"]
    assert kinds["diffseg_unet"] == kinds["diffseg_vae_encoder"] == kinds["diffseg_merge"] == [network]
    parameters = models["diffseg_merge"].parameters
    assert (parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value or None) == merge


def test_what_python_models_are_told(tiny):
    options = {"provider": "tensorrt-rtx", "environment": "/opt/env"}
    parameters = read(tiny.manifest, **options)["diffseg"].parameters
    assert {name: value.string_value for name, value in parameters.items()} == {
        "model": "segment",
        "provider": "tensorrt-rtx",
        "EXECUTION_ENV_PATH": "/opt/env",
    }
    models = read(tiny.manifest, platform=Platform.ONNXRUNTIME, environment="/opt/env")
    told = {name: config.parameters["EXECUTION_ENV_PATH"].string_value for name, config in models.items()}
    assert {name for name, value in told.items() if value == "/opt/env"} == {"diffseg_resize", "diffseg_merge"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "at least 1"),
        ({"device": Device.GPU}, "choose a provider"),
        ({"platform": Platform.ONNXRUNTIME, "provider": "cpu"}, "leave out the provider"),
        ({"platform": Platform.TENSORRT, "device": Device.CPU}, "runs on a GPU"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        RepositoryOptions(**options)


def test_graphs_that_do_not_fit_each_other(fake_bundle):
    unet = fake_bundle.manifest.graphs[UNET]
    other = replace(unet, tensors=replace(unet.tensors, inputs=(replace(unet.tensors.inputs[0], name="sample"),)))
    manifest = replace(fake_bundle.manifest, graphs=fake_bundle.manifest.graphs | {UNET: other})
    with pytest.raises(PlanError, match="export the bundle again"):
        model_configs(manifest, RepositoryOptions(platform=Platform.ONNXRUNTIME))


def test_shapes_follow_the_declaration():
    """A dynamic axis other than the batch stays dynamic, and a single image keeps its batch axis of 1."""
    batch, width = specs.batch_axis(4), specs.Axis("width", 8, 16, 32)
    tensor = specs.TensorSpec("strip", "float32", (batch, specs.Axis.fixed("height", 3), width))
    assert tensor.triton_shape(batched=True) == [3, -1]
    assert tensor.triton_shape(batched=False) == [1, 3, -1]
