"""The GPU check, as far as it goes without a GPU: its plan, resuming, skipping, limits, and a rehearsal."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffseg.engines import Bundle
from diffseg.engines.providers.forms import VARIABLE

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check import graphs as graphs_module
from gpu_check import network as network_module
from gpu_check import runner as runner_module
from gpu_check.context import CheckFailedError, Context
from gpu_check.kernel import TOLERANCE, difference
from gpu_check.network import OPTIONS, VARIANTS, variables_set
from gpu_check.plan import LIMIT, STEPS, Step, find_step
from gpu_check.progress import DONE, FAILED, SKIPPED, Progress
from gpu_check.runner import Runner, execute

from tests.scripts.commands import run


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "work", tmp_path / "graphs.zip", runs=1, rehearse=True)


def test_the_plan_is_listed_without_running_anything(tmp_path):
    done = run("--list", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f" {step.name:13} at most ") for step in STEPS]
    assert places == sorted(places)
    assert all(need.words in done.stdout for step in STEPS for need in step.needs)
    assert not (tmp_path / "work").exists()


def test_every_step_ends_in_time_and_can_be_loaded():
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        assert step.minutes <= LIMIT
        assert callable(step.load())


def test_an_unknown_step_is_refused(tmp_path):
    done = run("--list", "--work", tmp_path, "--only", "nonsense")
    assert done.returncode == 1
    assert "unknown step nonsense; choose from machine, " in done.stderr


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_skipped_with_a_reason_where_something_is_missing(step, context, monkeypatch, tmp_path):
    gpus = type("Gpus", (), {"first": None, "gpus": (), "reason": "no driver"})
    monkeypatch.setattr("diffseg.engines.machine.find_gpus", lambda: gpus)
    bare = Context(context.work, context.archive)
    execute(step.name, bare, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == SKIPPED
    expected = {"weights": "graphs.zip is missing", "graphs": "the step `weights` makes it"}
    assert expected.get(step.name, "no NVIDIA GPU: no driver") in outcome["reason"]


def test_a_rehearsal_still_needs_the_bundle(context):
    assert "the step `weights` makes it" in find_step("network").missing(context)


def test_a_run_goes_on_where_it_ended(context, tmp_path, monkeypatch):
    """The steps are doubles; their processes are real ones elsewhere."""
    ran = []

    def outcomes(self, step):
        ran.append(step.name)
        status = {"machine": DONE, "merging": FAILED}.get(step.name, SKIPPED)
        found = {"date": "2026-01-02", "revision": "abc", "python": "3"}
        return {"status": status, "seconds": 1.0, "result": {"gemm": {"float16_tflops": 700}}, "environment": found}

    monkeypatch.setattr(Runner, "run_step", outcomes)
    state, results = tmp_path / "state.json", tmp_path / "results"
    first = Runner(context, Progress(state, "NVIDIA H100 80GB HBM3", results), {}, only=["machine", "merging", "tiny"])
    assert first.run() == ["merging"]
    assert ran == ["machine", "merging", "tiny"]
    published = results / "gpu_nvidia-h100-80gb-hbm3_2026-01-02.json"
    assert json.loads(published.read_text()) == json.loads(state.read_text())
    second = Runner(context, Progress(state, "NVIDIA H100 80GB HBM3", results), {}, only=["machine", "merging", "tiny"])
    second.run()
    assert ran[3:] == ["merging", "tiny"]  # what is done is not run again
    assert second.progress.result("machine", "gemm", "float16_tflops") == 700
    assert second.progress.entry("machine")["revision"] == "abc"
    third = Runner(context, Progress(state, "NVIDIA H100 80GB HBM3"), {}, only=["machine"], again=["machine"])
    third.run()
    assert ran[5:] == ["machine"]
    other = Progress(state, "NVIDIA L4")
    assert other.other == "NVIDIA H100 80GB HBM3"
    assert not other.is_done("machine")


def test_a_step_that_might_not_end_in_time_is_not_begun(context, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Runner, "run_step", lambda *_: pytest.fail("begun"))
    Runner(context, Progress(tmp_path / "state.json", "x"), {}, only=["machine"]).run(minutes=1)
    assert "machine: not begun: it may take 3 minutes, 1.0 are left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "minutes", "status", "reason"),
    [
        ("import time; time.sleep(60)", 0.02, FAILED, "not ended after 0.02 minutes"),
        ("import os; os.abort()", 1, FAILED, "its process ended with -6"),
        ("", 1, DONE, None),
    ],
    ids=["too long", "crash", "fine"],
)
def test_a_process_that_ends_badly_keeps_what_it_had_found(
    context, tmp_path, monkeypatch, body, minutes, status, reason
):
    folder = tmp_path / "package"
    folder.mkdir()
    written = json.dumps({"status": DONE if not body else FAILED, "result": {"found": 1}})
    (folder / "__main__.py").write_text(f"import sys\nopen(sys.argv[4], 'w').write({written!r})\n{body}\n")
    monkeypatch.setattr(runner_module, "FOLDER", folder)
    step = Step("machine", "machine:check", "", (), minutes)
    outcome = Runner(context, Progress(tmp_path / "state.json", "x"), dict(os.environ)).run_step(step)
    assert outcome["status"] == status
    assert outcome.get("reason") == reason
    assert outcome["result"] == {"found": 1}


def test_a_check_that_fails_keeps_its_results(context, tmp_path, monkeypatch):
    def check(_):
        yield {"a": 1}
        raise CheckFailedError("wrong by 3")

    monkeypatch.setattr(Step, "load", lambda _: check)
    monkeypatch.setattr(Step, "missing", lambda *_: None)
    execute("tiny", context, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["status"], outcome["reason"], outcome["result"]) == (FAILED, "wrong by 3", {"a": 1})


def test_the_kernel_s_difference_is_seen():
    from diffseg.engines.kernels.twin import averaged_attention as twin

    shape = (1, 4, 16, 25, 8)
    assert difference(twin, shape, "float16")["relative"] == 0
    wrong = difference(lambda queries, keys: twin(queries, keys) * 1.01, shape, "float16")
    assert wrong["relative"] > TOLERANCE


def test_variants_set_the_options_and_take_them_back(monkeypatch):
    from diffseg.engines.providers.onnxruntime_gpu import cuda_options

    monkeypatch.delenv(OPTIONS, raising=False)
    monkeypatch.setenv(VARIABLE, "before")
    plain = cuda_options("fp16", 0, capture=True)
    for variables in VARIANTS.values():
        with variables_set({VARIABLE: "attention", **variables}):
            assert os.environ[VARIABLE] == "attention"
            changed = {k for k, v in cuda_options("fp16", 0, capture=True).items() if str(v) != str(plain.get(k))}
            assert len(changed) == len([item for item in variables.get(OPTIONS, "").split(",") if item])
        assert OPTIONS not in os.environ
        assert os.environ[VARIABLE] == "before"


def test_the_attention_baseline_runs_on_the_cpu():
    torch = pytest.importorskip("torch")
    from gpu_check.baseline import attention_times

    times = attention_times(torch, (1, 2, 2, 16, 8), "cpu", torch.float32, 2)
    assert set(times) == {"sdpa", "eager"}


def test_a_rehearsal_measures_the_network_on_the_cpu(seeded, tmp_path):
    context, _ = seeded
    execute("network", context, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == DONE, outcome
    assert outcome["result"]["finite"]
    assert {"total", "encode", "attend", "merge"} <= set(outcome["result"]["milliseconds"])
    assert outcome["result"]["tflops"] > 0


RESULTS = {
    "merging": lambda found: (
        len(found["golden"]) == 6
        and min(found["golden"].values()) >= 0.9999
        and "as segmented, 12 megapixels" in found["times"]["64x64"]["milliseconds"]
    ),
    "tiny": lambda found: found["agreement"]["passed"] and found["milliseconds"]["total"]["p50"] > 0,
    "forms": lambda found: set(found["variants"]) == {"queries_keys", "attention"},
    "options": lambda found: set(found["variants"]) == set(VARIANTS),
    "throughput": lambda found: all(each["images_per_second"] > 0 for each in found["batches"].values()),
    "torch": lambda found: found["attention"]["8x8"]["sdpa"]["p50"] > 0 and "eager_maps" in found["unet"],
}


def test_every_step_without_a_need_for_a_gpu_is_rehearsed_here():
    rehearsed = {step.name for step in STEPS if step.rehearses}
    assert rehearsed == RESULTS.keys() | {"network", "graphs"}  # `weights` is the fixture


@pytest.mark.integration
@pytest.mark.parametrize("name", RESULTS)
def test_a_step_is_rehearsed_on_the_cpu(seeded, tmp_path, name):
    if name == "torch":
        pytest.importorskip("diffusers")
    execute(name, seeded[0], tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == DONE, outcome
    assert RESULTS[name](outcome["result"])


def test_every_graph_of_the_archive_opens_and_its_forms_agree(seeded, tmp_path):
    context, _ = seeded
    execute("graphs", context, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == DONE, outcome
    graphs = [name for name in Bundle.open(context.bundle).manifest.files if name.endswith(".onnx")]
    assert sorted(outcome["result"]["files"]) == sorted(graphs)
    assert min(outcome["result"]["least_row_cosine"].values()) > 0.999


def test_forms_that_differ_and_graphs_that_do_not_open_fail_the_step(seeded, tmp_path, monkeypatch):
    context, _ = seeded
    other = replace(context, work=tmp_path)
    shutil.copytree(context.bundle, other.bundle)
    with monkeypatch.context() as patch:
        patch.setattr(graphs_module, "averaged_attention", lambda queries, _: np.eye(queries.shape[2])[None])
        with pytest.raises(CheckFailedError, match="forms of the UNet differ"):
            list(graphs_module.check(other))
    path = other.bundle / "unet.queries_keys.onnx"
    path.write_bytes(bytes(path.stat().st_size))
    execute("graphs", other, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == FAILED
    assert outcome["result"]["files"]


@pytest.mark.parametrize(
    ("form", "reason"), [("attention", "DIFFSEG_UNET_FORM is not followed"), (None, "RuntimeError: no kernels")]
)
def test_one_variant_that_fails_leaves_the_others(seeded, monkeypatch, form, reason):
    """Of two forms, one is not what was asked for, or can't be executed; the other one is measured."""
    context, _ = seeded

    def measure(context, bundle, variables):
        if variables[VARIABLE] != "attention" and form is None:
            raise RuntimeError("no kernels\nfor this GPU")
        return {"form": "attention"}

    monkeypatch.setattr(network_module, "measure", measure)
    steps = network_module.compare_forms(context)
    found = [next(steps) for _ in range(2)][-1]
    with pytest.raises(CheckFailedError, match="could not be measured: queries_keys"):
        next(steps)
    assert reason in found["variants"]["queries_keys"]["failed"]
    assert "\n" not in found["variants"]["queries_keys"]["failed"]
    assert found["variants"]["attention"] == {"form": "attention"}


def test_the_form_is_told_by_the_outputs_of_the_graph(seeded):
    context, _ = seeded
    bundle = Bundle.open(context.bundle)

    class Session:
        def __init__(self, names):
            self.names = names

        def get_provider_options(self):
            return {"CUDAExecutionProvider": {"prefer_nhwc": "1", "other": "2"}}

        def get_outputs(self):
            return [type("Output", (), {"name": name, "type": "tensor(float16)"}) for name in self.names]

    class Network:
        placement = {"unet": {"CUDAExecutionProvider": 5}}  # noqa: RUF012

        def __init__(self, names):
            self.sessions = {0: {"unet": Session(names)}}

    averaged = [tensor.name for tensor in bundle.manifest.graphs["unet"].tensors.outputs]
    found = network_module.describe(Network(averaged), bundle)
    assert found["form"] == "attention"
    assert found["placement"] == Network.placement
    assert found["unet"]["options"] == {"prefer_nhwc": "1"}
    assert network_module.describe(Network(["queries_64", "keys_64"]), bundle)["form"] == "queries_keys"
