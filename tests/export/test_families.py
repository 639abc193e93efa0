"""Real exports of a small checkpoint of every family, compared with diffusers' own pipeline parts.

The reference here is not our module but diffusers' own attention processor, whose probabilities are recorded.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffseg import Segmenter
from diffseg.engines.agreement import row_cosines
from diffseg.engines.bundle.manifest import QUERIES_KEYS
from diffseg.engines.kernels.twin import averaged_attention
from diffseg.engines.machine import Gpus
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.engines.tensorrt.precision import PRECISIONS
from diffseg.export import ExportSettings, export_bundle, parity
from diffseg.export.checkpoint import load_checkpoint
from diffseg.export.parity import execute, sample_images
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression
from diffusers.models.attention_processor import Attention, AttnProcessor

from tests.networks import attend, encode

CASES = {
    "sd15-fp32": ("sd15", "kl", "fp32", (128, 192), 300),
    "sd21-fp16": ("sd21", "kl", "fp16", (128, 128), 100),
    "bk-sdm-small-fp32": ("bk-sdm-small", "kl", "fp32", (192, 192), 300),
    "bk-sdm-tiny-bf16": ("bk-sdm-tiny", "kl", "bf16", (128, 128), 300),
    "taesd-fp16": ("bk-sdm-tiny", "tiny", "fp16", (128, 128), 300),
}
LAYERS = {"sd15": (5, 5, 5, 1), "sd21": (5, 5, 5, 1), "bk-sdm-small": (3, 3, 3), "bk-sdm-tiny": (3, 3, 3)}
HEADS = {"sd15": (2, 2, 2, 2), "sd21": (1, 2, 4, 4), "bk-sdm-small": (2, 2, 2), "bk-sdm-tiny": (2, 2, 2)}

TYPES = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}


@dataclass
class Case:
    family: str
    precision: str
    size: tuple[int, int]
    bundle: Any
    images: np.ndarray
    latent: np.ndarray
    attention: list[np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def case(request, make_checkpoint, tmp_path_factory):
    family, vae, precision, size, timestep = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(family, folder / "checkpoint", small=True, vae=vae)
    settings = ExportSettings(size, precision, timestep, max_batch=3)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "taesd-fp16":  # the CPU, on which PyTorch computes float16 as such, plays a GPU
            patch.setattr(parity, "find_gpu", lambda: torch.device("cpu"))
        bundle = export_bundle(folder / "checkpoint", folder / "bundle", settings)
    images = sample_images(size, 3)
    return Case(family, precision, size, bundle, images, *stock(folder / "checkpoint", images, timestep))


@torch.no_grad()
def stock(folder, images, timestep):
    """Latent and attention by diffusers alone: posterior mean × scale, and probabilities of its own processor."""
    loaded = load_checkpoint(folder)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    encoded = loaded.vae.encode(pixels)
    latent = (
        encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    ) * loaded.vae.config.scaling_factor
    recorded = {}
    loaded.unet.set_attn_processor(AttnProcessor())
    for name, module in loaded.unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):
            original = module.get_attention_scores

            def record(*arguments, original=original, heads=module.heads):
                scores = original(*arguments)  # (batch·heads, N, N)
                layer = scores.unflatten(0, (-1, heads)).mean(1)
                recorded.setdefault(layer.shape[-1], []).append(layer)
                return scores

            module.get_attention_scores = record
    loaded.unet(latent, timestep, loaded.prompt.expand(len(images), -1, -1))
    return latent.numpy(), [torch.stack(recorded[n]).mean(0).numpy() for n in sorted(recorded, reverse=True)]


def test_the_bundle_agrees_with_diffusers(case):
    network = OrtNetwork(case.bundle)
    latent = encode(network, case.images)
    outputs = attend(network, case.latent)
    assert len(outputs) == len(case.attention)
    if case.precision == "fp32":
        np.testing.assert_allclose(latent, case.latent, atol=1e-4)
        for found, expected in zip(outputs, case.attention, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        return
    rounded = execute(case.bundle.graph_path("unet"), case.latent, case.precision, 3)  # bf16: by arithmetic
    least = {"fp16": 0.999, "bf16": 0.95}[case.precision]
    assert row_cosines(latent.reshape(3, -1), case.latent.reshape(3, -1)).min() > 0.999
    for found, narrow, expected in zip(outputs, rounded, case.attention, strict=True):
        for result in (found, narrow):
            assert np.isfinite(result).all()
            assert np.abs(result.sum(-1) - 1).max() < 1e-3
            assert np.percentile(row_cosines(result, expected), 1) >= least
        errors = [np.abs(result - expected).mean() for result in (found, narrow)]
        assert 0 < errors[0] < errors[1]  # only the weights were rounded, not what is computed from them


def test_queries_and_keys_give_the_attention(case):
    declared = case.bundle.graph("unet", QUERIES_KEYS)
    path = case.bundle.graph_path("unet", QUERIES_KEYS)
    graph = ir.load(path).graph
    for tensor, output in zip(declared.tensors.outputs, graph.outputs, strict=True):
        assert tensor.dtype == PRECISIONS[case.precision]
        assert (output.name, str(output.dtype)) == (tensor.name, TYPES[case.precision])
        assert list(output.shape)[1:] == list(tensor.shape(1))[1:]
    outputs = execute(path, case.latent, case.precision, 3)
    maps = [averaged_attention(q, k) for q, k in zip(outputs[::2], outputs[1::2], strict=True)]
    least = {"fp32": 1 - 1e-6, "fp16": 0.999, "bf16": 0.95}[case.precision]
    for found, expected in zip(maps, case.attention, strict=True):
        if case.precision == "fp32":
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.isfinite(found).all()
        assert np.abs(found.sum(-1) - 1).max() < 1e-5
        assert np.percentile(row_cosines(found, expected), 1) >= least


def test_queries_and_keys_give_the_same_labels(case):
    if case.precision != "fp32":
        pytest.skip("label for label only where nothing is rounded")
    outputs = execute(case.bundle.graph_path("unet", QUERIES_KEYS), case.latent, case.precision, 3)
    maps = [averaged_attention(q, k) for q, k in zip(outputs[::2], outputs[1::2], strict=True)]
    grids = [output.grid for output in case.bundle.manifest.attention]
    averaged = attend(OrtNetwork(case.bundle), case.latent)
    for i in range(len(case.latent)):
        labels = []
        for form in (maps, averaged):
            attention = aggregate_attention([m[i].copy() for m in form], grids=grids)
            labels.append(non_max_suppression(merge_attention(attention, (0.2, 0.2, 0.2)), case.size))
        np.testing.assert_array_equal(*labels)


def test_the_forms_share_their_weights(case):
    form = case.bundle.graph("unet", QUERIES_KEYS)
    assert form.external_data == case.bundle.manifest.graphs["unet"].external_data == ("unet.onnx.data",)
    inline = [
        value.const_value
        for value in ir.load(case.bundle.graph_path("unet", QUERIES_KEYS)).graph.initializers.values()
        if not isinstance(value.const_value, ir.ExternalTensor)
    ]
    assert sum(weight.nbytes for weight in inline) < 1e5
    assert case.bundle.manifest.files[form.file].bytes < 6e5


def test_a_cpu_casts_narrow_weights_as_it_needs_them(case, monkeypatch):
    monkeypatch.setattr("diffseg.engines.providers.onnxruntime.LARGE_WEIGHTS", -1)
    network = OrtNetwork(case.bundle)
    with network.record_operators() as operators:
        attend(network, case.latent[:1])
    order = {operator.name: i for i, operator in enumerate(operators)}
    graph = ir.load(case.bundle.cpu_path("unet")).graph
    casts = [node for node in graph if node.op_type == "Cast"]
    if case.precision == "fp32":
        assert case.bundle.cpu_path("unet") == case.bundle.graph_path("unet")
        assert len(casts) < 10
        return
    assert all(node.inputs[0].dtype != node.outputs[0].dtype for node in casts)
    for cast in casts:
        first = min(order[user.name] for user, _ in cast.outputs[0].uses())
        assert order[cast.name] in range(first - 3, first)  # beside others for the same node
    narrow = case.bundle.manifest.files[case.bundle.manifest.graphs["unet"].external_data[0]].bytes
    assert narrow < 2.1 * case.bundle.manifest.graphs["unet"].parameters
    assert case.bundle.manifest.files["unet.cpu.onnx"].bytes < 0.3 * narrow + 1e6  # the weights are shared
    assert len(casts) > 50


def test_a_map_is_added_up_before_the_next_one_is_made(case, monkeypatch):
    """In ONNX Runtime's own order of execution, where the weights are so large that the graph is executed as it is."""
    monkeypatch.setattr("diffseg.engines.providers.onnxruntime.LARGE_WEIGHTS", -1)
    graph = ir.load(case.bundle.cpu_path("unet")).graph
    node, maps = graph.outputs[0].producer(), []
    while node.op_type in ("Div", "Add"):
        terms = [value.producer() for value in node.inputs if value.producer() is not None]
        maps += [(term.name, node.name) for term in terms if term.op_type not in ("Add", "Div", "Constant")]
        node = next((term for term in terms if term.op_type == "Add"), terms[0])
    maps.reverse()
    assert len(maps) == sum(LAYERS[case.family][:1]) * HEADS[case.family][0]
    network = OrtNetwork(case.bundle)
    with network.record_operators() as operators:
        attend(network, case.latent[:1])
    order = {operator.name: i for i, operator in enumerate(operators)}
    for (_, added), (later, _) in itertools.pairwise(maps[1:]):
        assert order[added] < order[later]


def test_graphs_as_they_are_and_optimised_agree(case, monkeypatch):
    optimised = OrtNetwork(case.bundle)
    monkeypatch.setattr("diffseg.engines.providers.onnxruntime.LARGE_WEIGHTS", -1)
    plain = OrtNetwork(case.bundle)
    np.testing.assert_allclose(encode(plain, case.images), encode(optimised, case.images), atol=1e-4)
    for found, expected in zip(attend(plain, case.latent), attend(optimised, case.latent), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_attention_of_the_case_is_not_trivial(case):
    """If it were uniform, every export would agree with it."""
    for expected in case.attention:
        assert expected.max() * expected.shape[-1] > 1.5
        assert np.percentile(row_cosines(expected[0], expected[2]), 50) < 0.9999


def test_the_manifest_describes_the_graphs(case):
    manifest = case.bundle.manifest
    assert (manifest.image_size, manifest.precision, manifest.max_batch) == (case.size, case.precision, 3)
    assert manifest.source.checkpoint == "checkpoint"
    assert tuple(a.layers for a in manifest.attention) == LAYERS[case.family]
    assert tuple(a.heads for a in manifest.attention) == HEADS[case.family]
    assert [a.grid for a in manifest.attention] == [
        (case.size[0] >> s, case.size[1] >> s) for s in range(3, 3 + len(manifest.attention))
    ]
    assert manifest.attention[0].name == ("attention_16" if case.size == (128, 128) else manifest.attention[0].name)
    unet = manifest.graphs["unet"]
    assert unet.parameters_dropped > 0
    assert unet.flops_dropped > 0
    suffixes = [""] if case.precision == "fp32" else ["", "_cpu"]
    names = ["latent", *(a.name for a in manifest.attention)]
    formed = {f"{name}_{QUERIES_KEYS}" for name in names[1:]}
    whole = {"vae_encoder", "unet"}  # their largest magnitude
    on_gpu = {name for name in manifest.parity if name.endswith("_gpu")}
    assert on_gpu in (set(), {f"{name}_gpu" for name in names})
    assert on_gpu or (case.family, case.precision) != ("bk-sdm-tiny", "fp16")
    measured = {f"{name}{suffix}" for name in names for suffix in suffixes}
    assert set(manifest.parity) - on_gpu == whole | measured | formed
    assert all(0 < manifest.parity[name]["largest_magnitude"] < 65504 for name in whole)
    for graph in manifest.graphs.values():
        assert set(graph.layers["Conv"]) == {PRECISIONS[case.precision]}
        assert graph.activation_bytes > 0
    assert set(unet.layers["Softmax"]) == {"float32"}  # in every precision
    assert manifest.versions["torch"] == torch.__version__
    assert all(problem is None for _, problem in case.bundle.verify())


def test_a_bundle_says_nothing_of_the_machine_that_made_it(case):
    for path in case.bundle.folder.iterdir():
        data = path.read_bytes()
        assert str(case.bundle.folder.parent).encode() not in data
        assert b"site-packages" not in data


def test_tensorrt_rtx_builds_the_bundle(case, tmp_path, monkeypatch):
    """For three kinds of GPU, without one; the engine's own layers are in the bundle's precision."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    capabilities = ("8.6", "8.9", "12.0")
    plan = build_plan(case.bundle, "tensorrt-rtx", compute_capabilities=capabilities, gpus=Gpus((), "in this test"))
    for name, graph in case.bundle.manifest.graphs.items():
        found = plan.record.layers[name]
        assert found.wrong_precision(case.precision, graph.layers) == {}
        assert found.counts["convolution"] == {PRECISIONS[case.precision]: sum(graph.layers["Conv"].values())}
        assert found.activation_bytes > 0
    products = plan.record.layers["unet"].counts["matmul"]
    assert sum(products.values()) > 50
    # Stable Diffusion 2.1 takes the logits of its attention in float32, for fear of overflow.
    assert set(products) == {PRECISIONS[case.precision]} | ({"float32"} if case.family == "sd21" else set())


def test_a_segmenter_runs_the_bundle(case, photo):
    results = Segmenter.load(case.bundle.folder, batch=3)(
        [photo, photo[:, :77], photo[:31]], threshold=0.2, keep_attention=True
    )
    for result, shape in zip(results, ((120, 200), (120, 77), (31, 200)), strict=True):
        assert result.labels.shape == shape
        grid = case.bundle.manifest.attention[0].grid
        assert result.attention.values.shape == grid * 2
        np.testing.assert_allclose(result.attention.values.sum((2, 3)), 1, atol=1e-3)
