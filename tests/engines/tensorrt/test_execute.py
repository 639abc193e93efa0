"""The native providers, really run on doubles of CuPy and TensorRT, in which a wrong call fails."""

import gc
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build', whose signatures the double takes")
pytest.importorskip("cupy", reason="needs CuPy, whose signatures the double takes")
pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
from diffseg.engines.errors import DeviceMemoryError, PlanError, ProviderError
from diffseg.engines.providers.onnxruntime import OrtNetwork
from diffseg.engines.tensorrt.execute import NativeNetwork

from tests.engines.doubles.cupy import make_cupy
from tests.engines.doubles.device import Machine
from tests.engines.doubles.plans import put_plan
from tests.engines.doubles.tensorrt import HOST_CODE, STRIPPED, make_tensorrt
from tests.engines.toy import make_toy
from tests.networks import attend, encode

ENGINES = ("tensorrt", "tensorrt-rtx")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy") / "toy", scale=0.02)


@pytest.fixture
def bundle(tmp_path):
    return make_toy(tmp_path / "toy", scale=0.02)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)


@pytest.fixture
def expected(toy, images):
    """The CPU's results for each image."""
    network = OrtNetwork(toy, threads=1)
    return attend(network, encode(network, images))[0]


@pytest.fixture
def load(monkeypatch, bundle):
    """Load the toy bundle into a network on doubles."""

    def load(engine="tensorrt-rtx", *, machine=None, plan=None, capture=True, devices=(0,), **double):
        machine = machine or Machine(count=len(devices))
        monkeypatch.setitem(sys.modules, "cupy", make_cupy(machine))
        name = engine.replace("-", "_")
        monkeypatch.setitem(sys.modules, name, make_tensorrt(machine, rtx=engine == "tensorrt-rtx", **double))
        plan = plan or put_plan(bundle, engine)
        return NativeNetwork(bundle, plan, capture=capture, devices=devices), machine

    return load


def segment(network, images):
    """One pass, read on the host."""
    with network.session() as session:
        latent = session.encode(images)
        outputs = session.attend(latent)
        session.wait()
        return outputs[0].get()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("capture", [True, False])
def test_the_network_gives_what_the_cpu_gives(load, images, expected, engine, capture):
    network, machine = load(engine, capture=capture)
    for count in (1, 2, 1, 4, 3, 2, 4, 1):  # sizes come again after the scratch memory has grown
        np.testing.assert_array_equal(segment(network, images[:count]), expected[:count])
    assert network.capture == capture
    assert any(kind == "replay" for kind, _ in machine.events) == capture


@pytest.mark.parametrize("engine", ENGINES)
def test_a_replay_allocates_nothing_and_sees_the_new_images(load, images, expected, engine):
    network, machine = load(engine)
    segment(network, images[:2])
    machine.events.clear()
    np.testing.assert_array_equal(segment(network, images[2:]), expected[2:])
    kinds = [kind for kind, _ in machine.events]
    assert kinds.count("replay") == 2
    assert not {"allocate", "execute", "begin"} & set(kinds)


def test_batch_sizes_share_their_buffers(load, images):
    network, machine = load()
    for count in network.sizes_to_warm(4):
        segment(network, images[:count])
    machine.events.clear()
    for count in (1, 2, 3, 4):
        segment(network, images[:count])
    assert {kind for kind, _ in machine.events} == {"replay", "wait"}
    gc.collect()
    outputs = [
        block.size for block in machine.blocks.values() if block.size % (64 * 64 * 4) == 0 and block.size > 50000
    ]
    assert sorted(outputs) == [4 * 64 * 64 * 4]


def test_passes_without_a_wait_between_them_do_not_mix(load, images, expected):
    """The page-locked images of one pass must not be overwritten by the next one before they are copied."""
    network, _ = load()
    with network.session() as session:
        kept = []
        for i in range(3):
            outputs = session.attend(session.encode(images[i : i + 1]))
            kept.append(network.cupy.ascontiguousarray(outputs[0])[...])
            copy = network.cupy.empty(kept[-1].shape, kept[-1].dtype)
            copy[...] = kept[-1]
            kept[-1] = copy
        session.wait()
        for i, copy in enumerate(kept):
            np.testing.assert_array_equal(copy.get()[0], expected[i])


def test_images_and_latents_may_come_from_the_device(load, images, expected):
    network, _ = load()
    with network.session() as session:
        on_device = network.cupy.asarray(images[:2])
        latent = session.encode(on_device)
        other = network.cupy.empty(latent.shape, latent.dtype)
        other[...] = latent
        found = session.attend(other)[0].get()
    np.testing.assert_array_equal(found, expected[:2])


def test_config_and_cache_live_as_long_as_the_context(load, images, expected):
    network, _ = load()
    gc.collect()
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])
    path = network.runtime_cache_path()
    assert path.read_bytes() == b"kernels"
    assert path.name == "runtime-NVIDIA-L4.cache"


def test_threads_wait_for_the_session_of_the_device(load, images, expected):
    network, machine = load()
    segment(network, images[:1])
    inside, most, lock = 0, 0, threading.Lock()

    def work(i):
        nonlocal inside, most
        with network.session() as session:
            with lock:
                inside += 1
                most = max(most, inside)
            outputs = session.attend(session.encode(images[i : i + 1]))
            session.wait()
            found = outputs[0].get()
            with lock:
                inside -= 1
        return found

    with ThreadPoolExecutor(4) as threads:
        for i, found in enumerate(threads.map(work, [0, 1, 2, 3] * 5)):
            np.testing.assert_array_equal(found[0], expected[i % 4])
    assert most == 1
    assert sum(size for kind, size in machine.events if kind == "allocate") < machine.limit


def test_several_devices_work_at_the_same_time(load, images, expected):
    network, _ = load(devices=(0, 1))
    both = threading.Barrier(2, timeout=30)

    def work(i):
        with network.session() as session:
            both.wait()  # passes only if both hold a session
            outputs = session.attend(session.encode(images[i : i + 1]))
            session.wait()
            return session.device, outputs[0].get()

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, [0, 1]))
    assert {device for device, _ in results} == {0, 1}
    for i, (_, found) in enumerate(results):
        np.testing.assert_array_equal(found[0], expected[i])


def test_a_failed_session_is_made_anew(load, images, expected):
    network, _ = load()
    with pytest.raises(RuntimeError), network.session():
        raise RuntimeError
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])


def test_a_full_device_is_a_memory_error(load, images):
    network, machine = load()
    machine.limit = sum(block.size for block in machine.blocks.values()) + 1000
    with pytest.raises(DeviceMemoryError, match="no room on the GPU for a batch of 4"):
        segment(network, images)


def test_a_plan_that_cannot_be_captured_uses_the_engine_s_own_graphs(load, images, expected, caplog):
    network, machine = load(capturable=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            np.testing.assert_array_equal(segment(network, images[:2]), expected[:2])
    assert not network.capture
    assert network.whole_graph
    assert "captures CUDA graphs itself; build the plan again" in caplog.text
    assert not any(kind == "begin" for kind, _ in machine.events)
    with network.session() as session:
        strategies = {ready.settings.cuda_graph_strategy.name for ready in session._ready.values()}
    assert strategies == {"WHOLE_GRAPH_CAPTURE"}


def test_a_plan_that_cannot_run_here_fails_when_it_is_loaded(load):
    with pytest.raises(ProviderError, match="cannot execute vae_encoder: no kernel image is available") as caught:
        load(contexts=False)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_valid_here_is_refused_before_it_is_read(load):
    with pytest.raises(
        PlanError, match="says that .* cannot run here .unsupported cc, old cuda driver.; build it again"
    ):
        load(validity="INVALID")


def test_a_plan_that_is_slower_here_is_used_with_a_word(load, images, expected, caplog):
    with caplog.at_level(logging.WARNING):
        network, _ = load(validity="SUBOPTIMAL")
    assert "runs slower on this GPU" in caplog.text
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])


def test_a_version_compatible_plan_is_allowed_its_host_code(load, bundle, images, expected):
    plan = put_plan(bundle, "tensorrt", HOST_CODE, version_compatible=True)
    network, _ = load("tensorrt", plan=plan)
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])


def test_host_code_is_not_allowed_to_other_plans(load, bundle):
    plan = put_plan(bundle, "tensorrt", HOST_CODE)
    with pytest.raises(PlanError, match=r"tensorrt refuses .*vae_encoder.plan: host code is not allowed"):
        load("tensorrt", plan=plan)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stripped_plan_takes_its_weights_from_the_graph(load, bundle, images, expected, engine):
    plan = put_plan(bundle, engine, STRIPPED, strip_weights=True)
    network, _ = load(engine, plan=plan)
    np.testing.assert_array_equal(segment(network, images[:1]), expected[:1])


def test_a_plan_of_another_graph_is_refused(load, bundle):
    plan = put_plan(bundle)
    plan.path("unet").write_bytes(plan.path("vae_encoder").read_bytes())
    record = plan.record.files
    record["unet"] = record["vae_encoder"]
    with pytest.raises(PlanError, match=r"has tensors \['image', 'latent'\], the manifest says"):
        load(plan=plan)


def test_the_real_runtime_says_what_is_wrong_with_a_plan():
    """It needs no GPU for that."""
    import tensorrt_rtx as trt
    from diffseg.engines.tensorrt.build import make_logger

    log = make_logger(trt)
    validity, diagnostics = trt.Runtime(log).get_engine_validity(b"no plan" * 1000)
    assert validity == trt.EngineValidity.INVALID
    assert int(diagnostics) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
