"""A bundle for both kinds of methods."""

import json
import pickle

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.annotation.segmenters import load_segmenter
from diffseg.engines.bundle.bundle import Bundle, open_bundle
from diffseg.engines.bundle.manifest import FEATURES, UNET
from diffseg.engines.bundle.methods import has_both
from diffseg.engines.errors import BundleError
from diffseg.engines.inspect import inspect_bundle
from diffseg.measure.evaluate.methods import Method as Evaluated
from diffseg.scale.options import BatchOptions
from diffseg.scale.worker import SegmentWorker

from tests.commands import diffseg
from tests.engines.toy import make_both_toy, make_features_toy, make_toy


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make_both_toy(tmp_path_factory.mktemp("bundles") / "both")


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """The same networks in bundles of their own, by method."""
    folder = tmp_path_factory.mktemp("singles")
    return {"diffseg": make_toy(folder / "attention"), "diffcut": make_features_toy(folder / "features")}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def test_a_view_is_like_a_bundle_of_its_own(both, singles):
    assert has_both(both.manifest)
    assert both.manifest.methods == ("diffseg", "diffcut")
    for view, (method, single) in zip(both.views, singles.items(), strict=True):
        found, expected = view.manifest, single.manifest
        assert not has_both(found)
        assert (found.methods, found.defaults, found.attention) == ((method,), expected.defaults, expected.attention)
        assert found.features == expected.features
        assert found.graphs[UNET].tensors == expected.graphs[UNET].tensors
        assert found.timestep == {"diffseg": 300, "diffcut": 50}[method]
        assert view.for_method() == view
        assert view.views == (view,)
        found.check()
    assert both.views[1].manifest.graphs[UNET].file == "unet.features.onnx"
    assert singles["diffcut"].views == (singles["diffcut"],)


@pytest.mark.parametrize("method", ["diffseg", "cut", "diffcut"])
def test_each_method_has_the_masks_of_its_own_bundle(both, singles, image, method):
    segmenter = Segmenter.load(both.folder, provider="cpu", method=method)
    single = singles["diffcut" if method == "diffcut" else "diffseg"]
    expected = Segmenter.load(single.folder, provider="cpu")(image, method=method)
    result = segmenter(image)
    assert result.settings == expected.settings
    assert result.settings.method == method
    np.testing.assert_array_equal(result.labels, expected.labels)
    again = pickle.loads(pickle.dumps(segmenter))  # noqa: S301
    np.testing.assert_array_equal(again(image).labels, expected.labels)


def test_the_first_method_is_the_default(tmp_path, both, image):
    assert Segmenter.load(both.folder, provider="cpu")(image).settings.method == "diffseg"
    other = make_both_toy(tmp_path / "other", "diffcut")
    assert Segmenter.load(other.folder, provider="cpu")(image).settings.method == "diffcut"
    assert [view.manifest.methods for view in other.views] == [("diffcut",), ("diffseg",)]
    assert other.for_method("cut").manifest.defaults.tau == 0.45
    assert load_segmenter(other.folder, "cpu").settings.method == "diffseg"  # annotation tools need attention


def test_a_method_without_a_network_is_refused(both, singles, image):
    with pytest.raises(ValueError, match="method must be one of diffseg, cut, found 'diffcut'.*load a bundle"):
        Segmenter.load(both.folder, provider="cpu")(image, method="diffcut")
    with pytest.raises(ValueError, match="method must be one of diffcut, found 'cut'"):
        Segmenter.load(singles["diffcut"].folder, provider="cpu", method="cut")


def test_refinement_that_the_other_kind_lacks_is_left_out(both, tmp_path):
    manifest = json.loads((both.folder / "manifest.json").read_text())
    manifest["defaults"] |= {"refine": "kmeans", "method": "cut"}
    folder = make_both_toy(tmp_path / "both").folder
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(folder, "diffcut").manifest.defaults.refine == "none"
    assert open_bundle(folder).manifest.defaults.refine == "kmeans"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(features=None), "needs both methods, and 'features' with a timestep"),
        (lambda m: m["features"].update(timestep=None), "needs both methods, and 'features' with a timestep"),
        (lambda m: m.update(methods=["diffseg"]), "needs both methods"),
        (lambda m: m["features"].update(channels=17), "the form features of unet has other tensors than 'features'"),
        (lambda m: m["graphs"]["unet"]["forms"].update(odd=m["graphs"]["unet"]["forms"]["features"]), "unknown form"),
        (lambda m: m["graphs"]["unet"]["forms"]["features"].update(file="../x"), "not a path inside the bundle"),
    ],
)
def test_inconsistent_manifests(both, tmp_path, change, message):
    folder = make_both_toy(tmp_path / "both").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_batches_take_the_method(both, image):
    options = BatchOptions(model=str(both.folder), provider="cpu", method="diffcut")
    assert options.describe()["settings"]["method"] == "diffcut"
    worker = SegmentWorker(str(both.folder), provider="cpu", method="diffcut")
    assert worker.settings.method == "diffcut"
    assert worker.segmenter(image).settings.method == "diffcut"


def test_inspection_and_verification_cover_both(both, tmp_path):
    facts = inspect_bundle(both)
    assert list(facts.graphs[UNET].forms) == [FEATURES]
    shown = diffseg("inspect", both.folder)
    assert "unet, form features" in shown.stdout
    checked = diffseg("verify", both.folder)
    assert checked.returncode == 0, checked.stderr
    assert "ok      unet.features.onnx" in checked.stdout
    folder = make_both_toy(tmp_path / "both").folder
    (folder / "unet.features.onnx").write_bytes((folder / "unet.features.onnx").read_bytes()[:-1] + b"x")
    checked = diffseg("verify", folder)
    assert checked.returncode == 1
    assert "unet.features.onnx" in checked.stderr


def test_commands_take_the_method(both, tmp_path, image):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "photo.png")
    for method in ("diffcut", "cut"):
        out = tmp_path / method
        done = diffseg("segment", tmp_path / "photo.png", "-m", both.folder, "-o", out, "--method", method)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "photo.png.json").read_text())["settings"]["method"] == method
    done = diffseg("segment", tmp_path / "photo.png", "-m", "tiny", "--method", "diffcut")
    assert done.returncode == 2
    assert "method must be one of diffseg, cut, found 'diffcut'" in " ".join(done.stderr.split())
    done = diffseg(
        *("profile", both.folder, tmp_path / "photo.png", "--method", "diffcut", "--json"),
        *("--runs", 2, "--warmup", 0, "--starts", 1, "--no-operators", "--provider", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["settings"]["method"] == "diffcut"
    assert "cut" in record["seconds"]


def test_an_evaluation_chooses_the_network_by_its_methods(both, tmp_path):
    from tests.layouts import make_voc

    voc = make_voc(tmp_path / "voc")
    words = ("evaluate", voc, "--model", both.folder, "--limit", 1, "--protocol", "full")
    for methods, columns in (("diffcut", ["diffcut 0.5"]), ("cut,superpixels", ["cut 0.45", "superpixels"])):
        out = tmp_path / methods
        done = diffseg(*words, "--methods", methods, "-o", out)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "report.json").read_text())["columns"] == columns
    done = diffseg(*words, "--methods", "diffcut,cut", "-o", tmp_path / "mixed")
    assert done.returncode == 2
    assert "evaluate diffcut in a run of its own" in " ".join(done.stderr.replace("│", "").split())
    assert Evaluated.DIFFCUT.needs_features
