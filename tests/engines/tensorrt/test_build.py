"""Real builds by TensorRT-RTX, which need no GPU. Executing the plans does; see tests/gpu."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx-build'")
pytest.importorskip("onnx", reason="needs the extra 'export', for the toy bundle")
from diffseg.cli.app import app
from diffseg.engines.bundle.bundle import Bundle, open_bundle, write_manifest
from diffseg.engines.errors import MissingPackageError, PlanError
from diffseg.engines.machine import Gpu, Gpus
from diffseg.engines.packages import install_command
from diffseg.engines.tensorrt import pipeline as build_module
from diffseg.engines.tensorrt.build import engine_version
from diffseg.engines.tensorrt.lookup import Machine, find_plan, mismatches
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.engines.tensorrt.plan import BuildOptions, Plan
from typer.testing import CliRunner

from tests.engines.formed import make_formed
from tests.engines.toy import make_toy

NO_GPU = Gpus((), "none in this test")
L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, 58, "13.0")
ADA = ("8.6", "8.9", "12.0")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A toy bundle with its plan for three kinds of GPU; not to be altered."""
    bundle = make_toy(tmp_path_factory.mktemp("toy") / "toy")
    steps = []
    plan = build_plan(
        bundle, "tensorrt-rtx", compute_capabilities=ADA, gpus=NO_GPU, report=lambda *step: steps.append(step)
    )
    return bundle, plan, steps


@pytest.fixture
def toy(built, tmp_path):
    """A copy of the toy bundle, with its plan, for a test's own use."""
    shutil.copytree(built[0].folder, tmp_path / "toy")
    return Bundle.open(tmp_path / "toy")


def accelerators(path):
    """The kinds of GPU that the plan itself names."""
    return {found for found in re.findall(rb"accelerators=\{([^}]*)\}", path.read_bytes()) if found != b"*"}


def test_a_plan_is_built_for_the_gpus_that_were_asked(built):
    bundle, plan, _ = built
    assert plan.folder.parent == bundle.folder / "plans"
    assert plan.folder.name == plan.record.spec.key
    assert plan.record.spec.target.compute_capabilities == ADA
    assert Plan.open(plan.folder).record == plan.record
    for graph in ("vae_encoder", "unet"):
        assert accelerators(plan.path(graph)) == {b"sm86 sm89 sm120 "}
        assert plan.read(graph) == plan.path(graph).read_bytes()
        assert plan.record.seconds[graph] > 0


def test_the_engine_s_own_layers_are_recorded(built):
    layers = built[1].record.layers
    assert layers["vae_encoder"].counts == {"convolution": {"float32": 1}}
    assert layers["unet"].counts == {"convolution": {"float32": 1}, "matmul": {"float32": 1}}
    assert all(found.activation_bytes > 0 for found in layers.values())


def test_the_builder_s_progress_is_reported(built):
    steps = built[2]
    assert {graph for graph, *_ in steps} == {"vae_encoder", "unet"}
    assert all(0 <= step <= count for _, _, step, count in steps if count)
    assert any(step == count > 1 for _, _, step, count in steps)


def test_the_plan_fits_the_gpus_it_names_alone(built):
    bundle, plan, _ = built
    here = Machine(plan.record.spec.version, L4, plan.record.spec.target.system, plan.record.spec.target.machine)
    assert find_plan(bundle, "tensorrt-rtx", here) == plan
    turing = replace(here, gpu=replace(L4, compute_capability="7.5"))
    assert len(list(mismatches(plan.record.spec, bundle, turing))) == 1


def test_nothing_else_is_left_behind(built):
    names = {path.name for path in built[1].folder.parent.iterdir()}
    assert names <= {built[1].folder.name, f".{built[1].folder.name}.lock"}
    assert all(problem is None for _, problem in built[0].verify())


def test_a_plan_that_is_there_is_not_built_again(toy):
    start = time.perf_counter()
    plan = build_plan(toy, "tensorrt-rtx", compute_capabilities=reversed(ADA), gpus=NO_GPU)
    assert plan.reused
    assert plan.folder.parent == toy.folder / "plans"
    written = plan.path("unet").stat().st_mtime
    assert written < time.time() - (time.perf_counter() - start)


def test_a_damaged_plan_is_built_again(toy):
    plan = build_plan(toy, "tensorrt-rtx", compute_capabilities=ADA, gpus=NO_GPU)
    plan.path("unet").write_bytes(b"")
    (plan.folder.parent / f".{plan.folder.name}.killed.part").mkdir()
    again = build_plan(toy, "tensorrt-rtx", compute_capabilities=ADA, gpus=NO_GPU)
    assert not again.reused
    assert again.read("unet")
    assert not list(plan.folder.parent.glob("*.part"))


def test_without_a_gpu_and_a_wish_the_plan_is_portable(toy):
    plan = build_plan(toy, "tensorrt-rtx", gpus=NO_GPU)
    assert plan.record.spec.target.compute_capabilities == ()
    assert "portable" in plan.folder.name
    assert accelerators(plan.path("unet")) == {b"sm80 "}


def test_without_a_wish_the_plan_is_for_the_gpu_that_is_here(toy):
    plan = build_plan(toy, "tensorrt-rtx", gpus=Gpus((L4,)), options=BuildOptions(optimization_level=1))
    assert plan.record.spec.target.compute_capabilities == ("8.9",)
    assert plan.record.spec.target.gpu is None  # it runs on any GPU of that capability


REFUSED = {
    "builds for compute capability 7.5, 8.0, 8.6, 8.9, .*; found '9.0'": {"compute_capabilities": ["9.0"]},
    "leave out --version-compatible": {"options": BuildOptions(version_compatible=True)},
    "leave out --hardware-compatibility": {"options": BuildOptions(hardware_compatibility="ampere-plus")},
    "leave out --strip-weights": {"options": BuildOptions(strip_weights=True)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_builder_cannot_do_is_refused_at_once(toy, message):
    with pytest.raises(PlanError, match=message):
        build_plan(toy, "tensorrt-rtx", gpus=NO_GPU, **REFUSED[message])


@pytest.mark.parametrize(
    ("gpus", "message"),
    [(NO_GPU, "this machine has none .none in this test"), (Gpus((L4,)), "for this machine's GPU .NVIDIA L4, 8.9.")],
)
def test_tensorrt_builds_for_the_gpu_that_is_here_alone(toy, monkeypatch, gpus, message):
    # TensorRT itself is not here: what is refused before it is called.
    monkeypatch.setattr(build_module, "import_engine", lambda *_: sys.modules["tensorrt_rtx"])
    with pytest.raises(PlanError, match=message):
        build_plan(toy, "tensorrt", gpus=gpus, compute_capabilities=["8.6"])


def test_a_missing_builder_names_its_extra(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=re.escape(install_command("tensorrt"))):
        build_plan(toy, "tensorrt", gpus=NO_GPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float32"), ("fp32", "float16"), ("bf16", "float16")])
def test_an_engine_of_another_precision_is_refused(tmp_path, precision, dtype):
    bundle = make_toy(tmp_path / "wrong", precision, dtype)
    with pytest.raises(PlanError, match=f"vae_encoder with 1 in {dtype} of 1 convolutions.* the graph is {precision}"):
        build_plan(bundle, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=NO_GPU)
    assert not [p for p in (bundle.folder / "plans").iterdir() if not p.name.endswith(".lock")]


def test_an_altered_graph_is_not_built(toy):
    path = toy.graph_path("unet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(PlanError, match="not as it was exported"):
        build_plan(toy, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=NO_GPU)


def test_a_graph_that_the_builder_cannot_read_is_one_line(toy):
    toy.graph_path("unet").write_bytes(b"no graph at all")
    manifest = write_manifest(toy.folder, toy.manifest)
    with pytest.raises(PlanError, match=r"tensorrt-rtx [\d.]+ cannot read .*unet.onnx: ") as caught:
        build_plan(Bundle(toy.folder, manifest), "tensorrt-rtx", compute_capabilities=["8.9"], gpus=NO_GPU)
    assert "\n" not in str(caught.value)


def test_a_plan_that_cannot_be_written_is_one_line(toy, cache):
    shutil.rmtree(toy.folder / "plans")
    (toy.folder / "plans").write_text("in the way")
    cache.write_text("in the way, too")
    with pytest.raises(PlanError, match="cannot write a plan to .*; make room there, or set DIFFSEG_CACHE"):
        build_plan(toy, "tensorrt-rtx", compute_capabilities=["8.9"], gpus=NO_GPU)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_build_leaves_nothing(models):
    """Ctrl-C while the builder works on the embedded model's UNet."""
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "from diffseg.engines.tensorrt.pipeline import build_plan\n"
        "from diffseg.engines.bundle.bundle import open_bundle\n"
        "build_plan(open_bundle(sys.argv[1]), 'tensorrt-rtx', compute_capabilities=['8.9'],\n"
        "           report=lambda graph, *_: print(graph, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(models / "tiny")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stdout:
        if line.strip() == b"unet":
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert [p.suffix for p in (models / "tiny" / "plans").iterdir()] == [".lock"]


def test_of_two_processes_one_builds(toy):
    """Two processes build the same plan at once; the second waits and reuses it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffseg.engines.tensorrt.pipeline import build_plan\n"
        "from diffseg.engines.bundle.bundle import open_bundle\n"
        "print(build_plan(open_bundle(sys.argv[1]), 'tensorrt-rtx', compute_capabilities=['12.0']).reused)\n"
    )
    command = [sys.executable, "-c", code, str(toy.folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert sorted(process.communicate(timeout=120)[0].strip() for process in both) == [b"False", b"True"]


def test_the_embedded_model_is_built_from_the_command_line(models):
    words = ["build", "tiny", "--engine", "tensorrt-rtx"]
    for capability in ADA:
        words += ["--compute-capability", capability]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    folder = next(path for path in (models / "tiny" / "plans").iterdir() if path.is_dir())
    assert folder.name in result.output
    assert "compute capability 8.6, 8.9, 12.0" in result.output
    bundle = open_bundle("tiny")
    record = Plan.open(folder).record
    # Every convolution of the graphs is found again in the engines; matrix products may have been joined.
    for graph, found in record.layers.items():
        declared = bundle.manifest.graphs[graph].layers
        assert found.counts["convolution"] == {"float16": declared["Conv"]["float16"]}
        assert found.wrong_precision(bundle.manifest.precision, bundle.manifest.graphs[graph].layers) == {}
    assert record.layers["unet"].counts["matmul"]["float16"] > 40
    check_commands(folder, record, bundle.manifest.graphs["unet"].layers["MatMul"]["float16"])


def test_the_form_that_is_executed_is_built(tmp_path):
    bundle = make_formed(tmp_path / "toy")
    words = ["build", str(bundle.folder), "--engine", "tensorrt-rtx", "--compute-capability", "8.9"]
    for form, options in (("queries_keys", []), ("attention", ["--form", "attention"])):
        result = CliRunner().invoke(app, [*words, *options])
        assert result.exit_code == 0, result.output
        here = Machine(engine_version("tensorrt-rtx"), L4, "linux", "x86_64")
        plan = find_plan(bundle, "tensorrt-rtx", here, (form,))
        assert plan.record.spec.form == form
        assert plan.folder.name in result.output
        assert plan.record.spec.content == bundle.contents(form)
    plain = make_toy(tmp_path / "plain")
    refused = CliRunner().invoke(
        app, ["build", str(plain.folder), "--engine", "tensorrt-rtx", "--form", "queries_keys"]
    )
    assert refused.exit_code != 0
    assert "unet has no form 'queries_keys'; export the bundle again" in str(refused.exception)


def check_commands(folder, record, products):
    """The output of other commands for a bundle with a plan."""
    invoke = CliRunner().invoke
    inspected = invoke(app, ["inspect", "tiny"])
    assert inspected.exit_code == 0
    assert record.spec.purpose in inspected.output
    assert f"MatMul {products} float16" in inspected.output
    told = invoke(app, ["info", "tiny"])
    assert str(folder) in told.output
    assert record.spec.version in told.output
    assert f"plans/{folder.name}/unet.plan" in invoke(app, ["verify", "tiny"]).output
    (folder / "unet.plan").write_bytes(b"cut short")
    damaged = invoke(app, ["verify", "tiny"])
    assert damaged.exit_code == 1
    assert "unet.plan: 9 bytes, expected" in damaged.output


def test_polygraphy_builds_the_graphs_as_they_are(toy, tmp_path):
    """The command line of the README, for users of NVIDIA's own tools."""
    pytest.importorskip("polygraphy")
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1", "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    polygraphy = Path(sys.executable).with_name("polygraphy")
    for graph, shape in (("vae_encoder", "image:[{},64,64,3]"), ("unet", "latent:[{},4,8,8]")):
        plan = tmp_path / f"{graph}.plan"
        shapes = [f"--trt-{bound}-shapes={shape.format(size)}" for bound, size in (("min", 1), ("opt", 1), ("max", 4))]
        command = [polygraphy, "convert", toy.graph_path(graph), "-o", plan, "--strongly-typed", *shapes]
        subprocess.run([str(word) for word in command], env=environment, check=True, capture_output=True)
        assert plan.stat().st_size > 1000
