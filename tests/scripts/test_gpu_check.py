"""The GPU check, as far as it goes without a GPU: plan, wheels, resuming, seeded weights, skipping, and a rehearsal."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from diffseg.engines import Bundle
from diffseg.engines.bundle.bundle import MODELS

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check import runner as runner_module
from gpu_check.context import CheckFailedError, Context
from gpu_check.kernel import TOLERANCE, difference
from gpu_check.network import FORM, OPTIONS, VARIANTS, variables_set
from gpu_check.plan import LIMIT, STEPS, Step, find_step
from gpu_check.progress import DONE, FAILED, SKIPPED, Progress
from gpu_check.runner import Runner, execute
from gpu_check.seeds import EXACT_BYTES, Recipe, describe, fill
from gpu_check.wheels import WheelError, install, join_wheels, merge_folder, split_wheel, surroundings

SCRIPTS = Path(__file__).parents[2] / "scripts"
PIECE = 1000


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "work", tmp_path / "graphs.zip", runs=1, rehearse=True)


@pytest.fixture
def wheel(tmp_path):
    """A wheel that pip accepts, of a few pieces."""
    path = tmp_path / "wheels" / "thing-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nvidia/thing/data.bin", np.random.default_rng(0).bytes(3 * PIECE))
        archive.writestr("thing.py", "value = 7\n")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    return path


def run(*words):
    command = [sys.executable, SCRIPTS / "gpu_check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# The plan


def test_the_plan_is_listed_without_running_anything(tmp_path):
    done = run("--list", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f" {step.name} ") for step in STEPS]
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


# Wheels


def test_a_wheel_is_cut_and_joined_again(wheel, tmp_path):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    assert len(pieces) == -(-wheel.stat().st_size // PIECE) > 2
    assert all(piece.stat().st_size <= PIECE for piece in pieces)
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert [path.read_bytes() for path in joined] == [wheel.read_bytes()]
    assert problems == []


def test_a_small_wheel_stays_whole(wheel, tmp_path):
    assert [path.name for path in split_wheel(wheel, tmp_path / "pieces")] == [wheel.name]


@pytest.mark.parametrize(("lost", "words"), [(0, "lacks part01"), (1, "lacks part02"), (-1, "ends too early")])
def test_a_wheel_that_lacks_a_piece_is_incomplete(wheel, tmp_path, lost, words):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    content = pieces[lost].read_bytes()
    pieces[lost].unlink()
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert joined == []
    assert words in problems[0]
    pieces[lost].write_bytes(content)  # it comes with a later call
    assert len(join_wheels(tmp_path / "pieces", tmp_path / "whole")[0]) == 1
    for piece in pieces:  # and once joined, no piece is needed
        piece.unlink()
    assert len(join_wheels(tmp_path / "pieces", tmp_path / "whole")[0]) == 1


def test_pieces_may_be_counted_from_0(wheel, tmp_path):
    for piece in split_wheel(wheel, tmp_path / "pieces", PIECE):
        stem, number = piece.name.rsplit("part", 1)
        piece.rename(piece.with_name(f"{stem}part{int(number) - 1:02}"))
    shutil.move(tmp_path / "pieces", tmp_path / "again")
    assert len(join_wheels(tmp_path / "again", tmp_path / "whole")[0]) == 1


def test_a_damaged_wheel_is_not_installed(wheel, tmp_path):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    pieces[1].write_bytes(bytes(PIECE))
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert joined == []
    assert "is damaged" in problems[0]


def test_wheels_are_installed_into_a_folder_once(wheel, tmp_path):
    site = tmp_path / "site"
    (site / "nvidia" / "other").mkdir(parents=True)  # of another wheel: pip would delete it or pass over the new one
    (site / "nvidia" / "other" / "kept.bin").write_bytes(b"kept")
    shutil.copy(wheel, wheel.with_name("onnxruntime-1.0-py3-none-any.whl"))
    wheels = sorted(wheel.parent.glob("*.whl"))
    assert install(wheels, site, source=False) == [wheel.name]
    assert install(wheels, site, source=False) == []
    assert (site / "nvidia" / "other" / "kept.bin").read_bytes() == b"kept"
    found = subprocess.run(
        [sys.executable, "-c", "import thing; print(thing.value)"],
        env=surroundings(site),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "7\n"


def test_what_pip_refuses_is_said_in_one_line(tmp_path):
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"no wheel")
    with pytest.raises(WheelError, match="pip can't install broken-1.0") as error:
        install([broken], tmp_path / "site", source=False)
    assert "\n" not in str(error.value)


def test_a_folder_is_moved_over_another(tmp_path):
    for folder, name in (("new", "a"), ("old", "a"), ("old", "b")):
        (tmp_path / folder / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "deep" / name).write_text(folder)
    merge_folder(tmp_path / "new", tmp_path / "old")
    assert {path.name: path.read_text() for path in (tmp_path / "old" / "deep").iterdir()} == {"a": "new", "b": "old"}
    assert not (tmp_path / "new").exists()


def test_the_loader_is_told_of_the_interpreters_cuda_libraries(tmp_path, monkeypatch):
    libraries = tmp_path / "own" / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path / "own")])
    monkeypatch.setenv("LD_LIBRARY_PATH", "before")
    found = surroundings(tmp_path / "site")["LD_LIBRARY_PATH"].split(os.pathsep)
    assert found[0] == str(libraries)
    assert found[-1] == "before"


# Weights from a seed


def test_seeded_weights_resemble_the_real_ones(tmp_path):
    random = np.random.default_rng(0)
    large = (3 + 0.5 * random.standard_normal(50_000)).astype(np.float16)
    whole, small = np.arange(10_000), np.float32([1, 2, 3])
    parts, offsets = [large, whole, small], [0, 100_352, 180_480]
    data = bytearray(180_544)
    for part, offset in zip(parts, offsets, strict=True):
        data[offset : offset + part.nbytes] = part.tobytes()
    (tmp_path / "w.data").write_bytes(data)
    places = zip(["w.data"] * 3, offsets, [p.nbytes for p in parts], ["float16", "int64", "float32"], strict=True)
    recipe, exact = describe(tmp_path, places)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert len(exact) == whole.nbytes + small.nbytes
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, recipe, exact, seed)
        found[name] = (tmp_path / name / "w.data").read_bytes()
    assert found["a"] == found["b"] != found["c"]
    assert len(found["a"]) == len(data)
    drawn = np.frombuffer(found["a"], np.float16, 50_000).astype(np.float32)
    assert drawn.mean() == pytest.approx(3, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, abs=0.02)
    assert not np.array_equal(drawn, large)
    assert found["a"][100_352:] == data[100_352:]  # kept exactly


def test_bfloat16_is_drawn_too(tmp_path):
    bits = (np.random.default_rng(0).standard_normal(EXACT_BYTES, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "w.data").write_bytes(bits.tobytes())
    recipe, exact = describe(tmp_path, [("w.data", 0, bits.nbytes, "bfloat16")])
    assert exact == b""
    fill(tmp_path, recipe, exact, 0)
    drawn = (np.fromfile(tmp_path / "w.data", np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert drawn.std() == pytest.approx(1, abs=0.05)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    np.full(EXACT_BYTES, np.inf, np.float32).tofile(tmp_path / "w.data")
    with pytest.raises(ValueError, match="NaN or infinite"):
        describe(tmp_path, [("w.data", 0, 4 * EXACT_BYTES, "float32")])


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """The embedded model's graphs, packed without weights, and its context after the step `weights`."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("seeded")
    context = Context(folder, folder / "graphs.zip", runs=1, rehearse=True)
    done = run("pack", MODELS / "tiny", context.archive)
    assert done.returncode == 0, done.stderr
    execute("weights", context, folder / "outcome.json")
    return context, json.loads((folder / "outcome.json").read_text())


def test_an_archive_has_no_weights_and_gives_a_whole_bundle(seeded):
    context, outcome = seeded
    assert outcome["status"] == DONE, outcome
    real, made = Bundle.open(MODELS / "tiny"), Bundle.open(context.bundle)
    weights = [name for name in real.manifest.files if name.endswith(".data")]
    assert context.archive.stat().st_size < 0.1 * sum(real.manifest.files[name].bytes for name in weights)
    for name in weights:
        assert made.manifest.files[name].bytes == real.manifest.files[name].bytes
        assert made.manifest.files[name].sha256 != real.manifest.files[name].sha256
    assert [name for name, problem in made.verify() if problem] == []
    assert made.manifest.parity == {}
    assert "seed 0" in made.manifest.source.checkpoint


def test_seeded_graphs_load_in_onnxruntime_and_give_finite_outputs(seeded):
    ort = pytest.importorskip("onnxruntime")
    context, _ = seeded
    bundle = Bundle.open(context.bundle)
    images = np.random.default_rng(0).integers(0, 256, (1, *bundle.manifest.image_size, 3), np.uint8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, unet = (
        ort.InferenceSession(bundle.graph_path(name), options, providers=["CPUExecutionProvider"])
        for name in ("vae_encoder", "unet")
    )
    (latent,) = encoder.run(None, {encoder.get_inputs()[0].name: images})
    outputs = unet.run(None, {unet.get_inputs()[0].name: latent})
    for output in (latent, *outputs):
        assert np.isfinite(output).all()
    for output in outputs:
        np.testing.assert_allclose(output.sum(-1), 1, atol=2e-3)
        assert (
            output.std(axis=-1).max() > 0.01 / output.shape[-1]
        )  # attention that is even everywhere would prove nothing


# Steps without a GPU


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_skipped_with_a_reason_where_something_is_missing(step, context, monkeypatch, tmp_path):
    gpus = type("Gpus", (), {"first": None, "gpus": (), "reason": "no driver"})
    monkeypatch.setattr("diffseg.engines.machine.find_gpus", lambda: gpus)
    bare = Context(context.work, context.archive)
    execute(step.name, bare, tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["status"] == SKIPPED
    expected = "graphs.zip is missing" if step.name == "weights" else "no NVIDIA GPU: no driver"
    assert expected in outcome["reason"]


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


# Parts of steps on the CPU


def test_the_kernel_s_difference_is_seen():
    from diffseg.engines.kernels.twin import averaged_attention as twin

    shape = (1, 4, 16, 25, 8)
    assert difference(twin, shape, "float16")["relative"] == 0
    wrong = difference(lambda queries, keys: twin(queries, keys) * 1.01, shape, "float16")
    assert wrong["relative"] > TOLERANCE


def test_variants_set_the_options_and_take_them_back(monkeypatch):
    from diffseg.engines.providers.onnxruntime_gpu import cuda_options

    monkeypatch.delenv(OPTIONS, raising=False)
    monkeypatch.setenv(FORM, "before")
    plain = cuda_options("fp16", 0, capture=True)
    for variables in VARIANTS.values():
        with variables_set({FORM: "attention", **variables}):
            assert os.environ[FORM] == "attention"
            changed = {k for k, v in cuda_options("fp16", 0, capture=True).items() if str(v) != str(plain.get(k))}
            assert len(changed) == len([item for item in variables.get(OPTIONS, "").split(",") if item])
        assert OPTIONS not in os.environ
        assert os.environ[FORM] == "before"


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
