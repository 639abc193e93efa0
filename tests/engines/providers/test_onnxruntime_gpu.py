"""The providers `cuda` and `ort-tensorrt`, really run on doubles of CuPy and of ONNX Runtime's GPU sessions."""

import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the extra 'cpu'")
pytest.importorskip("cupy", reason="needs CuPy, whose signatures the double takes")
pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
from diffseg.cli.tables import comparison_tables
from diffseg.engines.errors import DeviceMemoryError, ProviderError
from diffseg.engines.packages import install_command
from diffseg.engines.providers import bound_session, onnxruntime_gpu
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork, check_bf16, cuda_options
from diffseg.measure.compare import ProviderComparison
from onnx import TensorProto, helper

from tests.engines.doubles.cupy import make_cupy
from tests.engines.doubles.device import Machine
from tests.engines.doubles.onnxruntime import GpuOnnxRuntime
from tests.engines.toy import make_toy, write
from tests.networks import attend, encode

SIZES = (1, 3, 4, 2, 3, 1, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFSEG_CUDA_OPTIONS", raising=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy") / "toy", scale=0.02)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (4, 64, 64, 3), np.uint8)


@pytest.fixture
def expected(toy, images):
    network = OrtNetwork(toy, threads=1)
    return attend(network, encode(network, images))[0]


@pytest.fixture
def load(monkeypatch, toy):
    """Load the toy bundle into a network on doubles."""

    def load(provider="cuda", *, cupy=True, devices=(0,), machine=None, capture=True, **double):
        machine = machine or Machine(count=max(devices) + 1)
        monkeypatch.setitem(sys.modules, "cupy", make_cupy(machine) if cupy else None)
        runtime = GpuOnnxRuntime(machine, **double)
        runtime.install(monkeypatch)
        return OrtGpuNetwork(toy, provider, devices=devices, capture=capture), runtime

    return load


def segment(network, images):
    with network.session() as session:
        outputs = session.attend(session.encode(images))
        session.wait()
        return outputs[0].get() if hasattr(outputs[0], "get") else outputs[0].copy()


@pytest.mark.parametrize("provider", ["cuda", "ort-tensorrt"])
@pytest.mark.parametrize("cupy", [True, False])
def test_the_network_gives_what_the_cpu_gives(load, images, expected, provider, cupy):
    network, runtime = load(provider, cupy=cupy)
    for count in SIZES:
        np.testing.assert_array_equal(segment(network, images[-count:]), expected[-count:])
    assert network.capture == (provider == "cuda" and cupy)
    assert runtime.opened[0].settings[onnxruntime_gpu.NAMES[provider]]["device_id"] == 0


def test_few_batch_sizes_are_executed(load, images):
    network, runtime = load()
    for count in SIZES:
        segment(network, images[:count])
    assert {shape[0] for session in runtime.opened for shape in session.shapes} == {1, 2, 4}


def test_the_sizes_to_warm_are_those_that_are_executed(load, images):
    network, runtime = load()
    assert [network.sizes_to_warm(batch) for batch in (1, 2, 3, 4)] == [[1], [2, 1], [3, 2, 1], [4, 2, 1]]
    for count in network.sizes_to_warm(3):
        segment(network, images[:count])
    warmed = {shape for session in runtime.opened for shape in session.shapes}
    for count in (1, 2, 3):
        segment(network, images[:count])
    assert {shape for session in runtime.opened for shape in session.shapes} == warmed


def test_images_and_latents_may_come_from_the_device(load, images, expected):
    network, _ = load()
    with network.session() as session:
        latent = session.encode(network.cupy.asarray(images[:3]))
        other = network.cupy.empty(latent.shape, latent.dtype)
        other[...] = latent
        found = session.attend(other)[0].get()
    np.testing.assert_array_equal(found, expected[:3])


def test_graphs_are_captured_by_one_thread_however_many_call(load, images, expected):
    """ONNX Runtime keeps captured graphs per thread: another thread would run, capture and keep them again."""
    network, runtime = load()
    with ThreadPoolExecutor(3) as threads:
        for i, found in enumerate(threads.map(lambda i: segment(network, images[i % 4 : i % 4 + 1]), range(12))):
            np.testing.assert_array_equal(found[0], expected[i % 4])
    assert [len(session.threads) for session in runtime.opened] == [1, 1]


def test_a_session_made_anew_replays_no_graph_of_the_old_one(load, images, expected):
    network, _ = load()
    segment(network, images[:1])
    with pytest.raises(RuntimeError, match="broken"), network.session():
        raise RuntimeError("broken")
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])


def test_batch_sizes_share_their_buffers(load, images, expected):
    network, runtime = load()
    for count in network.sizes_to_warm(4):
        segment(network, images[:count])
    sizes = [block.size for block in runtime.machine.blocks.values()]
    assert sizes.count(4 * 64 * 64 * 4) == 1
    assert max(s for s in sizes if s != 4 * 64 * 64 * 4) == 4 * 64 * 64 * 3
    for count in SIZES:
        np.testing.assert_array_equal(segment(network, images[:count]), expected[:count])
    assert [block.size for block in runtime.machine.blocks.values()] == sizes


def test_several_devices(load, images, expected):
    network, runtime = load(devices=(0, 1))
    with network.session() as one, network.session() as other:
        assert {one.device, other.device} == {0, 1}
    for _ in range(2):
        np.testing.assert_array_equal(segment(network, images[:2]), expected[:2])
    assert [session.settings["CUDAExecutionProvider"]["device_id"] for session in runtime.opened] == [0, 0, 1, 1]


def test_sessions_that_cannot_capture_launch_kernels_one_by_one(load, images, expected, caplog):
    with caplog.at_level(logging.WARNING):
        network, runtime = load(graphs=False)
    assert not network.capture
    assert "cannot use the graph capture feature" in caplog.text
    np.testing.assert_array_equal(segment(network, images[:2]), expected[:2])
    assert {s.settings["CUDAExecutionProvider"]["enable_cuda_graph"] for s in runtime.opened} == {0}


def test_a_capture_that_fails_is_given_up_with_a_word(load, images, expected, caplog):
    network, _ = load(fails="operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(segment(network, images[:2]), expected[:2])
    assert caplog.text.count("kernels are launched one by one") == 1
    assert not network.capture


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("Failed to allocate memory for requested buffer of size 4294967296", DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered", ProviderError),
    ],
)
def test_only_a_full_device_is_a_memory_error(load, images, monkeypatch, text, kind):
    network, runtime = load(capture=False)

    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(runtime.opened[0], "run_with_iobinding", fail)
    with pytest.raises(ProviderError, match="cuda failed in vae_encoder with a batch of 2: ") as caught:
        segment(network, images[:2])
    assert type(caught.value) is kind


def test_a_full_device_is_a_memory_error(load, images):
    network, _ = load(machine=Machine(limit=1000))
    with pytest.raises(DeviceMemoryError, match="with a batch of 4"):
        segment(network, images)


def test_nothing_is_printed(load, capsys):
    load()
    assert capsys.readouterr().out == ""


def test_where_nodes_are_executed_is_read(load, caplog):
    with caplog.at_level(logging.INFO):
        network, _ = load(host={"Cast", "Reshape"})
    assert network.placement["vae_encoder"] == {"CPUExecutionProvider": 2, "CUDAExecutionProvider": 2}
    assert network.placement["unet"]["CUDAExecutionProvider"] >= 3
    assert "vae_encoder.onnx: 2 nodes on CPUExecutionProvider, 2 nodes on CUDAExecutionProvider" in caplog.text


def test_verify_says_where_nodes_are_executed():
    comparison = ProviderComparison(
        "cuda", "fp16", (), {}, {"unet": {"CPUExecutionProvider": 9, "CUDAExecutionProvider": 812}}
    )
    assert list(comparison_tables(comparison))[-1] == (
        "unet: 9 nodes on CPUExecutionProvider, 812 nodes on CUDAExecutionProvider"
    )


def test_computation_on_the_cpu_is_refused(load):
    with pytest.raises(ProviderError, match="leaves 1 Conv of .*vae_encoder.onnx to the CPU, .* in fp32") as caught:
        load(host={"Conv"})
    assert "\n" not in str(caught.value)


def test_options_fit_the_precision(monkeypatch):
    fp32, fp16 = (cuda_options(precision, 1, capture=True) for precision in ("fp32", "fp16"))
    assert fp32["use_tf32"] == 0
    assert "use_tf32" not in fp16  # 0 would bar tensor cores from every convolution
    assert fp16["prefer_nhwc"] == 1
    assert fp16["cudnn_conv_algo_search"] == "HEURISTIC"
    assert (fp16["device_id"], fp16["enable_cuda_graph"]) == (1, 1)
    monkeypatch.setenv("DIFFSEG_CUDA_OPTIONS", "prefer_nhwc=0, gpu_mem_limit=1000")
    assert cuda_options("fp16", 0, capture=False) == {
        "device_id": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": 0,
        "prefer_nhwc": "0",
        "gpu_mem_limit": "1000",
    }
    monkeypatch.setenv("DIFFSEG_CUDA_OPTIONS", "prefer_nhwc")
    with pytest.raises(ProviderError, match="has the form option=value,option=value; found 'prefer_nhwc'"):
        cuda_options("fp16", 0, capture=False)


def test_options_that_do_not_exist_fail(load, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CUDA_OPTIONS", "use_tf23=1")
    with pytest.raises(ProviderError, match="has no options .'use_tf23'"):
        load()


def test_bf16_bundles_are_refused_for_what_has_no_kernels(toy, tmp_path):
    check_bf16(toy)  # has none of them
    path = tmp_path / "toy" / "vae_encoder.onnx"
    bundle = make_toy(tmp_path / "toy", "bf16")
    node = helper.make_node("Resize", ["cast", "", "scales"], ["same"])
    write(
        path,
        bundle.manifest.graphs["vae_encoder"].tensors,
        [
            helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
            node,
            helper.make_node("Transpose", ["same"], ["pixels"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["pixels", "kernel"], ["latent"], strides=[8, 8]),
        ],
        {"scales": np.ones(4, np.float32), "kernel": np.ones((4, 3, 8, 8), np.float32)},
    )
    with pytest.raises(ProviderError, match="has no bf16 Resize, which .*vae_encoder.onnx has") as caught:
        OrtGpuNetwork(bundle, "cuda")
    assert "--precision fp16" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ort_tensorrt_names_the_tensorrt_that_it_needs(load, monkeypatch):
    monkeypatch.setattr(onnxruntime_gpu, "engine_version", lambda _: "11.4.0.106")
    monkeypatch.setattr("tests.engines.doubles.onnxruntime._Session.get_providers", lambda _: ["CUDAExecutionProvider"])
    with pytest.raises(ProviderError, match=r"needs TensorRT 10 .libnvinfer.so.10., and tensorrt 11.4.0.106 is") as it:
        load("ort-tensorrt")
    assert re.search(re.escape(install_command("ort-tensorrt")), str(it.value))


def test_the_doubles_notice_a_missing_wait(load, images, expected, monkeypatch):
    network, _ = load()
    monkeypatch.setattr(bound_session.OrtGpuSession, "wait", lambda _: None)
    assert not np.array_equal(segment(network, images[:2]), expected[:2])


def test_the_doubles_notice_buffers_that_are_not_kept(load, images, expected, monkeypatch):
    network, _ = load()
    segment(network, images[2:])
    kept = bound_session.OrtGpuSession._buffers

    def forget(self, padded):
        if self._capacity:
            bindings = dict(self._bindings)
            self._grow(self._capacity)
            self._bindings |= bindings
        return kept(self, padded)

    monkeypatch.setattr(bound_session.OrtGpuSession, "_buffers", forget)
    with pytest.raises((ProviderError, AssertionError), match="are not allocated: freed|not equal"):
        np.testing.assert_array_equal(segment(network, images[:2]), expected[:2])


def test_the_doubles_notice_graphs_with_one_name_for_two_sessions(load, images, monkeypatch):
    network, _ = load()
    segment(network, images[:1])
    network.serial = iter([0, 0, 0])
    with pytest.raises(RuntimeError, match="broken"), network.session():
        raise RuntimeError("broken")
    monkeypatch.setattr(bound_session.logger, "warning", lambda *_: pytest.fail("noticed"))
    with pytest.raises(pytest.fail.Exception, match="noticed"):
        segment(network, images[:1])


@pytest.mark.parametrize("wrong", [("gpu", np.uint8), ("cuda", np.float32), ("cpu", np.uint8)])
def test_the_doubles_notice_a_wrong_binding(load, images, monkeypatch, wrong):
    network, runtime = load()
    real = runtime.opened[0].io_binding

    def io_binding():
        binding = real()
        bind = binding.bind_input
        binding.bind_input = lambda name, _, device, __, shape, address: bind(
            name, wrong[0], device, wrong[1], shape, address
        )
        return binding

    monkeypatch.setattr(runtime.opened[0], "io_binding", io_binding)
    with pytest.raises(ProviderError, match="was bound|memory of the host"):
        segment(network, images[:1])
