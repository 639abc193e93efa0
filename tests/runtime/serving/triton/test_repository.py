"""Model repositories on disk: their contents, and the options that are rejected."""

import errno
import json
import os
import shutil
import sys

import pytest
from diffseg.cli import app as cli
from diffseg.engines.bundle.bundle import Bundle, write_manifest
from diffseg.engines.bundle.manifest import File
from diffseg.engines.errors import BundleError, PlanError, ProviderError
from diffseg.engines.tensorrt.plan import BuildOptions, Target
from diffseg.serving.triton.backend_models import BUNDLE
from diffseg.serving.triton.config import NETWORK, RepositoryOptions
from diffseg.serving.triton.platforms import Device, Platform
from diffseg.serving.triton.repository import write_repository
from msgspec.structs import replace

from tests.plans import plan_of


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "model_repository"


def listing(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ENSEMBLE = {
    "diffseg.json",
    "diffseg/config.pbtxt",
    "diffseg/1/.keep",
    "diffseg_resize/config.pbtxt",
    "diffseg_resize/1/manifest.json",
    "diffseg_resize/1/model.py",
    "diffseg_vae_encoder/config.pbtxt",
    "diffseg_unet/config.pbtxt",
    "diffseg_merge/config.pbtxt",
    "diffseg_merge/1/manifest.json",
    "diffseg_merge/1/model.py",
    "diffseg_merge/warmup/placement",
}


def test_an_ensemble_around_onnx_runtime(fake_bundle, repository):
    write_repository(fake_bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME))
    graphs = {"diffseg_vae_encoder/1/model.onnx", "diffseg_unet/1/model.onnx", "diffseg_unet/1/unet.onnx.data"}
    assert listing(repository) == ENSEMBLE | graphs
    for source, target in (
        ("vae_encoder.onnx", "diffseg_vae_encoder/1/model.onnx"),
        ("unet.onnx", "diffseg_unet/1/model.onnx"),
        ("unet.onnx.data", "diffseg_unet/1/unet.onnx.data"),  # the graph names it so
    ):
        assert (repository / target).samefile(fake_bundle.folder / source)
    record = json.loads((repository / "diffseg.json").read_text())
    assert record["content"] == {graph: fake_bundle.content_hash(graph) for graph in ("vae_encoder", "unet")}
    assert (repository / "diffseg_merge" / "warmup" / "placement").stat().st_size == 48


def test_an_ensemble_around_a_plan(fake_bundle, repository):
    plan = plan_of(fake_bundle)
    plan_of(fake_bundle, engine="tensorrt-rtx")
    write_repository(fake_bundle, repository, RepositoryOptions(Platform.TENSORRT))
    assert listing(repository) == ENSEMBLE | {"diffseg_vae_encoder/1/model.plan", "diffseg_unet/1/model.plan"}
    assert (repository / "diffseg_unet/1/model.plan").read_bytes() == (plan / "unet.plan").read_bytes()
    assert json.loads((repository / "diffseg.json").read_text())["plan"] == plan.name


def test_the_whole_bundle_with_its_plans(fake_bundle, repository, cache, tmp_path):
    plans = [plan_of(fake_bundle), plan_of(fake_bundle, tmp_path / "cache" / "plans", engine="tensorrt-rtx")]
    write_repository(fake_bundle, repository)
    inside = repository / "diffseg" / "1" / BUNDLE
    assert listing(repository / "diffseg" / "1") == {"model.py", *(f"{BUNDLE}/{name}" for name in listing(inside))}
    copied = Bundle.open(inside)
    assert copied.manifest == fake_bundle.manifest
    assert all(problem is None for _, problem in copied.verify())
    for plan in plans:
        assert listing(inside / "plans" / plan.name) == listing(plan)


def test_files_are_copied_where_they_cannot_be_linked(fake_bundle, repository, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_repository(fake_bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME))
    copied, source = repository / "diffseg_unet" / "1" / "model.onnx", fake_bundle.folder / "unet.onnx"
    assert copied.read_bytes() == source.read_bytes()
    assert not copied.samefile(source)


def test_a_link_of_a_hub_s_cache_is_not_linked_to(fake_bundle, repository, tmp_path):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    shutil.copytree(fake_bundle.folder, snapshot)
    graph, blob = snapshot / "unet.onnx", snapshot.parents[1] / "blobs" / "a1b2"
    blob.parent.mkdir()
    graph.rename(blob)
    graph.symlink_to(os.path.relpath(blob, graph.parent))
    write_repository(Bundle.open(snapshot), repository, RepositoryOptions(Platform.ONNXRUNTIME))
    placed = repository / "diffseg_unet" / "1" / "model.onnx"
    assert not placed.is_symlink()
    assert placed.samefile(blob)


VICTIM = b"known content"


@pytest.fixture
def victim(tmp_path):
    """A file outside the bundle, which nothing may change or have a second name for."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    yield path
    assert path.read_bytes() == VICTIM
    assert path.stat().st_nlink == 1


def sealed(bundle, **unet):
    """The bundle with other fields of its UNet, and with whatever its folder contains as its files."""
    graphs = dict(bundle.manifest.graphs)
    graphs["unet"] = replace(graphs["unet"], **unet)
    return Bundle(bundle.folder, write_manifest(bundle.folder, replace(bundle.manifest, graphs=graphs)))


@pytest.mark.parametrize("platform", [Platform.PYTHON, Platform.ONNXRUNTIME])
@pytest.mark.parametrize("file", ["unet.onnx", "vae_encoder.onnx", "unet.onnx.data"])
def test_a_link_that_leaves_the_bundle_is_refused(fake_bundle, repository, victim, platform, file):
    (fake_bundle.folder / file).unlink()
    (fake_bundle.folder / file).symlink_to(victim)
    with pytest.raises(BundleError, match=rf"{file} is a link that leaves the bundle, to .*victim; do not use"):
        write_repository(sealed(fake_bundle), repository, RepositoryOptions(platform))
    assert not repository.exists()


def test_a_link_to_a_folder_outside_is_refused(fake_bundle, repository, tmp_path):
    outside = tmp_path / "models--a--b" / "blobs"  # a hub's cache, but not the one that the bundle is in
    outside.mkdir(parents=True)
    (outside / "weights").write_bytes(VICTIM)
    (fake_bundle.folder / "sub").symlink_to(outside)
    files = fake_bundle.manifest.files | {"sub/weights": File.of(outside / "weights")}
    bundle = Bundle(fake_bundle.folder, replace(fake_bundle.manifest, files=files))
    with pytest.raises(BundleError, match="sub/weights is a link that leaves the bundle"):
        write_repository(bundle, repository)


def test_nothing_is_written_through_a_file_with_two_names(fake_bundle, repository, tmp_path):
    """The graph for CPUs is known content; external data of the same name in the repository would be copied onto it."""
    folder = fake_bundle.folder
    (folder / "unet.cpu.onnx").write_bytes(VICTIM)
    (folder / "model.onnx").write_bytes(b"the attacker's own content")
    bundle = sealed(fake_bundle, cpu_file="unet.cpu.onnx", external_data=("model.onnx",))
    with pytest.raises(BundleError, match=r"two files of the bundle would become model\.onnx of the repository"):
        write_repository(bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME))
    assert (folder / "unet.cpu.onnx").read_bytes() == VICTIM
    assert not repository.exists()


def listed(bundle, *names):
    """The bundle with further files under `files`, which a hostile manifest may name."""
    files = bundle.manifest.files | {name: File.of(bundle.folder / name) for name in names}
    return Bundle(bundle.folder, replace(bundle.manifest, files=files))


def test_files_of_a_bundle_do_not_take_the_place_of_ours(fake_bundle, repository):
    manifest = (fake_bundle.folder / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=r"two files of the bundle would become manifest\.json"):
        write_repository(listed(fake_bundle, "manifest.json"), repository)
    assert (fake_bundle.folder / "manifest.json").read_bytes() == manifest
    record = plan_of(fake_bundle) / "plan.json"
    before = record.read_bytes()
    with pytest.raises(BundleError, match=r"two files of the bundle would become plan\.json"):
        write_repository(listed(fake_bundle, f"plans/{record.parent.name}/plan.json"), repository)
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "platform"),
    [("plan.json", Platform.PYTHON), ("unet.plan", Platform.PYTHON), ("unet.plan", Platform.TENSORRT)],
)
def test_a_link_of_a_plan_that_leaves_the_bundle_is_refused(fake_bundle, repository, tmp_path, name, platform):
    path = plan_of(fake_bundle) / name
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=f"{name} is a link that leaves the bundle"):
        write_repository(fake_bundle, repository, RepositoryOptions(platform))
    assert (tmp_path / "outside").stat().st_nlink == 1


def test_external_data_outside_the_graph_s_folder(fake_bundle, repository):
    (fake_bundle.folder / "sub").mkdir()
    (fake_bundle.folder / "unet.onnx").rename(fake_bundle.folder / "sub" / "unet.onnx")
    bundle = sealed(fake_bundle, file="sub/unet.onnx")
    with pytest.raises(BundleError, match=r"unet.onnx.data is outside the folder of sub/unet.onnx"):
        write_repository(bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME))


def test_an_installation_shares_no_file_with_a_repository(tiny, repository):
    for platform in (Platform.ONNXRUNTIME, Platform.PYTHON):
        write_repository(tiny, repository, RepositoryOptions(platform), overwrite=True)
        assert {path.stat().st_nlink for path in repository.rglob("*") if path.is_file()} == {1}


def test_a_name_cannot_add_lines_to_a_configuration(fake_bundle, repository):
    manifest = replace(fake_bundle.manifest, name='x\nparameters { key: "EXECUTION_ENV_PATH" }')  # made without a file
    write_repository(Bundle(fake_bundle.folder, manifest), repository, RepositoryOptions(Platform.ONNXRUNTIME))
    for path in repository.rglob("config.pbtxt"):
        head, second, *_ = path.read_text().splitlines()
        assert head.endswith('from bundle x\\nparameters { key: "EXECUTION_ENV_PATH" } (fp32).')
        assert second.startswith("name:")


def test_only_our_own_repository_is_replaced(fake_bundle, repository):
    repository.mkdir()
    (repository / "config.pbtxt").touch()
    with pytest.raises(BundleError, match="exists and is not a model repository of diffseg"):
        write_repository(fake_bundle, repository, overwrite=True)
    shutil.rmtree(repository)
    write_repository(fake_bundle, repository)
    with pytest.raises(BundleError, match="with --force"):
        write_repository(fake_bundle, repository)
    write_repository(fake_bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME), overwrite=True)
    assert (repository / "diffseg_unet").is_dir()
    assert not (repository / "diffseg" / "1" / "model.py").exists()


def test_other_models_are_not_lost(fake_bundle, repository):
    write_repository(fake_bundle, repository)
    (repository / "resnet50").mkdir()
    with pytest.raises(BundleError, match="holds 'resnet50', too, which this command did not write"):
        write_repository(fake_bundle, repository, overwrite=True)
    assert (repository / "resnet50").is_dir()


@pytest.mark.parametrize("platform", [Platform.PYTHON, Platform.ONNXRUNTIME])
def test_a_damaged_bundle_is_not_served(fake_bundle, repository, platform):
    (fake_bundle.folder / "unet.onnx.data").write_bytes(b"UNET.ONNX.DATA" * 100)
    with pytest.raises(BundleError, match=r"unet.onnx.data is not as it was exported: sha256 .*; copy or export"):
        write_repository(fake_bundle, repository, RepositoryOptions(platform))
    assert list(repository.parent.iterdir()) == [fake_bundle.folder]  # nothing half-written stays


def test_a_damaged_plan_is_not_served(fake_bundle, repository):
    plan = plan_of(fake_bundle)
    (plan / "unet.plan").write_bytes(b"tenu" * 50)
    with pytest.raises(PlanError, match=r"unet.plan is not as it was built: .*; delete .* and build the plan again"):
        write_repository(fake_bundle, repository, RepositoryOptions(Platform.TENSORRT))
    assert not repository.exists()


def test_which_plan(fake_bundle, repository):
    def refused(message, plan=None):
        with pytest.raises(PlanError, match=message):
            write_repository(fake_bundle, repository, RepositoryOptions(Platform.TENSORRT), plan=plan)

    refused("no tensorrt plan; build one on the GPU that will serve it: diffseg build .*fake --engine tensorrt$")
    plan_of(fake_bundle, engine="tensorrt-rtx")
    plan_of(fake_bundle, content={"vae_encoder": "0" * 64, "unet": "0" * 64})
    refused("Triton does not read its tensorrt-rtx plans")
    one = plan_of(fake_bundle)
    refused("has no tensorrt plan 'other'; it has tensorrt-10.13.3.9-sm89", plan="other")
    plan_of(fake_bundle, target=Target(("9.0",), "NVIDIA H100", "13.0", "linux", "x86_64"))
    refused(r"has 2 tensorrt plans; name one with --plan: .*NVIDIA H100 \(9.0\)")
    write_repository(fake_bundle, repository, RepositoryOptions(Platform.TENSORRT), plan=one.name)
    assert json.loads((repository / "diffseg.json").read_text())["plan"] == one.name


def test_triton_s_backend_gets_a_plan_of_the_attention(formed_bundle, repository):
    """It has no kernel for queries and keys."""
    form = "queries_keys"
    profiles = {name: graph.tensors.profile() for name, graph in formed_bundle.graphs(form).items()}
    other = plan_of(formed_bundle, form=form, content=formed_bundle.contents(form), profiles=profiles)
    options = RepositoryOptions(Platform.TENSORRT)
    with pytest.raises(
        PlanError,
        match="no tensorrt plan of the form attention .Triton has no kernel for queries_keys.; .* --form attention$",
    ):
        write_repository(formed_bundle, repository, options)
    plan = plan_of(formed_bundle)
    write_repository(formed_bundle, repository, options)
    assert json.loads((repository / "diffseg.json").read_text())["plan"] == plan.name
    assert (repository / "diffseg_unet/1/model.plan").read_bytes() == (plan / "unet.plan").read_bytes()
    config = (repository / "diffseg_unet/config.pbtxt").read_text()
    assert "attention_8" in config
    assert "queries_8" not in config
    write_repository(formed_bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME), overwrite=True)
    assert (repository / "diffseg_unet/1/model.onnx").read_bytes() == (formed_bundle.folder / "unet.onnx").read_bytes()
    write_repository(formed_bundle, repository, overwrite=True)  # the whole bundle, in which diffseg itself chooses
    assert (repository / "diffseg/1" / BUNDLE / "plans" / other.name / "unet.plan").is_file()


def test_a_plan_without_weights_is_refused(fake_bundle, repository):
    plan_of(fake_bundle, options=BuildOptions(strip_weights=True))
    with pytest.raises(PlanError, match="--strip-weights, and Triton cannot restore the weights"):
        write_repository(fake_bundle, repository, RepositoryOptions(Platform.TENSORRT))


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_provider_that_needs_a_plan(fake_bundle, repository, engine):
    with pytest.raises(PlanError, match=f"has no {engine} plan; build one: diffseg build .* --engine {engine}$"):
        write_repository(fake_bundle, repository, RepositoryOptions(provider=engine))
    assert not repository.exists()
    plan_of(fake_bundle, engine=engine)
    write_repository(fake_bundle, repository, RepositoryOptions(provider=engine))


def test_a_precision_without_kernels(fake_bundle, repository):
    bundle = Bundle(
        fake_bundle.folder, write_manifest(fake_bundle.folder, replace(fake_bundle.manifest, precision="bf16"))
    )
    with pytest.raises(ProviderError, match="no CPU kernels, .*choose --device gpu"):
        write_repository(bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME))
    write_repository(bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME, device=Device.GPU))


def test_a_cpu_gets_the_graphs_for_cpus(fake_bundle, repository):
    folder, graphs = fake_bundle.folder, dict(fake_bundle.manifest.graphs)
    for name, graph in graphs.items():
        (folder / f"{name}.cpu.onnx").write_bytes(f"{name} in float32".encode())
        graphs[name] = replace(graph, cpu_file=f"{name}.cpu.onnx")
    bundle = Bundle(folder, write_manifest(folder, replace(fake_bundle.manifest, precision="bf16", graphs=graphs)))
    for device in Device:
        write_repository(bundle, repository, RepositoryOptions(Platform.ONNXRUNTIME, device=device), overwrite=True)
        for graph, model in NETWORK.items():
            expected = bundle.cpu_path(graph) if device is Device.CPU else bundle.graph_path(graph)
            assert (repository / model / "1" / "model.onnx").read_bytes() == expected.read_bytes()


def test_a_full_disk(fake_bundle, repository, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(BundleError, match="cannot write .*model_repository: No space left on device"):
        write_repository(fake_bundle, repository)
    assert list(repository.parent.iterdir()) == [fake_bundle.folder]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["diffseg", "triton", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    streams = capsys.readouterr()
    return ended.value.code, streams.out, streams.err


def test_command(fake_bundle, repository, monkeypatch, capsys):
    words = [fake_bundle.folder, "-o", repository, "--platform", "onnxruntime", "--batch", "2"]
    status, out, err = run(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "diffseg (ensemble): image, encoded → labels, segments",
        "diffseg_resize (python): image, encoded → pixels, placement",
        "diffseg_vae_encoder (onnxruntime_onnx): image → latent",
        "diffseg_unet (onnxruntime_onnx): latent → attention_8, attention_4",
        "diffseg_merge (python): attention_8, attention_4, pixels, placement → labels, segments",
        f"{repository}: tritonserver --model-repository {repository}",
    ]
    status, _, err = run(monkeypatch, capsys, *words)
    assert status == 1
    assert err.count("\n") == 1
    assert "--force" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--platform", "tensorrt"], 1, "error: bundle 'fake' has no tensorrt plan; build one"),
        (["--plan", "x"], 2, "a plan needs --platform tensorrt"),
        (["--batch", "5"], 2, "batch must be 1 to 4 for bundle 'fake', found 5"),
        (["--device", "gpu"], 2, "choose a provider"),
        (["--platform", "onnxruntime", "--provider", "cpu"], 2, "leave out the provider"),
        (["--platform", "tensorrt", "--device", "cpu"], 2, "runs on a GPU"),
    ],
)
def test_wrong_usage(fake_bundle, repository, monkeypatch, capsys, arguments, status, message):
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = run(monkeypatch, capsys, fake_bundle.folder, "-o", repository, *arguments)
    assert code == status
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not repository.exists()


def test_no_such_bundle(repository, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, "nowhere", "-o", repository)
    assert status == 1
    assert err.startswith("error: no bundle 'nowhere'")
