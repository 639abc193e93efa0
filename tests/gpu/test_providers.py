"""Every provider that executes on a GPU, on the embedded model. scripts/gpu_check measures them at full size."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.arrays import to_host
from diffseg.engines import example_images, open_bundle
from diffseg.engines.bundle import bundle
from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork
from diffseg.engines.tensorrt.build import engine_version
from diffseg.engines.tensorrt.execute import NativeNetwork
from diffseg.engines.tensorrt.lookup import Machine, find_plan
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.measure.compare import compare_providers

from tests.models import copy_models

NATIVE = ("tensorrt", "tensorrt-rtx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A copy of the embedded bundle, which is its own for this run: plans go there, and other files to a new cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "MODELS", copy_models(tmp_path_factory.mktemp("models") / "models"))
        patch.setenv("DIFFSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_bundle("tiny")


@pytest.fixture(params=["cuda", *NATIVE])
def provider(request, tiny):
    """A provider, with its plan where it needs one."""
    if request.param in NATIVE:
        if engine_version(request.param) is None:
            pytest.skip(f"{request.param} is not installed")
        build_plan(tiny, request.param)
    else:
        ort = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            pytest.skip("onnxruntime-gpu is not installed")
    return request.param


def test_a_provider_agrees_with_the_cpu(tiny, provider):
    comparison = compare_providers(tiny, provider, example_images()[:2])
    assert comparison.passed, comparison.first_difference


def test_batches_and_threads_change_nothing(tiny, provider):
    segmenter = Segmenter.load("tiny", provider=provider, batch=3)
    images = example_images()
    one_by_one = [segmenter(image).labels for image in images]
    for found, expected in zip(segmenter(images), one_by_one, strict=True):
        assert (found.labels == expected).mean() > 0.99
    with ThreadPoolExecutor(3) as threads:
        for found, expected in zip(threads.map(segmenter, images), one_by_one, strict=True):
            np.testing.assert_array_equal(found.labels, expected)


def test_the_attention_stays_on_the_gpu(tiny, provider):
    cupy = pytest.importorskip("cupy")
    segmenter = Segmenter.load("tiny", provider=provider)
    kept = segmenter(example_images()[0], keep_attention=True)
    assert isinstance(kept.attention.values, cupy.ndarray)
    before = to_host(kept.attention.values).copy()
    segmenter(example_images()[1])
    np.testing.assert_array_equal(to_host(kept.attention.values), before)
    np.testing.assert_array_equal(kept.resegment().labels, kept.labels)


def test_onnxruntime_executes_the_network_on_the_gpu(tiny):
    """Node placement as ONNX Runtime reports it, and CUDA graphs against single launches."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    images = np.random.default_rng(0).integers(0, 256, (3, 512, 512, 3), np.uint8)
    outputs = {}
    for capture in (False, True):
        network = OrtGpuNetwork(tiny, "cuda", capture=capture)
        for graph in ("vae_encoder", "unet"):
            assert network.placement[graph]["CUDAExecutionProvider"] > network.placement[graph].get(
                "CPUExecutionProvider", 0
            )
        for count in (1, 3, 1):  # 3 is padded to 4; the last pass replays
            with network.session() as session:
                outputs[capture] = [to_host(a).copy() for a in session.attend(session.encode(images[:count]))]
                session.wait()
        if pytest.importorskip("cupy"):
            assert network.capture == capture  # capturing did not fail
    for alone, replayed in zip(outputs[False], outputs[True], strict=True):
        np.testing.assert_allclose(replayed, alone, atol=1e-3)


@pytest.mark.parametrize("engine", NATIVE)
def test_a_captured_graph_gives_what_single_launches_give(tiny, gpu, engine):
    version = engine_version(engine)
    if version is None:
        pytest.skip(f"{engine} is not installed")
    build_plan(tiny, engine)
    plan = find_plan(tiny, engine, Machine(version, gpu))
    images = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), np.uint8)
    outputs = {}
    for capture in (False, True):
        network = NativeNetwork(tiny, plan, capture=capture)
        for count in (1, 2, 1):  # the second and third pass replay, and share the scratch memory
            with network.session() as session:
                latent = session.encode(images[:count])
                outputs[capture] = [to_host(a).copy() for a in session.attend(latent)]
                session.wait()
        assert network.capture == capture  # capturing did not fail
    for alone, replayed in zip(outputs[False], outputs[True], strict=True):
        np.testing.assert_allclose(replayed, alone, atol=1e-6)
