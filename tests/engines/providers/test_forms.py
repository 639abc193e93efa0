"""The form `queries_keys` in every GPU provider, on doubles whose kernels NumPy computes: its maps are the CPU's."""

import gc
import logging
import sys

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build', whose signatures the double takes")
pytest.importorskip("onnxruntime", reason="needs the extra 'cpu'")
pytest.importorskip("cupy", reason="needs CuPy, whose signatures the double takes")
pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS, UNET
from diffseg.engines.errors import PlanError, ProviderError
from diffseg.engines.kernels import launch
from diffseg.engines.kernels.twin import averaged_attention as twin
from diffseg.engines.machine import Gpu, Gpus
from diffseg.engines.providers import select
from diffseg.engines.providers.forms import VARIABLE, Averaging, choose_forms, form_to_build, storage_type
from diffseg.engines.providers.onnxruntime import OrtNetwork, load_session
from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork
from diffseg.engines.tensorrt.execute import NativeNetwork
from msgspec.structs import replace

from tests.engines.doubles.cupy import make_cupy
from tests.engines.doubles.device import Machine
from tests.engines.doubles.onnxruntime import GpuOnnxRuntime
from tests.engines.doubles.plans import put_plan
from tests.engines.doubles.tensorrt import STRIPPED, make_tensorrt
from tests.engines.formed import make_formed
from tests.engines.toy import make_toy
from tests.networks import attend, encode

NATIVE = ("tensorrt", "tensorrt-rtx")
ORT = ("cuda", "ort-tensorrt")
DTYPES = ("float32", "float16")
SIZES = (1, 2, 1, 4, 3, 2, 4, 1)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    launch._load.cache_clear()
    yield
    launch._load.cache_clear()


@pytest.fixture(params=DTYPES)
def bundle(request, tmp_path):
    return make_formed(tmp_path / "toy", request.param)


@pytest.fixture
def images():
    return np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), np.uint8)


@pytest.fixture
def expected(bundle, images):
    """What the CPU gives for each image, of both resolutions."""
    network = OrtNetwork(bundle, threads=1)
    maps = attend(network, encode(network, images))
    assert np.abs(maps[0] - maps[0].swapaxes(-1, -2)).max() > 1e-3  # else queries and keys could be exchanged
    return maps


@pytest.fixture
def load(monkeypatch, bundle):
    """Load the bundle into a provider on doubles."""

    def load(provider, *, devices=(0,), capability="89", prefix=b"", form=QUERIES_KEYS, **options):
        machine = Machine(count=len(devices))
        monkeypatch.setitem(sys.modules, "cupy", make_cupy(machine, capability=capability))
        if provider in ORT:
            GpuOnnxRuntime(machine).install(monkeypatch)
            return OrtGpuNetwork(bundle, provider, devices=devices, **options), machine
        rtx = provider == "tensorrt-rtx"
        monkeypatch.setitem(sys.modules, provider.replace("-", "_"), make_tensorrt(machine, rtx=rtx))
        plan = put_plan(bundle, provider, prefix, form, strip_weights=bool(prefix))
        return NativeNetwork(bundle, plan, devices=devices, **options), machine

    return load


def segment(network, images):
    with network.session() as session:
        outputs = session.attend(session.encode(images))
        session.wait()
        return [output.get() for output in outputs]


def check(found, expected, rows):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("provider", [*NATIVE, *ORT])
def test_the_maps_are_those_of_the_cpu(load, images, expected, provider, capture):
    network, machine = load(provider, capture=capture)
    assert network.form == QUERIES_KEYS
    for count in SIZES:  # sizes come again after the buffers have grown
        check(segment(network, images[:count]), expected, slice(count))
    assert network.capture == (capture and provider != "ort-tensorrt")
    if provider in NATIVE:
        assert any(kind == "replay" for kind, _ in machine.events) == capture


@pytest.mark.parametrize("provider", NATIVE)
def test_a_replay_includes_the_kernels_and_allocates_nothing(load, images, expected, provider):
    network, machine = load(provider)
    segment(network, images[:2])
    machine.events.clear()
    check(segment(network, images[2:]), expected, slice(2, 4))
    kinds = [kind for kind, _ in machine.events]
    assert kinds.count("replay") == 2
    assert not {"allocate", "execute", "begin", "launch", "load"} & set(kinds)


@pytest.mark.parametrize("provider", [*NATIVE, *ORT])
def test_batch_sizes_share_maps_whose_addresses_stay(load, images, provider):
    network, machine = load(provider)
    for count in network.sizes_to_warm(4):
        segment(network, images[:count])
    machine.events.clear()
    addresses = set()
    for count in SIZES:
        with network.session() as session:
            outputs = session.attend(session.encode(images[:count]))
            session.wait()
            addresses.add(tuple(output.data.ptr for output in outputs))
    assert len(addresses) == 1
    assert "allocate" not in {kind for kind, _ in machine.events}
    gc.collect()
    assert [block.size for block in machine.blocks.values()].count(4 * 64 * 64 * 4) == 1


@pytest.mark.parametrize("provider", [*NATIVE, *ORT])
def test_kernels_are_loaded_onto_every_device_before_the_first_image(load, images, expected, provider):
    network, machine = load(provider, devices=(0, 1))
    assert [kind for kind, _ in machine.events].count("load") == 2 * 2 * 2  # devices, kernels, widths
    machine.events.clear()
    with network.session(), network.session() as other:
        found = other.attend(other.encode(images[:2]))
        other.wait()
        check([output.get() for output in found], expected, slice(2))
    assert "load" not in {kind for kind, _ in machine.events}


@pytest.mark.parametrize("provider", NATIVE)
def test_a_stripped_plan_takes_the_weights_of_its_form(load, images, expected, provider):
    network, _ = load(provider, prefix=STRIPPED)
    check(segment(network, images[:3]), expected, slice(3))


@pytest.mark.parametrize("provider", ORT)
@pytest.mark.parametrize(
    ("capability", "reason"), [("53", "this GPU has compute capability 5.3"), ("89", f"{VARIABLE} asks for it")]
)
def test_a_device_without_kernels_takes_the_attention_with_a_word(
    load, images, expected, caplog, monkeypatch, provider, capability, reason
):
    if capability == "89":
        monkeypatch.setenv(VARIABLE, ATTENTION)
    with caplog.at_level(logging.INFO):
        network, machine = load(provider, capability=capability)
    assert network.form == ATTENTION
    assert "the UNet's form is attention: " in caplog.text
    assert reason in caplog.text
    check(segment(network, images[:3]), expected, slice(3))
    assert "launch" not in {kind for kind, _ in machine.events}


@pytest.mark.parametrize("provider", NATIVE)
def test_a_native_plan_of_the_form_needs_kernels(load, provider):
    with pytest.raises(ProviderError, match=r"this GPU has compute capability 5\.3; the kernels of the averaged"):
        load(provider, capability="53")


@pytest.mark.parametrize("provider", NATIVE)
def test_a_native_plan_of_the_attention_is_executed_as_before(load, images, expected, provider):
    network, machine = load(provider, form=ATTENTION)
    assert network.form == ATTENTION
    check(segment(network, images[:3]), expected, slice(3))
    assert not {"load", "launch"} & {kind for kind, _ in machine.events}


def choose(monkeypatch, bundle, capability="89"):
    double = make_cupy(Machine(), capability=capability) if capability else None
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", double)
        return choose_forms(bundle, (0,))


def test_what_chooses_the_form(monkeypatch, bundle, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert choose(monkeypatch, bundle) == (QUERIES_KEYS, ATTENTION)
    launch._load.cache_clear()
    assert choose(monkeypatch, bundle, None) == (ATTENTION,)
    assert "cupy cannot be imported" in caplog.text
    assert choose(monkeypatch, make_toy(tmp_path / "plain")) == (ATTENTION,)
    assert "the bundle has no queries_keys; export it again" in caplog.text
    assert choose(monkeypatch, make_formed(tmp_path / "narrow", widths=(16, 4))) == (ATTENTION,)
    assert "heads are 4 wide; the kernels take multiples of 8" in caplog.text


def test_a_form_that_is_asked_for_is_taken_or_refused(monkeypatch, bundle):
    monkeypatch.setenv(VARIABLE, QUERIES_KEYS)
    assert choose(monkeypatch, bundle) == (QUERIES_KEYS,)
    launch._load.cache_clear()
    with pytest.raises(ProviderError, match=f"{VARIABLE} asks for queries_keys, but this GPU has compute cap"):
        choose(monkeypatch, bundle, "53")
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ProviderError, match=f"{VARIABLE} must be attention or queries_keys, found 'fast'"):
        choose(monkeypatch, bundle)


def test_the_form_to_build_has_kernels_on_all_of_the_gpus(bundle, tmp_path):
    assert form_to_build(bundle, ("8.6", "12.0")) == QUERIES_KEYS
    assert form_to_build(bundle, ("8.6", "5.3")) == ATTENTION
    assert form_to_build(make_formed(tmp_path / "wide", widths=(168, 8)), ("8.9",)) == ATTENTION
    assert form_to_build(make_toy(tmp_path / "plain"), ("8.9",)) == ATTENTION


def test_the_buffers_are_the_maps_and_one_sum_per_row(bundle):
    averaging = Averaging.of(bundle)
    assert [(t.name, t.shape(3)) for t in averaging.buffers] == [
        ("attention_8", (3, 64, 64)),
        ("attention_4", (3, 16, 16)),
        ("queries_8_sums", (3, 2, 64)),
        ("queries_4_sums", (3, 2, 16)),
    ]
    narrow = replace(averaging.queries[0], dtype="bfloat16")
    assert storage_type(narrow) == "uint16"
    assert storage_type(averaging.averaged[0]) == "float32"


def test_the_twin_gives_the_maps_of_the_cpu(bundle, images, expected):
    """So that the double's kernels, and the toy's two forms, are what the twin says."""
    network = OrtNetwork(bundle, threads=1)
    latent = encode(network, images)
    outputs = load_session(bundle.graph_path(UNET, QUERIES_KEYS)).run(None, {"latent": latent})
    check([twin(q, k) for q, k in zip(outputs[::2], outputs[1::2], strict=True)], expected, slice(4))


@pytest.fixture
def native(monkeypatch, bundle):
    """Load the bundle as on a machine with an L4, with the plans that it has."""

    def native(*forms, capability="8.9"):
        digits = capability.replace(".", "")
        machine = Machine()
        monkeypatch.setitem(sys.modules, "cupy", make_cupy(machine, capability=digits))
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_tensorrt(machine))
        l4 = Gpu("NVIDIA L4", "8.9", 24 << 30, 58, "13.0")
        monkeypatch.setattr(select, "find_gpus", lambda: Gpus((l4,)))
        for form in forms:
            put_plan(bundle, form=form)
        return select.load_network(bundle, "tensorrt-rtx")

    return native


def test_the_plan_of_the_faster_form_is_taken(native):
    assert native(ATTENTION, QUERIES_KEYS).form == QUERIES_KEYS


def test_a_plan_of_the_slower_form_is_taken_with_a_word(native, caplog):
    with caplog.at_level(logging.INFO):
        assert native(ATTENTION).form == ATTENTION
    assert "the plan has the slower form attention of the UNet; build one of queries_keys: diffseg build" in caplog.text


def test_the_variable_chooses_among_plans(native, monkeypatch):
    monkeypatch.setenv(VARIABLE, ATTENTION)
    assert native(ATTENTION, QUERIES_KEYS).form == ATTENTION


def test_without_kernels_the_plan_to_build_is_named(native):
    with pytest.raises(PlanError, match=r"has the form queries_keys, and attention is wanted here; .*--form attention"):
        native(QUERIES_KEYS, capability="5.3")
