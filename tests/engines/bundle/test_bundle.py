"""Reading, writing and verifying bundles, and the errors for damaged ones."""

import json
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
from diffseg.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from diffseg.engines.errors import BundleError, BundleNotFoundError, DiffsegError
from diffseg.engines.strict_json import MAX_BYTES, is_safe_name
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


CHANGES = {
    "schema 2, this version of diffseg reads 1": lambda m: m.update(schema=2),
    "schema None": lambda m: m.pop("schema"),
    "'timestep' is missing": lambda m: m.pop("timestep"),
    "timestep must be int, found '300'": lambda m: m.update(timestep="300"),
    "timestep must be int, found True": lambda m: m.update(timestep=True),
    "latent_scale must be float, found nan": lambda m: m.update(latent_scale=float("nan")),
    "precision must be one of fp32, fp16, bf16": lambda m: m.update(precision="fp8"),
    "image_size must be a list of 2": lambda m: m.update(image_size=[64]),
    "source must be an object": lambda m: m.update(source=[]),
    "needs 1 ≤ min ≤ opt ≤ max": lambda m: m["graphs"]["unet"]["tensors"]["inputs"][0]["axes"][0].update(min=9),
    "graphs must be": lambda m: m["graphs"].pop("unet"),
    "the outputs of unet differ": lambda m: m["attention"].pop(),
    "not \\(batch, n², n²\\)": lambda m: m["attention"][0].update(grid=[8, 9]),
    "input of vae_encoder": lambda m: m.update(image_size=[64, 128]),
    "finest grid first": lambda m: (
        [m[k].reverse() for k in ("attention",)] and m["graphs"]["unet"]["tensors"]["outputs"].reverse()
    ),
    "anchors must be at least 1": lambda m: m["defaults"].update(anchors=0),
    "has no size and hash": lambda m: m["files"].pop("unet.onnx"),
    "'../unet.onnx' is no path inside": lambda m: m["graphs"]["unet"].update(file="../unet.onnx"),
    "'/etc/passwd' is no path inside": lambda m: m["files"].update({"/etc/passwd": {"sha256": "", "bytes": 1}}),
    "'a/../../b' is no path inside": lambda m: m["graphs"]["unet"].update(external_data=["a/../../b"]),
    "is no path inside": lambda m: m["files"].update({"c:\\x": {"sha256": "", "bytes": 1}}),
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
        (b"[1]", "schema None"),
        (b"\xff\xfe", "not UTF-8"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, data, message):
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=message):
        read_manifest(tmp_path)


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
    with pytest.raises(BundleError, match="is no bundle"), new_bundle(tmp_path, overwrite=True):
        pass
    with pytest.raises(BundleError, match="is no bundle"), new_bundle(tmp_path / "thesis.txt", overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years"
