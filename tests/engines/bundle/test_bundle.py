"""Reading, writing and verifying bundles, and the errors for damaged ones."""

import json
import os
import time
from pathlib import Path

import pytest
from diffseg.engines.bundle.bundle import (
    Bundle,
    embedded_models,
    find_bundle,
    new_bundle,
    open_bundle,
    write_manifest,
)
from diffseg.engines.bundle.manifest import MANIFEST, QUERIES_KEYS, UNET, Manifest, is_safe_name, read_manifest
from diffseg.engines.bundle.settings import MAX_ROUNDS
from diffseg.engines.errors import BundleError, BundleNotFoundError, DiffsegError
from diffseg.engines.records import MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st


def edit(bundle, change):
    path = bundle.folder / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_manifest_survives_the_round_trip(fake_bundle):
    assert Manifest.from_json(fake_bundle.manifest.to_json()) == fake_bundle.manifest


def test_fields_of_newer_versions_are_passed_over(fake_bundle):
    edit(fake_bundle, lambda m: m.update(novelty=1) or m["defaults"].update(smoothing=2))
    assert Bundle.open(fake_bundle.folder).manifest == fake_bundle.manifest


def test_content_hash_covers_external_data_and_nothing_else(fake_bundle):
    before = {g: fake_bundle.content_hash(g) for g in ("unet", "vae_encoder")}
    (fake_bundle.folder / "unet.onnx.data").write_bytes(b"other weights")
    write_manifest(fake_bundle.folder, fake_bundle.manifest)
    after = Bundle.open(fake_bundle.folder)
    assert after.content_hash("unet") != before["unet"]
    assert after.content_hash("vae_encoder") == before["vae_encoder"]


def test_verify_names_each_file_and_what_is_wrong(fake_bundle):
    folder = fake_bundle.folder
    assert dict(fake_bundle.verify()) == {"unet.onnx": None, "unet.onnx.data": None, "vae_encoder.onnx": None}
    data = bytearray((folder / "unet.onnx.data").read_bytes())
    data[7] ^= 1
    (folder / "unet.onnx.data").write_bytes(data)
    (folder / "vae_encoder.onnx").unlink()
    (folder / "unet.onnx").write_bytes(b"short")
    (folder / "sneaked.data").write_bytes(b"x")
    (folder / "plans").mkdir()
    (folder / "plans" / "engine").write_bytes(b"x")
    found = dict(fake_bundle.verify())
    assert found["unet.onnx.data"].startswith("sha256")
    assert found["vae_encoder.onnx"] == "missing"
    assert found["unet.onnx"] == "5 bytes, expected 900"
    assert found["sneaked.data"] == "not in the manifest"
    assert "plans/engine" not in found


def test_opening_checks_names_and_sizes(fake_bundle):
    (fake_bundle.folder / "unet.onnx.data").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"unet.onnx.data has 5 bytes, expected 1400"):
        Bundle.open(fake_bundle.folder)
    (fake_bundle.folder / "unet.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"unet.onnx.data is missing"):
        Bundle.open(fake_bundle.folder)


def graph(manifest):
    return manifest["graphs"]["unet"]


def axis(manifest):
    return graph(manifest)["tensors"]["inputs"][0]["axes"][1]


CHANGES = {
    "schema 3, this version of diffseg reads 1 and 2": lambda m: m.update(schema=3),
    "schema true, this version": lambda m: m.update(schema=True),
    "schema null": lambda m: m.pop("schema"),
    "manifest.json: 'timestep' is missing": lambda m: m.pop("timestep"),
    'timestep must be a whole number, found "300"': lambda m: m.update(timestep="300"),
    "timestep must be a whole number, found true": lambda m: m.update(timestep=True),
    "not JSON: invalid character in line 1, column": lambda m: m.update(latent_scale=float("nan")),
    "precision must be one of fp32, fp16, bf16": lambda m: m.update(precision="fp8"),
    "image_size must be a list of 2": lambda m: m.update(image_size=[64]),
    "source must be an object": lambda m: m.update(source=[]),
    "needs 1 ≤ min ≤ opt ≤ max": lambda m: m["graphs"]["unet"]["tensors"]["inputs"][0]["axes"][0].update(min=9),
    "graphs must be": lambda m: m["graphs"].pop("unet"),
    "the outputs of unet differ": lambda m: m["attention"].pop(),
    "not \\(batch, n², n²\\)": lambda m: m["attention"][0].update(grid=[8, 9]),
    "input of vae_encoder": lambda m: m.update(image_size=[64, 128]),
    "unet must have one input, found 0": lambda m: graph(m)["tensors"].update(inputs=[]),
    "finest grid first": lambda m: (
        [m[k].reverse() for k in ("attention",)] and m["graphs"]["unet"]["tensors"]["outputs"].reverse()
    ),
    "anchors must be at least 1": lambda m: m["defaults"].update(anchors=0),
    "has no size and hash": lambda m: m["files"].pop("unet.onnx"),
    "'../unet.onnx' is not a path inside": lambda m: m["graphs"]["unet"].update(file="../unet.onnx"),
    "'/etc/passwd' is not a path inside": lambda m: m["files"].update({"/etc/passwd": {"sha256": "", "bytes": 1}}),
    "'a/../../b' is not a path inside": lambda m: m["graphs"]["unet"].update(external_data=["a/../../b"]),
    "'' is not a path inside": lambda m: graph(m).update(file=""),
    "manifest.json: '' is not a path": lambda m: graph(m).update(external_data=[""]),
    ": '' is not a path inside the": lambda m: graph(m).update(cpu_file=""),
    "'x{60}'… is not a path inside": lambda m: m["files"].update({"x" * 256: {"sha256": "", "bytes": 1}}),
    "is not a path inside": lambda m: m["files"].update({"c:\\x": {"sha256": "", "bytes": 1}}),
    r"axis \"x - at `\$\.q\"|axis 'x - at": lambda m: axis(m).update(name="x - at `$.q`", min=9),
    "'graphs.unet.opset' is missing": lambda m: graph(m).pop("opset"),
    'graphs.unet.opset must be a whole number, found "18"': lambda m: graph(m).update(opset="18"),
    "graphs.unet.opset must be a whole number, found 18.0": lambda m: graph(m).update(opset=18.0),
    "graphs.unet.opset must be a whole number of at least 1, found 0": lambda m: graph(m).update(opset=0),
    "graphs.unet.file must be text, found 3": lambda m: graph(m).update(file=3),
    'graphs.unet.external_data must be a list, found "x"': lambda m: graph(m).update(external_data="x"),
    "graphs.unet.flops must be a whole number of at least 0, found -1": lambda m: graph(m).update(flops=-1),
    r"graphs.unet.flops must be a whole number of at most \d+, found 1000": lambda m: graph(m).update(flops=10**30),
    "graphs.unet.layers.Add.float16 must be a whole number": lambda m: graph(m).update(
        layers={"Mul": {"float16": 1}, "Add": {"float32": 1, "float16": None}}
    ),
    r"graphs.unet.tensors.inputs\[0\].axes\[1\].name must be text, found null": lambda m: axis(m).update(name=None),
    r"axes\[1\].max must be a whole number of at most": lambda m: axis(m).update(max=2**40),
    r"inputs\[0\]: tensor 'latent' has more than": lambda m: [
        a.update(max=2**31 - 1) for a in graph(m)["tensors"]["inputs"][0]["axes"]
    ],
    "dtype must be one of uint8, float16, bfloat16, float32": lambda m: graph(m)["tensors"]["inputs"][0].update(
        dtype="f"
    ),
    "source.licence must be text or null, found false": lambda m: m["source"].update(licence=False),
    "latent_scale must be a number above 0, found 0": lambda m: m.update(latent_scale=0),
    "latent_scale must be a number, found 1000": lambda m: m.update(latent_scale=10**400),
    "timestep must be a whole number of at least 0, found -1": lambda m: m.update(timestep=-1),
    r"image_size\[1\] must be a whole number of at least 1": lambda m: m.update(image_size=[64, -64]),
    r"attention\[0\].grid\[0\] must be a whole number of at least 1": lambda m: m["attention"][0].update(grid=[-8, -8]),
    r"attention\[0\].grid\[1\] must be a whole number of at most 1024": lambda m: m["attention"][0].update(
        grid=[8, 10**9]
    ),
    "at most 64 thresholds are possible, one per round, found 65": lambda m: m["defaults"].update(
        thresholds=[1.0] * (MAX_ROUNDS + 1)
    ),
    "defaults: threshold must be a number of at least 0": lambda m: m["defaults"].update(thresholds=[-1.0]),
    "defaults.refine must be one of none, kmeans, colour, pamr, found": lambda m: m["defaults"].update(refine="x"),
    r'parity\["latent x"\].worst must be a number, found "0"': lambda m: m.update(parity={"latent x": {"worst": "0"}}),
    r'files\["unet.onnx"\].bytes must be a whole number of at least 0': lambda m: m["files"]["unet.onnx"].update(
        bytes=-1
    ),
    "the sha256 of unet.onnx must be 64 hexadecimal digits": lambda m: m["files"]["unet.onnx"].update(sha256="0"),
    r'name contains a control character, found "a\\nb"': lambda m: m.update(name="a\nb"),
    r'source.licence contains a control character, found "\\u001b\[2J"': lambda m: m["source"].update(
        licence="\x1b[2J"
    ),
    r'versions contains a control character, found "\\u2028"': lambda m: m["versions"].update({"\u2028": "1"}),
    "not JSON: .*surrogate": lambda m: m["source"].update(licence="\ud800 and more text"),
    "name must be 1 to 64 letters, digits, dots, hyphens and underscores, found ''": lambda m: m.update(name=""),
    r"name must be 1 to 64 .* found '\.\./x'": lambda m: m.update(name="../x"),
    r"name must be 1 to 64 .* found '\.\.'": lambda m: m.update(name=".."),
    "name must be 1 to 64 .* found 'x{65}'": lambda m: m.update(name="x" * 100),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_wrong_manifest_is_refused(fake_bundle, message):
    edit(fake_bundle, CHANGES[message])
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(fake_bundle.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "schema null"),
        (b"\xff\xfe", "not UTF-8"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema": 1, "latent_scale": 1e999}', "contains a number that is out of range"),
        (b'{"schema": 1, "timestep": ' + b"9" * 5000 + b"}", "contains a number that is out of range"),
        (b'{\n "schema": 1,\n "name": \'x\'}', "invalid character in line 3, column 10;"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, data, message):
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=message) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_a_regular_file_is_read(tmp_path, make):
    make(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match="is not a regular file; export the bundle again"):
        read_manifest(tmp_path)


def test_a_wrong_field_among_many_is_found_quickly(fake_bundle):
    versions = {f"package {i}": "1" for i in range(20_000)} | {"bad": 1} | {f"more {i}": "1" for i in range(10_000)}
    edit(fake_bundle, lambda m: m.update(versions=versions))
    start = time.perf_counter()
    with pytest.raises(BundleError, match="versions.bad must be text, found 1;"):
        read_manifest(fake_bundle.folder)
    assert time.perf_counter() - start < 5  # a search entry by entry takes minutes


def test_bundles_of_earlier_exports_still_open():
    """Every field that a later version added to schema 1 has a default."""
    value = json.loads((find_bundle("tiny") / MANIFEST).read_text())
    for added in ("parameters_dropped", "flops_dropped", "layers", "activation_bytes"):
        for graph in value["graphs"].values():
            graph.pop(added)
            graph.pop("forms", None)
    value["schema"] = 1
    for added in ("defaults", "versions", "parity"):
        value.pop(added)
    manifest = Manifest.from_json(json.dumps(value))
    graph = manifest.graphs["unet"]
    assert (graph.parameters_dropped, graph.flops_dropped, graph.activation_bytes) == (0, 0, 0)
    assert graph.layers == {}
    assert manifest.graphs["unet"].forms == {}
    assert manifest.defaults.thresholds == (1.0, 1.0, 1.0)


def test_a_form_is_found_by_its_name(formed_bundle):
    form = formed_bundle.graph(UNET, QUERIES_KEYS)
    assert [t.name for t in form.tensors.outputs] == ["queries_8", "keys_8", "queries_4", "keys_4"]
    assert [t.shape(2) for t in form.tensors.outputs[::2]] == [(2, 40, 64, 40), (2, 8, 16, 80)]
    assert form.tensors.outputs[0].nbytes(1) == 40 * 64 * 40 * 2
    assert formed_bundle.graph_path(UNET, QUERIES_KEYS).name == "unet.queries_keys.onnx"
    assert formed_bundle.content_hash(UNET, QUERIES_KEYS) != formed_bundle.content_hash(UNET)
    assert formed_bundle.graph(UNET) is formed_bundle.manifest.graphs[UNET]
    assert [problem for _, problem in formed_bundle.verify()] == [None] * 4


def test_a_bundle_without_the_form_says_so(fake_bundle):
    assert not fake_bundle.has_form(UNET, QUERIES_KEYS)
    with pytest.raises(BundleError, match="unet has no form 'queries_keys'; export the bundle again"):
        fake_bundle.graph_path(UNET, QUERIES_KEYS)


def outputs_of(form):
    return form["tensors"]["outputs"]


BAD_FORMS = {
    "has no size and hash": lambda m, _: m["files"].pop("unet.queries_keys.onnx"),
    "'../x' is not a path inside": lambda _, form: form.update(file="../x"),
    "unet has an unknown form 'novelty'": lambda m, form: m["graphs"]["unet"]["forms"].update(novelty=form),
    "vae_encoder has an unknown form": lambda m, form: m["graphs"]["vae_encoder"].update(forms={"queries_keys": form}),
    "has other tensors than 'attention'": lambda _, form: outputs_of(form).reverse(),
    "has other tensors": lambda _, form: form["tensors"]["inputs"].clear(),
    "is not \\(batch, heads, n², width\\)": lambda _, form: outputs_of(form)[1]["axes"][1].update(min=9, opt=9, max=9),
    "queries and keys of the form queries_keys differ": lambda _, form: outputs_of(form)[1].update(dtype="float32"),
}


@pytest.mark.parametrize("message", BAD_FORMS)
def test_a_form_that_does_not_fit_is_refused(formed_bundle, message):
    value = json.loads((formed_bundle.folder / MANIFEST).read_text())
    BAD_FORMS[message](value, value["graphs"]["unet"]["forms"]["queries_keys"])
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_no_json_makes_the_reader_crash(value):
    with pytest.raises(BundleError):
        Manifest.from_json(json.dumps({"schema": 1, "name": "x", "graphs": value, "files": value}))


@given(st.text(max_size=12))
def test_safe_names_stay_inside(name):
    if is_safe_name(name):
        assert not name.startswith("/")
        assert ".." not in name.split("/")


def test_a_bundle_is_found_by_embedded_name_or_folder(fake_bundle, tmp_path):
    assert "tiny" in embedded_models()
    assert find_bundle("tiny").name == "tiny"
    assert open_bundle(fake_bundle.folder).manifest.name == "fake"
    with pytest.raises(BundleNotFoundError, match="no bundle 'nope'.*tiny") as caught:
        open_bundle("nope")
    assert isinstance(caught.value, DiffsegError)
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(BundleNotFoundError, match="has no manifest.json"):
        open_bundle(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "bundle"

    def fail_halfway():
        with new_bundle(target) as folder:
            (folder / "half").touch()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert list((tmp_path / "deep").iterdir()) == []
    with new_bundle(target) as folder:
        (folder / MANIFEST).write_text("{}")
        assert not target.exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["bundle"]
    with pytest.raises(BundleError, match="--force"), new_bundle(target):
        pass
    with new_bundle(target, overwrite=True) as folder:
        (folder / "new").touch()
    assert (target / "new").exists()


def test_the_current_folder_and_a_link_can_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with new_bundle(Path()) as folder:
        (folder / MANIFEST).write_text("first")
    assert (tmp_path / "here" / MANIFEST).read_text() == "first"
    with new_bundle(tmp_path / "link", overwrite=True) as folder:
        (folder / MANIFEST).write_text("second")
    assert (tmp_path / "here" / MANIFEST).read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "link"]


def test_only_a_bundle_is_ever_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(BundleError, match="is not a bundle"), new_bundle(tmp_path, overwrite=True):
        pass
    with pytest.raises(BundleError, match="is not a bundle"), new_bundle(tmp_path / "thesis.txt", overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years"
