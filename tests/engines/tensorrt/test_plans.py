"""Plans without a builder: keys, records, folders, and every reason to reject a plan."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from diffseg.cli.tables import bundle_tables
from diffseg.engines.bundle.bundle import Bundle, open_bundle, write_manifest
from diffseg.engines.bundle.manifest import ATTENTION, QUERIES_KEYS
from diffseg.engines.errors import PlanError
from diffseg.engines.files import cache_folder
from diffseg.engines.inspect import inspect_bundle
from diffseg.engines.machine import Gpu
from diffseg.engines.tensorrt.lookup import (
    Machine,
    build_command,
    find_plan,
    list_plans,
    mismatches,
    plans_folder,
    verify_plans,
)
from diffseg.engines.tensorrt.plan import RECORD, BuildOptions, Plan, PlanSpec, Target
from diffseg.engines.tensorrt.precision import EngineLayers
from msgspec import structs

from tests.plans import put

ROOT = Path(__file__).parents[3]
L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, 58, "13.0")
HERE = Machine("1.7.1.116", L4, "linux", "x86_64")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def spec(fake_bundle):
    return PlanSpec(
        engine="tensorrt-rtx",
        version="1.7.1.116",
        target=Target(("8.6", "8.9"), None, None, "linux", "x86_64"),
        options=BuildOptions(),
        precision="fp32",
        content={name: fake_bundle.content_hash(name) for name in fake_bundle.manifest.graphs},
        profiles={name: graph.tensors.profile() for name, graph in fake_bundle.manifest.graphs.items()},
    )


def test_a_record_comes_back_as_it_was_written(spec, tmp_path):
    plan = Plan.open(put(spec, tmp_path))
    assert plan.record.spec == spec
    assert plan.record.spec.key == plan.folder.name
    assert plan.record.layers["unet"] == EngineLayers({"matmul": {"float32": 3}}, 100)
    assert plan.read("unet") == b"unet" * 50
    assert dict(plan.verify()) == {"vae_encoder": None, "unet": None}


def test_every_difference_gives_another_key(spec):
    target, options = spec.target, spec.options
    others = [
        structs.replace(spec, engine="tensorrt"),
        structs.replace(spec, version="1.7.1.117"),
        structs.replace(spec, precision="fp16"),
        structs.replace(spec, content=spec.content | {"unet": "0" * 64}),
        structs.replace(spec, profiles=spec.profiles | {"unet": {"latent": {"min": (1,), "opt": (1,), "max": (9,)}}}),
        *(structs.replace(spec, target=structs.replace(target, **{k: v})) for k, v in TARGETS.items()),
        *(structs.replace(spec, options=structs.replace(options, **{k: v})) for k, v in OPTIONS.items()),
    ]
    assert set(Target.__struct_fields__) == set(TARGETS)  # a new field needs a line here
    assert set(BuildOptions.__struct_fields__) == set(OPTIONS)
    assert len({spec.key, *(other.key for other in others)}) == len(others) + 1
    assert spec.key.startswith("tensorrt-rtx-1.7.1.116-sm86+sm89-")
    assert structs.replace(spec).key == spec.key


TARGETS = {
    "compute_capabilities": ("8.9",),
    "gpu": "NVIDIA L4",
    "driver": "13.0",
    "system": "windows",
    "machine": "aarch64",
}
OPTIONS = {
    "optimization_level": 5,
    "version_compatible": True,
    "hardware_compatibility": "ampere-plus",
    "strip_weights": True,
}


def native(spec, **options):
    """The plan that TensorRT would have built on the L4."""
    target = Target(("8.9",), "NVIDIA L4", "12.8", "linux", "x86_64")
    return structs.replace(spec, engine="tensorrt", version="11.3.0.5", target=target, options=BuildOptions(**options))


def for_capabilities(spec, *capabilities):
    """The plan for other compute capabilities."""
    return structs.replace(spec, target=structs.replace(spec.target, compute_capabilities=capabilities))


NATIVE = replace(HERE, version="11.3.0.5")
A10 = replace(L4, name="NVIDIA A10", compute_capability="8.6")
L40 = replace(L4, name="NVIDIA L40")
T4 = replace(L4, name="Tesla T4", compute_capability="7.5")
H100 = replace(L4, name="NVIDIA H100", compute_capability="9.0")
FITS = {
    "listed capability": (lambda s: s, HERE),
    "another GPU of a listed capability": (lambda s: s, replace(HERE, gpu=A10)),
    "built for none in particular": (
        for_capabilities,
        HERE,
    ),
    "rtx on another system": (lambda s: s, replace(HERE, system="windows")),
    "same GPU, newer driver": (native, NATIVE),
    "ampere-plus": (lambda s: native(s, hardware_compatibility="ampere-plus"), replace(NATIVE, gpu=A10)),
    "same capability": (
        lambda s: native(s, hardware_compatibility="same-compute-capability"),
        replace(NATIVE, gpu=L40),
    ),
    "version compatible": (lambda s: native(s, version_compatible=True), replace(NATIVE, version="11.4.0.1")),
}
REFUSED = {
    "was built for compute capability 8.6, 8.9, found Tesla T4 (7.5)": (lambda s: s, replace(HERE, gpu=T4)),
    "was built for compute capability 8.0, 8.6, 8.9, 12.0, found Tesla T4 (7.5)": (
        for_capabilities,
        replace(HERE, gpu=T4),
    ),
    "was built for compute capability 8.0, 8.6, 8.9, 12.0, found NVIDIA H100 (9.0)": (
        for_capabilities,
        replace(HERE, gpu=H100),
    ),
    "was built for compute capability 8.0, 8.6, 8.9, 12.0, found NVIDIA B200 (10.0)": (
        for_capabilities,
        replace(HERE, gpu=replace(H100, name="NVIDIA B200", compute_capability="10.0")),
    ),
    "was built for compute capability 8.0 and newer, found Tesla T4 (7.5)": (
        lambda s: native(s, hardware_compatibility="ampere-plus"),
        replace(NATIVE, gpu=T4),
    ),
    "was built by tensorrt-rtx 1.7.1.116, found 1.8.0.2": (lambda s: s, replace(HERE, version="1.8.0.2")),
    "was built for linux x86_64, found linux aarch64": (lambda s: s, replace(HERE, machine="aarch64")),
    "was built for linux x86_64, found windows x86_64": (native, replace(NATIVE, system="windows")),
    "needs an NVIDIA GPU, found none": (lambda s: s, replace(HERE, gpu=None)),
    "was built for NVIDIA L4, found NVIDIA L40 (8.9)": (native, replace(NATIVE, gpu=L40)),
    "was built for compute capability 8.9, found NVIDIA A10 (8.6)": (native, replace(NATIVE, gpu=A10)),
    "was built with a driver for CUDA 12.8, found one for CUDA 12.4": (
        native,
        replace(NATIVE, gpu=replace(L4, driver="12.4")),
    ),
    "was built by tensorrt 11.3.0.5, found 11.4.0.1": (native, replace(NATIVE, version="11.4.0.1")),
    "was built by tensorrt 11.3.0.5, found 12.0.0.1": (
        lambda s: native(s, version_compatible=True),
        replace(NATIVE, version="12.0.0.1"),
    ),
    "was built by tensorrt 11.3.0.5, found 11.2.0.1": (
        lambda s: native(s, version_compatible=True),
        replace(NATIVE, version="11.2.0.1"),
    ),
    "was built from other graphs than the bundle has now": (
        lambda s: structs.replace(s, content=s.content | {"unet": "0" * 64}),
        HERE,
    ),
    "was built for other batch sizes than the manifest declares": (
        lambda s: structs.replace(
            s, profiles=s.profiles | {"unet": {"latent": {"min": (1,), "opt": (1,), "max": (9,)}}}
        ),
        HERE,
    ),
}


@pytest.mark.parametrize("case", FITS)
def test_a_plan_that_fits_is_found(fake_bundle, spec, case):
    change, here = FITS[case]
    folder = put(change(spec), fake_bundle.folder / "plans")
    assert list(mismatches(change(spec), fake_bundle, here)) == []
    assert find_plan(fake_bundle, change(spec).engine, here).folder == folder


@pytest.mark.parametrize("reason", REFUSED)
def test_a_plan_that_does_not_fit_is_refused(fake_bundle, spec, reason):
    change, here = REFUSED[reason]
    built = change(spec)
    put(built, fake_bundle.folder / "plans")
    with pytest.raises(PlanError) as caught:
        find_plan(fake_bundle, built.engine, here)
    message = str(caught.value)
    assert f"{built.key} {reason}" in message
    assert message.endswith(f"build one: diffseg build {shlex.quote(str(fake_bundle.folder))} --engine {built.engine}")
    assert "\n" not in message


def test_among_many_plans_the_one_that_fits_is_found(fake_bundle, spec):
    for capability in ("7.5", "8.0", "8.6", "12.0"):
        put(
            for_capabilities(spec, capability),
            fake_bundle.folder / "plans",
        )
    with pytest.raises(PlanError, match="and 1 more"):
        find_plan(fake_bundle, "tensorrt-rtx", HERE)
    wanted = put(
        for_capabilities(spec, "8.9"),
        fake_bundle.folder / "plans",
    )
    assert find_plan(fake_bundle, "tensorrt-rtx", HERE).folder == wanted


def test_of_several_plans_that_fit_the_most_specific_is_taken(fake_bundle, spec):
    def put_one(capabilities, level=3):
        target, options = structs.replace(spec.target, compute_capabilities=capabilities), BuildOptions(level)
        return put(structs.replace(spec, target=target, options=options), fake_bundle.folder / "plans")

    order = [
        put_one(()),
        put_one(("8.6", "8.9", "12.0")),
        put_one(("8.6", "8.9")),
        put_one(("8.9",)),
        put_one(("8.9",), 5),
    ]
    while order:
        assert find_plan(fake_bundle, "tensorrt-rtx", HERE).folder == order[-1]
        shutil.rmtree(order.pop())


def test_no_plan_at_all_says_how_to_build_one(fake_bundle, spec):
    put(spec, fake_bundle.folder / "plans")
    with pytest.raises(
        PlanError, match="bundle 'fake' has no tensorrt plan; build one: diffseg build .* --engine tensorrt$"
    ):
        find_plan(fake_bundle, "tensorrt", HERE)


DAMAGE = {
    "4 bytes, expected 200": lambda path: path.write_bytes(b"unet"),
    "sha256 .*…, expected": lambda path: path.write_bytes(b"unit" * 50),
    "No such file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_plan_is_refused_before_it_is_used(spec, tmp_path, message):
    plan = Plan.open(put(spec, tmp_path))
    DAMAGE[message](plan.path("unet"))
    with pytest.raises(PlanError, match=message):
        plan.read("unet")
    assert plan.read("vae_encoder")
    assert dict(plan.verify())["unet"]


RECORDS = {
    "is not JSON": "{",
    "has schema 9": '{"schema": 9}',
    "'spec' is missing": '{"schema": 1}',
    "engine must be one of tensorrt, tensorrt-rtx": None,
}


@pytest.mark.parametrize("message", RECORDS)
def test_an_unreadable_record_is_refused(fake_bundle, spec, message):
    folder = put(spec, fake_bundle.folder / "plans")
    text = RECORDS[message] or (folder / RECORD).read_text().replace('"tensorrt-rtx"', '"openvino"')
    (folder / RECORD).write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.open(folder)
    with pytest.raises(PlanError, match=message):
        find_plan(fake_bundle, "tensorrt-rtx", HERE)
    assert [message in str(problem) for _, problem in verify_plans(fake_bundle)] == [True]


VALUES = {
    'files.unet.bytes must be a whole number, found "1"': lambda r: r["files"]["unet"].update(bytes="1"),
    "seconds.unet must be a number of at least 0, found -1.5": lambda r: r["seconds"].update(unet=-1.5),
    "spec.options.optimization_level must be a whole number of at most 5": lambda r: r["spec"]["options"].update(
        optimization_level=6
    ),
    "spec.options.strip_weights must be true or false, found 1": lambda r: r["spec"]["options"].update(strip_weights=1),
    r"spec.profiles.unet.latent.max\[0\] must be a whole number of at least 1": lambda r: r["spec"]["profiles"]["unet"][
        "latent"
    ].update(max=[-4]),
    "spec: a profile must have one shape for each of min, opt and max": lambda r: r["spec"]["profiles"]["unet"][
        "latent"
    ].pop("max"),
    "spec: profiles must have the shapes of at least one input": lambda r: r["spec"].update(profiles={}),
    "spec.target: a compute capability must be like 8.9, found '8'": lambda r: r["spec"]["target"].update(
        compute_capabilities=["8"]
    ),
    "spec.target.gpu contains a control character": lambda r: r["spec"]["target"].update(gpu="L4\r"),
    "holds the record of another plan": lambda r: r["spec"].update(version="../1"),
}


@pytest.mark.parametrize("message", VALUES)
def test_a_wrong_value_in_a_record_is_refused(fake_bundle, spec, message):
    folder = put(spec, fake_bundle.folder / "plans")
    value = json.loads((folder / RECORD).read_text())
    VALUES[message](value)
    (folder / RECORD).write_text(json.dumps(value))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_record_is_a_regular_file(spec, tmp_path, make):
    folder = put(spec, tmp_path)
    (folder / RECORD).unlink()
    make(folder / RECORD)
    with pytest.raises(PlanError, match="is not a regular file; delete"):
        Plan.open(folder)


def test_the_key_of_a_plan_does_not_change_between_versions():
    """Plans that earlier versions built would not be found."""
    spec = PlanSpec(
        engine="tensorrt",
        version="10.13.3.9",
        target=Target(("8.9",), "NVIDIA L4", "13.0", "linux", "x86_64"),
        options=BuildOptions(),
        precision="fp16",
        content={"unet": "0" * 64},
        profiles={"unet": {"latent": {"min": (1, 4, 8, 8), "opt": (1, 4, 8, 8), "max": (4, 4, 8, 8)}}},
    )
    assert spec.key == "tensorrt-10.13.3.9-sm89-2c2a2ee8a437"


def formed_spec(spec, bundle, form):
    profiles = {name: graph.tensors.profile() for name, graph in bundle.graphs(form).items()}
    return structs.replace(spec, content=bundle.contents(form), profiles=profiles, form=form)


def test_a_record_without_a_form_is_one_of_the_attention(fake_bundle, spec):
    folder = put(spec, fake_bundle.folder / "plans")
    value = json.loads((folder / RECORD).read_text())
    assert value["spec"].pop("form") == ATTENTION
    (folder / RECORD).write_text(json.dumps(value))
    plan = Plan.open(folder)
    assert plan.record.spec == spec
    assert find_plan(fake_bundle, "tensorrt-rtx", HERE) == plan


def test_a_plan_of_each_form_is_found(formed_bundle, spec):
    specs = {form: formed_spec(spec, formed_bundle, form) for form in (ATTENTION, QUERIES_KEYS)}
    assert specs[ATTENTION].key != specs[QUERIES_KEYS].key
    assert "form queries_keys" in specs[QUERIES_KEYS].purpose
    assert "form" not in specs[ATTENTION].purpose
    root = formed_bundle.folder / "plans"
    folders = {ATTENTION: put(specs[ATTENTION], root)}
    assert find_plan(formed_bundle, "tensorrt-rtx", HERE).folder == folders[ATTENTION]
    folders[QUERIES_KEYS] = put(specs[QUERIES_KEYS], root)
    assert find_plan(formed_bundle, "tensorrt-rtx", HERE).folder == folders[QUERIES_KEYS]
    for form, folder in folders.items():
        assert find_plan(formed_bundle, "tensorrt-rtx", HERE, (form,)).folder == folder
    assert all(problem is None for _, problem in verify_plans(formed_bundle))


def test_a_plan_of_a_form_that_is_not_wanted_is_refused_with_the_command(formed_bundle, spec):
    put(formed_spec(spec, formed_bundle, QUERIES_KEYS), formed_bundle.folder / "plans")
    with pytest.raises(
        PlanError, match=r"has the form queries_keys, and attention is wanted here; .*--form attention$"
    ):
        find_plan(formed_bundle, "tensorrt-rtx", HERE, (ATTENTION,))


def test_a_plan_of_a_form_that_the_bundle_lacks_is_of_other_graphs(formed_bundle, spec):
    other = formed_spec(spec, formed_bundle, QUERIES_KEYS)
    graphs = {n: structs.replace(g, forms={}) for n, g in formed_bundle.manifest.graphs.items()}
    write_manifest(formed_bundle.folder, structs.replace(formed_bundle.manifest, graphs=graphs))
    assert list(mismatches(other, Bundle.open(formed_bundle.folder), HERE)) == [
        "was built from other graphs than the bundle has now"
    ]


def test_inspect_shows_the_forms_of_graphs_and_plans(formed_bundle, spec):
    put(formed_spec(spec, formed_bundle, QUERIES_KEYS), formed_bundle.folder / "plans")
    facts = inspect_bundle(formed_bundle)
    assert facts.graphs["vae_encoder"].forms == {}
    form = facts.graphs["unet"].forms[QUERIES_KEYS]
    assert form.file == "unet.queries_keys.onnx"
    assert [tensor.name for tensor in form.outputs] == ["queries_8", "keys_8", "queries_4", "keys_4"]
    assert [plan.form for plan in facts.plans] == [QUERIES_KEYS]
    text = [item for item in bundle_tables(facts) if isinstance(item, str)]
    assert any(line.startswith("unet, form queries_keys: ") for line in text)


def test_a_record_that_was_altered_is_refused(fake_bundle, spec):
    """Otherwise a plan that was built for another GPU would be used."""
    folder = put(spec, fake_bundle.folder / "plans")
    (folder / RECORD).write_text((folder / RECORD).read_text().replace('"8.6"', '"12.0"'))
    with pytest.raises(PlanError, match="holds the record of another plan"):
        Plan.open(folder)


def test_a_record_names_the_two_graphs_alone(fake_bundle, spec):
    folder = put(spec, fake_bundle.folder / "plans")
    record = json.loads((folder / RECORD).read_text())
    record["files"]["../../secret"] = record["files"]["unet"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(PlanError, match="holds the record of another plan"):
        Plan.open(folder)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 to 5, found 6"):
        BuildOptions(optimization_level=6)
    with pytest.raises(ValueError, match="0 to 5, found -1"):
        BuildOptions(optimization_level=-1)
    assert [BuildOptions(optimization_level=level).optimization_level for level in range(6)] == list(range(6))


def test_options_are_given_back_as_arguments():
    options = BuildOptions(5, hardware_compatibility="ampere-plus", strip_weights=True)
    assert options.arguments() == [
        "--optimization-level", "5", "--hardware-compatibility", "ampere-plus", "--strip-weights",
    ]  # fmt: skip
    assert BuildOptions().arguments() == []
    assert BuildOptions(2).arguments() == ["--optimization-level", "2"]
    assert BuildOptions(hardware_compatibility="none", version_compatible=True).arguments() == ["--version-compatible"]


def test_a_record_has_the_number_of_its_schema(fake_bundle, spec):
    folder = put(spec, fake_bundle.folder / "plans")
    assert json.loads((folder / RECORD).read_text())["schema"] == 1


def test_a_profile_may_have_one_axis_and_not_none(spec):
    one = {"x": dict.fromkeys(("min", "opt", "max"), (2,))}
    assert structs.replace(spec, profiles={"unet": one}).profiles["unet"] == one
    none = {"x": dict.fromkeys(("min", "opt", "max"), ())}
    mixed = {"x": {"min": (1,), "opt": (1,), "max": (1, 2)}}
    for profiles in ({"unet": none}, {"unet": mixed}):
        with pytest.raises(ValueError, match="of the same length"):
            structs.replace(spec, profiles=profiles)
    with pytest.raises(ValueError, match="at least one input"):
        structs.replace(spec, profiles={"unet": {}})


def test_plans_lie_in_the_bundle_where_it_can_be_written(fake_bundle):
    assert plans_folder(fake_bundle) == fake_bundle.folder / "plans"
    assert list(fake_bundle.verify()) == [(name, None) for name in fake_bundle.manifest.files]


def test_plans_of_a_bundle_that_cannot_be_written_lie_in_the_cache(fake_bundle, spec, cache):
    (fake_bundle.folder / "plans").write_text("in the way, as a read-only disk would be")
    assert plans_folder(fake_bundle) == cache / "plans"
    folder = put(spec, cache / "plans")
    put(structs.replace(spec, content=spec.content | {"unet": "0" * 64}), cache / "plans")  # another bundle's
    (cache / "plans" / "broken").mkdir()
    assert [f for f, _ in list_plans(fake_bundle)] == [folder]
    assert find_plan(fake_bundle, "tensorrt-rtx", HERE).folder == folder


def test_plans_of_an_embedded_bundle_lie_in_it_where_it_can_be_written(models):
    tiny = open_bundle("tiny")
    assert plans_folder(tiny) == models / "tiny" / "plans"
    assert list(tiny.verify()) == [(name, None) for name in tiny.manifest.files]
    assert build_command(tiny, "tensorrt-rtx") == "diffseg build tiny --engine tensorrt-rtx"


def test_plans_of_an_embedded_bundle_that_cannot_be_written_lie_in_the_cache(models, cache):
    (models / "tiny" / "plans").write_text("in the way, as a read-only disk would be")
    assert plans_folder(open_bundle("tiny")) == cache / "plans"


def test_git_does_not_see_the_plans_of_an_embedded_bundle():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a clone, and git")
    for name in ("key/plan.json", "key/unet.plan", ".key.lock"):
        subprocess.run([git, "check-ignore", "--quiet", f"engines/models/tiny/plans/{name}"], cwd=ROOT, check=True)


def test_the_wheel_has_no_plans(tmp_path):
    pytest.importorskip("setuptools")
    for name in ("engines", "export", "runtime"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    plan = tmp_path / "engines" / "models" / "tiny" / "plans" / "key" / "unet.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)
    for path in (plan, plan.parents[1] / ".key.lock"):
        path.write_text("a plan")
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert "diffseg/engines/models/tiny/manifest.json" in names
    assert not [name for name in names if "/plans/" in name]


def test_the_cache_is_the_platform_s_unless_named(monkeypatch):
    monkeypatch.delenv("DIFFSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert cache_folder().name == "diffseg"
    monkeypatch.setenv("DIFFSEG_CACHE", "~/plans")
    assert cache_folder() == Path.home() / "plans"


def test_verify_tells_damaged_and_outdated_plans(fake_bundle, spec):
    folder = put(spec, fake_bundle.folder / "plans")
    assert {problem for _, problem in verify_plans(fake_bundle)} == {None}
    (folder / "unet.plan").write_bytes(b"")
    assert dict(verify_plans(fake_bundle))[f"plans/{spec.key}/unet.plan"] == "0 bytes, expected 200"
    (fake_bundle.folder / "unet.onnx").write_bytes(b"exported again")
    write_manifest(fake_bundle.folder, fake_bundle.manifest)
    again = Bundle.open(fake_bundle.folder)
    assert "other graphs" in dict(verify_plans(again))[f"plans/{spec.key}"]
