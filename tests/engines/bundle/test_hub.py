"""Hub ids, loaded from a hub cache on disk without downloads."""

from pathlib import Path

import pytest
from diffseg import Segmenter
from diffseg.engines.bundle.bundle import MODELS, open_bundle
from diffseg.engines.bundle.hub import is_hub_id, snapshot
from diffseg.engines.errors import BundleError, BundleNotFoundError
from diffseg.engines.examples import example_images

huggingface_hub = pytest.importorskip("huggingface_hub")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch, fake_bundle):
    """The cache that huggingface-hub would have after a download: blobs, and links to them."""
    repository = tmp_path / "hub" / "models--someone--bundle"
    folder, blobs = repository / "snapshots" / REVISION, repository / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in fake_bundle.folder.iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (folder / path.name).symlink_to(blobs / path.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("a/b", True),
        ("a-b/c.d@main", True),
        ("tiny", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("~/a", False),
    ],
)
def test_what_looks_like_a_hub_id(name, answer):
    assert is_hub_id(name) is answer


def test_a_cached_repository_needs_no_network(cache):
    found = snapshot("someone/bundle", ["*"])
    assert found.revision == REVISION
    assert found.folder.samefile(cache)
    assert snapshot(f"someone/bundle@{REVISION}", ["*"]).folder.samefile(cache)


@pytest.mark.usefixtures("cache")
def test_a_bundle_opens_by_hub_id():
    assert open_bundle("someone/bundle").manifest.name == "fake"


@pytest.mark.usefixtures("cache")
def test_what_is_not_in_the_cache_is_one_clear_line():
    with pytest.raises(BundleNotFoundError, match="not in the hub's cache") as caught:
        snapshot("someone/else", ["*"])
    assert "\n" not in str(caught.value)


def test_an_interrupted_download_is_not_taken_for_a_whole_one(cache, monkeypatch):
    (cache / "unet.onnx").unlink()
    honest, asked = huggingface_hub.snapshot_download, []

    def watched(**options):
        if not options.get("local_files_only"):
            asked.append(options["allow_patterns"])
        return honest(**options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", watched)
    with pytest.raises(BundleError, match="unet.onnx is missing"):  # the network is off
        open_bundle("someone/bundle")
    assert ["unet.onnx" in patterns for patterns in asked] == [True]


@pytest.mark.usefixtures("cache")
def test_errors_of_the_transport_are_one_clear_line(monkeypatch):
    def fail(**_):
        raise ConnectionAbortedError("proxy\nsays no")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(BundleNotFoundError, match=r"\(proxy\)"):
        snapshot("someone/bundle", ["*"])


def test_the_embedded_model_runs_from_a_hub_cache(cache):
    """A cache holds links to blobs; ONNX Runtime must follow those."""
    blobs = cache.parents[1] / "blobs"
    for path in (*cache.iterdir(), *blobs.iterdir()):
        path.unlink()
    for path in filter(Path.is_file, (MODELS / "tiny").iterdir()):
        (blobs / path.name).write_bytes(path.read_bytes())
        (cache / path.name).symlink_to(blobs / path.name)
    result = Segmenter.load("someone/bundle", provider="cpu")(example_images()[0])
    assert len(result.segments) > 1
