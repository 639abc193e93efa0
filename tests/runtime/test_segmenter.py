"""The public names of the runtime, on the embedded model."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import diffseg
import diffseg.engines
import numpy as np
import pytest
from diffseg import Segmentation, Segmenter
from diffseg.engines.errors import BundleError, DiffsegError, ImageError
from diffseg.engines.examples import example_images
from diffseg.labels import place_labels
from diffseg.placement import Placement
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import pixels

STAGES = {"decode", "resize", "encode", "attend", "aggregate", "merge", "refine", "suppress"}


def check(result, shape):
    assert result.labels.shape == shape
    assert result.labels.dtype == np.uint16
    count = len(result.segments)
    assert np.unique(result.labels).tolist() == list(range(count))
    areas = [s.area for s in result.segments]
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == shape[0] * shape[1]
    for segment in result.segments:
        mask = result.labels == segment.label
        assert mask.sum() == segment.area
        y, x = np.nonzero(mask)
        assert segment.bbox == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)


def test_the_exported_names():
    assert diffseg.__all__ == ["DiffsegError", "MergeSettings", "Segment", "Segmentation", "Segmenter", "__version__"]
    for module in (diffseg, diffseg.engines):
        assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)
        assert module.__all__ == sorted(module.__all__)


def test_an_example_photograph_falls_into_a_few_regions(segmenter):
    """Not noise and not one mask: a handful of regions, none of them specks."""
    for result in segmenter(example_images()):
        assert 2 <= len(result.segments) <= 25
        assert result.segments[0].area < 0.9 * result.labels.size


def test_path_image_and_array_give_the_same_masks(segmenter):
    path = example_images()[0]
    array = pixels(path)
    results = [segmenter(source) for source in (path, str(path), Image.fromarray(array), array)]
    for result in results:
        assert isinstance(result, Segmentation)
        check(result, array.shape[:2])
        np.testing.assert_array_equal(result.labels, results[0].labels)
        assert set(result.timings) == STAGES
        assert result.attention is None


def test_a_list_of_mixed_sizes_gives_a_list_in_order(segmenter, photo):
    sources = [photo, photo[:50], example_images()[1], photo[:1, :1], np.repeat(photo, 4, 1)[:20]]
    results = segmenter(sources)
    for source, result in zip(sources, results, strict=True):
        check(result, (source if isinstance(source, np.ndarray) else pixels(source)).shape[:2])
    assert segmenter([]) == []
    assert len(segmenter((photo,))) == 1


def test_a_batch_changes_nothing(segmenter):
    together = segmenter(example_images())
    alone = Segmenter(segmenter.bundle, segmenter.network)
    for path, result in zip(example_images(), together, strict=True):
        assert (alone(path).labels == result.labels).mean() > 0.999


def test_threads_may_share_a_segmenter(segmenter):
    alone = Segmenter(segmenter.bundle, segmenter.network)
    expected = [alone(path).labels for path in example_images()]
    with ThreadPoolExecutor(4) as pool:
        for labels, result in zip(expected, pool.map(alone, example_images()), strict=True):
            np.testing.assert_array_equal(result.labels, labels)


def test_resegment_needs_no_network(segmenter, monkeypatch):
    path = example_images()[0]
    kept = segmenter(path, keep_attention=True)
    assert kept.attention.values.shape == segmenter.bundle.manifest.attention[0].grid * 2
    np.testing.assert_allclose(kept.attention.values.sum((2, 3)), 1, atol=1e-4)
    direct = {t: segmenter(path, threshold=t) for t in (0.05, 2.0)}
    monkeypatch.setattr(segmenter.network, "session", None)
    for threshold, expected in direct.items():
        result = kept.resegment(threshold=threshold)
        np.testing.assert_array_equal(result.labels, expected.labels)
        assert set(result.timings) == {"merge", "refine", "suppress"}
    assert len(direct[0.05].segments) > len(direct[2.0].segments)
    with pytest.raises(ValueError, match="keep_attention=True"):
        direct[2.0].resegment(threshold=1)


def test_new_thresholds_do_not_measure_the_anchors_again(segmenter, monkeypatch):
    kept = segmenter(example_images()[0], keep_attention=True)
    expected = kept.resegment(0.3, anchors=5).labels
    values = kept.attention.values
    assert kept.attention.nbytes == values.nbytes + 5 * 5 * values[0, 0].size * 4  # the distances that were needed last
    monkeypatch.setattr("diffseg.attention.anchor_distances", None)
    np.testing.assert_array_equal(kept.resegment(0.3, anchors=5).resegment(0.3).labels, expected)


def test_thresholds_anchors_and_refinement_are_passed_on(segmenter):
    path = example_images()[0]
    kept = segmenter(path, keep_attention=True)
    assert kept.settings.thresholds == segmenter.bundle.manifest.defaults.thresholds
    one = segmenter(path, threshold=(0.2,), anchors=1)
    assert one.settings.thresholds == (0.2,)
    assert len(one.segments) == 1
    refined = segmenter(path, refine="kmeans")
    assert "refine" in refined.timings
    np.testing.assert_array_equal(refined.labels, kept.resegment(refine="kmeans").labels)


@pytest.mark.parametrize("refine", ["colour", "pamr"])
def test_refinements_by_the_image_move_the_borders_alone(segmenter, refine):
    path = example_images()[0]
    plain = segmenter(path, keep_attention=True, refine="none")
    assert "refine" not in plain.timings
    refined = plain.resegment(refine=refine)
    check(refined, plain.labels.shape)
    assert "refine" in refined.timings
    assert len(refined.segments) <= len(plain.segments)
    assert (refined.labels != plain.labels).mean() > 0.001 or len(refined.segments) < len(plain.segments)
    assert refined.to_dict()["settings"]["refine"] == refine


def test_attention_is_cut_and_a_new_tau_solves_no_eigenproblem_again(segmenter, monkeypatch):
    path = example_images()[0]
    kept = segmenter(path, keep_attention=True, method="cut", tau=0.6)
    check(kept, kept.labels.shape)
    assert {"cut", "suppress"} <= set(kept.timings)
    assert "merge" not in kept.timings
    assert len(kept.segments) >= 3
    settings = kept.to_dict()["settings"]
    assert (settings["method"], settings["tau"]) == ("cut", 0.6)
    found = kept.to_dict(hierarchy=True)["hierarchy"]
    assert np.array(found["labels"]).shape == (32, 32)
    assert sum("label" in node for node in found["nodes"]) == np.max(found["labels"]) + 1
    with pytest.raises(ValueError, match="needs method 'cut' or 'diffcut', found 'diffseg'"):
        kept.resegment(method="diffseg").to_dict(hierarchy=True)
    with pytest.raises(ValueError, match="keep_attention=True"):
        segmenter(path).to_dict(hierarchy=True)
    assert kept.attention.nbytes > kept.attention.values.nbytes + 8 * 1024**2
    monkeypatch.setattr("diffseg.methods.cut.second_eigenvector", None)
    np.testing.assert_array_equal(kept.resegment(tau=0.6).labels, kept.labels)
    counts = [len(kept.resegment(tau=tau).segments) for tau in (0, 0.3, 0.45, 0.6)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert kept.settings.updated(tau=0.45).method == "cut"


def test_images_of_one_batch_may_have_settings_of_their_own(segmenter, photo):
    fine = segmenter.settings.updated(0.05, anchors=8)
    refined = segmenter.settings.updated(refine="kmeans")
    prepared = [
        segmenter.prepare(photo, fine, fit="pad", keep_attention=True),
        segmenter.prepare(example_images()[1], refined),
    ]
    first, second = segmenter.finish(prepared)
    alone = segmenter(photo, 0.05, anchors=8, fit="pad"), segmenter(example_images()[1], refine="kmeans")
    for result, expected in zip((first, second), alone, strict=True):
        assert (result.labels == expected.labels).mean() > 0.999
        assert result.settings == expected.settings
    assert first.attention is not None
    assert second.attention is None
    with pytest.raises(ImageError, match="no such file"):
        segmenter.prepare("none.jpg")


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(40, 1600), (1600, 40), (1, 1), (33, 77)])
def test_any_shape_in_any_fit(segmenter, fit, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    check(segmenter(image, fit=fit), size)


def test_a_bad_image_is_an_error_of_that_image_alone(segmenter, tmp_path, photo):
    (tmp_path / "bad.jpg").write_bytes(b"")
    sources = [photo, tmp_path / "bad.jpg", photo[:70], tmp_path / "none.png"]
    found = list(segmenter.stream(sources))
    assert [type(result) for _, result in found] == [Segmentation, ImageError, Segmentation, ImageError]
    assert all(a is b for (a, _), b in zip(found, sources, strict=True))
    with pytest.raises(ImageError, match="bad.jpg") as caught:
        segmenter(sources)
    assert isinstance(caught.value, DiffsegError)
    assert isinstance(caught.value, ValueError)


def test_a_stream_takes_images_only_when_they_are_wanted(segmenter, photo):
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield photo

    stream = segmenter.stream(source())
    next(stream)
    assert len(taken) == segmenter.batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, "threshold"),
        ({"threshold": ()}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"anchors": 0}, "anchors"),
        ({"refine": "magic"}, "refine"),
        ({"method": "magic"}, "method must be one of diffseg, cut, diffcut"),
        ({"method": "diffcut"}, "method must be one of diffseg, cut, found 'diffcut'"),
        ({"tau": float("nan")}, "tau"),
        ({"tau": 2.5}, "tau"),
        ({"fit": "cover"}, "fit"),
    ],
)
def test_settings_out_of_range(segmenter, photo, options, message):
    with pytest.raises(ValueError, match=message):
        segmenter(photo, **options)


def test_a_batch_larger_than_the_bundles():
    with pytest.raises(ValueError, match="batch must be 1 to"):
        Segmenter.load("tiny", batch=1000)
    with pytest.raises(BundleError, match="no bundle"):
        Segmenter.load("nope")


def test_pictures_and_files(segmenter, tmp_path):
    path = example_images()[0]
    result = segmenter(path)
    overlay = result.overlay()
    assert np.abs(np.asarray(overlay, int) - pixels(path).astype(int)).mean() > 10
    files = result.save(tmp_path / "new" / "folder", "boot")
    assert [f.name for f in files] == ["boot.labels.png", "boot.overlay.png", "boot.json"]
    np.testing.assert_array_equal(pixels(files[0]), result.labels)
    assert {p.name for p in files[0].parent.iterdir()} == {f.name for f in files}


def test_more_than_256_labels_are_written_with_16_bits(segmenter, tmp_path):
    result = segmenter(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
    labels = np.arange(300, dtype=np.uint16)[:, None].repeat(2, 1)
    many, segments = place_labels(labels, Placement((300, 2), (300, 2), 0, 0, 300, 2))
    from dataclasses import replace

    result = replace(result, labels=many, segments=segments, image=Image.new("RGB", (2, 300)))
    written = pixels(result.save(tmp_path, "many")[0])
    np.testing.assert_array_equal(written, labels)


@given(st.integers(0, 999), st.integers(1, 90), st.integers(1, 90))
def test_segments_are_counted_right_at_any_size(seed, height, width):
    labels = np.random.default_rng(seed).integers(0, 9, (32, 32)).repeat(2, 0)[:32].astype(np.uint16)
    placed, segments = place_labels(labels, Placement((height, width), (32, 32), 0, 0, height, width))
    assert placed.shape == (height, width)
    assert np.unique(placed).tolist() == sorted(s.label for s in segments)
    for segment in segments:
        y, x = np.nonzero(placed == segment.label)
        assert segment.area == len(y)
        assert segment.bbox == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)


@pytest.mark.parametrize(("grey", "fit"), [(127, "stretch"), (128, "pad")])
def test_an_image_of_one_colour_is_one_segment(segmenter, grey, fit):
    result = segmenter(np.full((60, 90, 3), grey, np.uint8), 0.05, keep_attention=True, fit=fit)
    check(result, (60, 90))
    assert len(result.segments) == 1
    assert len(result.resegment(0.01).segments) == 1


def test_a_crop_names_what_it_does_not_see(segmenter, photo):
    result = segmenter(photo, fit="crop", keep_attention=True)
    check(result, photo.shape[:2])
    assert result.void == len(result.segments) - 1
    assert (result.labels[:, :40] == result.void).all()
    assert (result.labels[:, 160:] == result.void).all()
    assert not (result.labels[:, 40:160] == result.void).any()
    assert result.to_dict()["void"] == result.void
    finer = result.resegment(0.05)
    assert finer.void == len(finer.segments) - 1 == finer.labels[0, 0]
    whole = segmenter(photo)
    assert whole.void is None
    assert "void" not in whole.to_dict()
