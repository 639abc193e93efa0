"""Selection of providers, and the errors if none can run. Without a GPU, no GPU package is needed."""

import dataclasses
import logging
import re
import sys

import pytest
from diffseg.cli.app import app
from diffseg.engines import example_images
from diffseg.engines.bundle.bundle import open_bundle
from diffseg.engines.bundle.specs import batch_axis
from diffseg.engines.errors import MissingPackageError, PlanError, ProviderError
from diffseg.engines.machine import Gpu, Gpus
from diffseg.engines.packages import install_command
from diffseg.engines.providers import select as providers
from diffseg.engines.providers.cuda import import_cupy
from diffseg.engines.providers.onnxruntime_gpu import OrtGpuNetwork
from diffseg.engines.providers.select import Provider, load_network
from diffseg.engines.tensorrt.build import engine_version
from diffseg.engines.tensorrt.plan import Target
from diffseg.engines.tensorrt.session import chained_tensors
from diffseg.measure import capabilities
from msgspec.structs import replace
from typer.testing import CliRunner

from tests.plans import plan_of

L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, 58, "13.0")
ERRORS = {
    Provider.TENSORRT: MissingPackageError("tensorrt is not there"),
    Provider.TENSORRT_RTX: PlanError("no plan"),
    Provider.CUDA: ProviderError("no driver"),
}


@pytest.fixture
def loaders(monkeypatch):
    """Providers that can't be loaded, by what they raise; the others give their name."""
    failing = dict(ERRORS)

    def load(bundle, provider, threads, devices):
        if provider in failing:
            raise failing[provider]
        return provider

    monkeypatch.setattr(providers, "_load", load)
    return failing


@pytest.mark.parametrize("fails", range(4))
def test_auto_takes_the_fastest_that_runs_and_says_why(fake_bundle, loaders, caplog, fails):
    order = [*ERRORS, Provider.CPU]
    for provider in order[fails:]:
        loaders.pop(provider, None)
    with caplog.at_level(logging.INFO):
        assert load_network(fake_bundle, "auto") is order[fails]
    said = caplog.records[-1].getMessage()
    assert f"took {order[fails].value}" in said
    for provider in order[:fails]:
        assert f"{provider.value}: {ERRORS[provider]}" in said


def test_auto_says_what_the_cpu_lacks_if_nothing_runs(fake_bundle, loaders):
    loaders[Provider.CPU] = MissingPackageError("onnxruntime is not installed")
    with pytest.raises(ProviderError, match="no provider can run bundle 'fake'; cpu: onnxruntime is not installed"):
        load_network(fake_bundle)


def test_a_named_provider_never_becomes_another_one(fake_bundle, loaders):
    for provider, error in ERRORS.items():
        with pytest.raises(type(error), match=str(error)):
            load_network(fake_bundle, provider.value)


@pytest.fixture
def a_gpu(monkeypatch, tmp_path):
    """As on a machine with a GPU, but without anything that could use it."""
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path))
    monkeypatch.setattr(providers, "find_gpus", lambda: Gpus((L4,)))
    for name in ("cupy", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)


def test_what_is_missing_is_named(a_gpu, monkeypatch):
    tiny = open_bundle("tiny")
    hint = {extra: re.escape(install_command(extra)) for extra in ("tensorrt", "gpu", "rtx")}
    with pytest.raises(MissingPackageError, match=f"tensorrt cannot be imported .*{hint['tensorrt']}"):
        load_network(tiny, "tensorrt")
    with pytest.raises(ProviderError, match=f"has no CUDAExecutionProvider, only .*{hint['gpu']}"):
        load_network(tiny, "cuda")
    with pytest.raises(ProviderError, match="has no TensorrtExecutionProvider"):
        load_network(tiny, "ort-tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match=f"tensorrt_rtx cannot be imported .*{hint['rtx']}"):
        load_network(tiny, "tensorrt-rtx")
    assert load_network(tiny, "auto").provider == "cpu"


def test_a_plan_is_missing(a_gpu, models):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    with pytest.raises(
        PlanError, match="has no tensorrt-rtx plan; build one: diffseg build tiny --engine tensorrt-rtx"
    ):
        load_network(open_bundle("tiny"), "tensorrt-rtx")


def test_onnxruntime_that_falls_back_is_an_error(monkeypatch):
    """ONNX Runtime falls back silently if CUDA's libraries are missing; here the CPU provider simulates this."""
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(ProviderError) as caught:
        OrtGpuNetwork(open_bundle("tiny"), "cuda")
    assert "took CPUExecutionProvider" in str(caught.value)
    assert "instead of CUDAExecutionProvider" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_cupy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'cupy-cuda13x\[ctk\]'"):
        import_cupy()


def test_the_latent_is_one_tensor_for_both_graphs():
    graphs = {name: graph.tensors for name, graph in open_bundle("tiny").manifest.graphs.items()}
    tensors = chained_tensors(graphs)
    assert [t.name for t in tensors][:2] == ["image", "latent"]
    assert len({t.name for t in tensors}) == len(tensors) == 2 + len(graphs["unet"].outputs)
    other = replace(graphs["unet"].inputs[0], axes=(batch_axis(9), *graphs["unet"].inputs[0].axes[1:]))
    with pytest.raises(PlanError, match="export the bundle again"):
        chained_tensors(graphs | {"unet": replace(graphs["unet"], inputs=(other,))})


def test_devices_are_those_that_exist(a_gpu, monkeypatch):
    tiny = open_bundle("tiny")
    with pytest.raises(ProviderError, match="there is no GPU 1 here, only GPU 0: choose another --device"):
        load_network(tiny, "cuda", devices=(1,))
    with pytest.raises(ProviderError, match="names each GPU once, found 0, 0"):
        load_network(tiny, "cuda", devices=(0, 0))
    with pytest.raises(ProviderError, match="names NVIDIA GPUs, which provider 'cpu' does not use; omit it"):
        load_network(tiny, "cpu", devices=(0,))
    with pytest.raises(ProviderError, match="no provider can run bundle 'tiny'; cpu: --device names NVIDIA GPUs"):
        load_network(tiny, "auto", devices=(0,))  # the CPU is not what was asked for


def test_gpus_of_two_kinds_need_two_plans(monkeypatch, fake_bundle):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
    version = engine_version("tensorrt-rtx")
    a10 = dataclasses.replace(L4, name="NVIDIA A10", compute_capability="8.6")
    for gpu in (L4, a10):
        target = Target((gpu.compute_capability,), None, None, "linux", "x86_64")
        plan_of(fake_bundle, engine="tensorrt-rtx", version=version, target=target)
    monkeypatch.setattr(providers, "find_gpus", lambda: Gpus((L4, a10)))
    with pytest.raises(PlanError, match=r"the GPUs 0 .NVIDIA L4., 1 .NVIDIA A10. need different tensorrt-rtx plans"):
        load_network(fake_bundle, "tensorrt-rtx", devices=(0, 1))


@pytest.mark.parametrize("command", ["segment", "serve"])
def test_the_commands_name_a_device(monkeypatch, tmp_path, command):
    """Where no GPU is, the CPU does not take its place."""
    monkeypatch.setattr(providers, "find_gpus", lambda: Gpus((), "none in this test"))
    words = [str(example_images()[0]), "-o", str(tmp_path)] if command == "segment" else []
    result = CliRunner().invoke(app, [command, *words, "--device", "0"])
    assert result.exit_code != 0
    said = " ".join((result.output + str(result.exception or "")).split())
    assert "--device names NVIDIA GPUs, which provider 'cpu' does not use; omit it" in said


@pytest.mark.parametrize(
    ("version", "note"), [("11.4.0.106", "needs TensorRT 10: extra 'ort-tensorrt'"), ("10.16.1", "")]
)
def test_info_says_which_tensorrt_onnxruntime_needs(monkeypatch, version, note):
    monkeypatch.setattr(capabilities, "engine_version", lambda _: version)
    monkeypatch.setattr(capabilities, "_has_cupy", lambda: True)
    packages = {"onnxruntime-gpu": capabilities.State("1.31.1", "")}
    state, found = capabilities._provider(Provider.ORT_TENSORRT, packages, Gpus((L4,)))
    assert state == "yes"
    assert found.startswith(note)
    assert (version in found) == bool(note)
    assert capabilities._provider(Provider.CUDA, packages, Gpus((L4,))) == ("yes", "")
