"""DiffCut's bundles and protocol in an evaluation."""

import json

import numpy as np
import pytest
from diffseg import Segmenter
from diffseg.arrays import to_host
from diffseg.engines.errors import BundleError
from diffseg.measure.evaluate import Evaluation, Method, Protocol, methods_of, open_datasets
from diffseg.measure.evaluate.matching import merge_background
from diffseg.measure.evaluate.predictions import refine_small
from diffseg.measure.evaluate.protocol import centre_crop, prepare, resize_corner
from diffseg.methods.assign import assign_concepts
from diffseg.methods.cut import recursive_normalized_cut
from diffseg.methods.pamr import pamr_refine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.commands import diffseg
from tests.engines.toy import make_features_toy
from tests.labelled import draw_sample


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of a bundle that returns features."""
    return make_features_toy(tmp_path_factory.mktemp("features") / "toy").folder


@pytest.fixture(scope="module")
def features(toy):
    return Segmenter.load(toy, provider="cpu")


@pytest.mark.parametrize("size", [(97, 64), (64, 96), (65, 65), (8, 11), (1, 5)])
def test_the_crop_is_a_pixel_below_the_shorter_side(size):
    array = np.arange(size[0] * size[1]).reshape(size)
    found = centre_crop(array)
    side = max(min(size) - 1, 1)
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    assert found.shape == (side, side)
    assert found[0, 0] == array[top, left]


def test_images_and_labels_are_resized_as_by_torchvision_and_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (99, 130, 3)).astype(np.uint8)
    truth = rng.integers(0, 20, (99, 130)).astype(np.uint8)
    picture, labels = prepare(Image.fromarray(pixels), truth, Protocol.DIFFCUT, (1024, 1024))
    crop = (slice(0, 98), slice(16, 114))  # round(0.5) and round(16)
    image = torch.from_numpy(pixels[crop].astype(np.float32)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(image, (1024, 1024), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(np.asarray(picture), expected[0].permute(1, 2, 0).numpy(), atol=0.501)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(truth[crop].astype(np.float32))[None, None], (1024, 1024), mode="nearest-exact"
    )
    small = torch.nn.functional.interpolate(large, (128, 128))
    np.testing.assert_array_equal(labels, small[0, 0].numpy().astype(np.uint8))


def test_labels_are_the_first_pixels_of_their_blocks():
    labels = np.arange(1024)[:, None] + np.zeros(1024, int)
    np.testing.assert_array_equal(resize_corner(labels, (128, 128))[:, 0], np.arange(0, 1024, 8))


def test_the_background_is_what_no_class_was_matched_to():
    truth = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]], np.uint8)  # 2 is the background
    labels = np.array([[0, 0, 3, 1, 1, 3, 3, 4, 5, 0]], np.uint16)
    found = merge_background(labels, truth, 2)
    np.testing.assert_array_equal(found, [[0, 0, 6, 1, 1, 6, 6, 6, 6, 0]])
    nothing = np.full_like(truth, 2)
    np.testing.assert_array_equal(merge_background(labels, nothing, 2), np.full_like(labels, 6))


CLASSES = 4


@given(
    hnp.arrays(np.uint8, (6, 6), elements=st.integers(0, CLASSES)),
    hnp.arrays(np.uint16, (6, 6), elements=st.integers(0, 7)),
)
def test_the_background_is_merged_as_in_the_reference(truth, labels):
    from scipy.optimize import linear_sum_assignment

    # The steps of DiffCut's evaluation, pixel by pixel: -1 is the background, which the first matching leaves out.
    columns = max(CLASSES, int(labels.max()) + 1)
    table = np.zeros((CLASSES, columns), int)
    for c, m in zip(truth.flat, labels.flat, strict=True):
        if c != CLASSES:
            table[c, m] += 1
    _, pairs = linear_sum_assignment(table, maximize=True)
    taken = {int(pairs[c]) for c in range(CLASSES) if table[c, pairs].max() > 0}
    expected = [m if m in taken else labels.max() + 1 for m in labels.flat]
    assert merge_background(labels, truth, CLASSES).reshape(-1).tolist() == expected


def test_pamr_and_its_median():
    median_filter = pytest.importorskip("scipy.ndimage").median_filter
    picture, truth = draw_sample(3, (256, 256))
    small = truth[::2, ::2].copy()
    small[:2] = 0
    small[40, 40] = 7  # numbers with gaps
    labels = (small * 3).astype(np.uint16)
    found = refine_small(labels, Image.fromarray(picture))
    members = np.unique(labels, return_inverse=True)[1].reshape(128, 128)
    image = picture.astype(np.float32).reshape(128, 2, 128, 2, 3).mean((1, 3)) / 255
    expected = median_filter(pamr_refine(members, image), 3)
    np.testing.assert_array_equal(found, expected)


def with_background(labelled, background):
    """The folder as a data set whose last class is a background."""
    from dataclasses import replace

    (dataset,) = open_datasets([labelled])
    return replace(dataset.limited(1), background=background)


def test_masks_of_features(labelled, features, tmp_path):
    run = Evaluation(
        [with_background(labelled, None)], (Method.DIFFCUT,), features, Protocol.DIFFCUT, tmp_path, taus=(0.5, 0.95)
    )
    assert [outcome.error for outcome in run] == [None]
    (sample,) = run.datasets[0].samples
    for column in run.columns:
        example = run.example(run.datasets[0], sample, column)
        values = features(example.image, keep_attention=True).attention.values
        regions = recursive_normalized_cut(values, column.settings.tau)
        np.testing.assert_array_equal(example.labels, to_host(assign_concepts(values, regions, (128, 128))))
    few, many = (run.records(run.datasets[0], column)[0].overlap.masks for column in run.columns)
    assert few < many


def test_whole_images_are_segmented_as_by_segment(labelled, features, tmp_path):
    run = Evaluation(
        [with_background(labelled, None)],
        (Method.DIFFCUT,),
        features,
        Protocol.FULL,
        tmp_path,
        taus=(0.9,),
        refinements=("none", "colour"),
    )
    (sample,) = run.datasets[0].samples
    assert [column.name for column in run.columns] == ["diffcut 0.9 none", "diffcut 0.9 colour"]
    for column, refine in zip(run.columns, ("none", "colour"), strict=True):
        expected = features(sample.image, tau=0.9, refine=refine).labels
        np.testing.assert_array_equal(run.example(run.datasets[0], sample, column).labels, expected)


def test_void_becomes_background_and_many_masks_match_it(labelled, features, tmp_path):
    dataset = with_background(labelled, 2)
    run = Evaluation([dataset], (Method.DIFFCUT,), features, Protocol.DIFFCUT, tmp_path, taus=(0.99,))
    assert [outcome.error for outcome in run] == [None]
    example = run.example(dataset, dataset.samples[0], run.columns[0])
    assert not (example.truth == 255).any()
    (record,) = run.records(dataset, run.columns[0])
    assert record.overlap.table.sum() == 128 * 128
    assert record.overlap.masks <= 3  # one per class
    assert record.overlap.classes == (0, 1, 2)


def test_methods_that_the_bundle_does_not_allow(labelled, features, segmenter, tmp_path):
    assert methods_of(features=True) == (Method.DIFFCUT, Method.COLOUR, Method.SUPERPIXELS)
    datasets = open_datasets([labelled])
    with pytest.raises(BundleError, match="no attention for diffseg, cut: bundle 'toy' was exported for diffcut"):
        Evaluation(datasets, (Method.DIFFSEG, Method.CUT, Method.COLOUR), features, Protocol.FULL, tmp_path)
    with pytest.raises(BundleError, match="no encoder features for diffcut: bundle 'tiny'"):
        Evaluation(datasets, (Method.DIFFCUT,), segmenter, Protocol.FULL, tmp_path)
    for protocol, refine in ((Protocol.PAPER, "colour"), (Protocol.DIFFCUT, "kmeans")):
        with pytest.raises(ValueError, match=f"protocol {protocol.value} has no refinement {refine}; choose from none"):
            Evaluation(datasets, (Method.DIFFSEG,), segmenter, protocol, tmp_path, refinements=(refine,))


def test_the_command(labelled, toy, tmp_path):
    options = ["--model", toy, "--provider", "cpu", "--protocol", "diffcut", "--limit", 1, "-o", tmp_path / "out"]
    done = diffseg("evaluate", labelled, *options, "--tau", "0.5", "--refine", "none,pamr")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["columns"] == ["diffcut 0.5 none", "diffcut 0.5 pamr", "colour", "superpixels"]
    assert report["protocol"] == "diffcut"
    for arguments, code, message in (
        (["--methods", "cut"], 1, "no attention for cut"),
        (["--refine", "colour"], 2, "protocol diffcut has no refinement colour"),
        (["--refine", "magic"], 2, "refine must be some of"),
        (["--tau", "3"], 2, "tau must be a number from 0 to 2"),
    ):
        done = diffseg("evaluate", labelled, *options, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert message in done.stderr
