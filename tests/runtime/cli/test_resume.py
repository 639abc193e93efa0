"""Folders within folders, names of results, and runs that go on where an earlier one stopped."""

import json
from pathlib import Path, PurePosixPath

import pytest
from diffseg.cli.app import app
from diffseg.cli.earlier import Earlier
from diffseg.cli.sources import sources
from diffseg.formats.result_names import RULE, result_name, same_work
from diffseg.segmenter import Segmenter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tests.runtime.doubles import LendingNetwork


@pytest.fixture
def run(fake_bundle, monkeypatch):
    """Runs `segment` in this process, with a network that takes no time. Returns the outcome and the images it took."""
    network = LendingNetwork(device="cpu")
    monkeypatch.setattr(Segmenter, "load", lambda *_, **__: Segmenter(fake_bundle, network))

    def segment(*words):
        network.passes.clear()
        done = CliRunner().invoke(app, ["segment", *map(str, words)])
        return done, len(network.passes)

    return segment


@pytest.fixture
def tree(tmp_path, photo):
    """Images of one name in three folders, one of which is the output of nothing."""
    folder = tmp_path / "in"
    for name in ("a.jpg", "a.png", "sub/a.jpg", "sub/deep/b.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


ALL = {"a.jpg", "a.png", "sub/a.jpg", "sub/deep/b.PNG"}


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_is_kept_below_the_output_folder(run, tree, tmp_path):
    out = tmp_path / "out"
    done, passes = run(tree, "--recursive", "-o", out)
    assert (done.exit_code, passes) == (0, 4), done.output
    assert written(out) == {f"{name}{ending}" for name in ALL for ending in (".labels.png", ".overlay.png", ".json")}
    for name in ALL:
        record = json.loads((out / f"{name}.json").read_text())
        assert record["source"]["name"] == name
        assert record["source"]["bytes"] == (tree / name).stat().st_size
        assert record["naming"] == RULE
        assert record["origin"]["source"] == str(tree / name)


def test_without_recursive_a_folder_is_flat_and_names_depend_on_no_neighbour(run, tree, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(tree / "a.jpg", "-o", alone, "--format", "labels")[0].exit_code == 0
    assert run(tree, "-o", together, "--format", "labels")[0].exit_code == 0
    assert written(alone) == {"a.jpg.labels.png"}
    assert written(together) == {"a.jpg.labels.png", "a.png.labels.png"}


def test_results_inside_the_tree_are_not_segmented_again(run, tree):
    assert run(tree, "-r", "-o", tree)[0].exit_code == 0
    before = written(tree)
    done, passes = run(tree, "-r", "-o", tree)
    assert (done.exit_code, passes) == (0, 4)
    assert written(tree) == before


def test_two_images_of_one_name_are_an_error_of_the_second(run, tree, tmp_path):
    done, passes = run(tree / "a.jpg", tree / "sub" / "a.jpg", "-o", tmp_path / "out")
    assert (done.exit_code, passes) == (1, 1)
    assert f"{tree / 'sub' / 'a.jpg'}: its results have the names of those of {tree / 'a.jpg'}" in done.output
    assert "1 of 2 images failed" in done.output


def test_resume_takes_what_is_new_changed_or_incomplete(run, tree, tmp_path):
    out = tmp_path / "out"
    words = (tree, "-r", "-o", out, "--resume", "--threshold", "0.5", "--format", "json,labels,cutouts")
    assert run(*words)[1] == 4
    done, passes = run(*words)
    assert (done.exit_code, passes) == (0, 0)
    assert "4 of 4 images were done before" in done.output
    Image.new("RGB", (40, 30), "red").save(tree / "a.png")
    (out / "sub/a.jpg.json").write_text("{")
    next(out.glob("sub/deep/b.PNG.*0.png")).unlink()
    assert run(*words)[1] == 2  # the damaged JSON is not ours
    (out / "sub/a.jpg.json").unlink()
    Image.new("RGB", (40, 30), "blue").save(tree / "new.jpg")
    assert run(*words)[1] == 2
    assert run(*words)[1] == 0
    assert run(*words[:-3], "0.4", "--format", "json,labels,cutouts")[1] == 5  # another setting
    assert run(*words[:-3], "0.4", "--format", "json,labels,cutouts", "--fit", "pad")[1] == 5
    assert run(*words[:-3], "0.4", "--format", "json,svg", "--fit", "pad")[1] == 5  # a format that is missing


def test_another_bundle_is_no_resumption(run, tree, tmp_path, fake_bundle):
    out = tmp_path / "out"
    assert run(tree, "-o", out, "--resume")[1] == 2
    manifest = fake_bundle.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("\n", "\n\n", 1))
    assert run(tree, "-o", out, "--resume")[1] == 2
    assert run(tree, "-o", out, "--resume")[1] == 0


def test_existing_results_are_replaced_or_skipped(run, tree, tmp_path):
    out = tmp_path / "out"
    words = (tree / "a.jpg", "-o", out)
    assert run(*words)[1] == 1
    assert run(*words)[1] == 1
    assert run(*words, "--overwrite")[1] == 1
    assert run(*words, "--skip-existing", "--threshold", "0.1")[1] == 0
    (out / "a.jpg.overlay.png").unlink()
    assert run(*words, "--skip-existing")[1] == 1
    assert run(*words, "--skip-existing", "--format", "labels,cutouts")[1] == 1  # how many cut-outs is not known


def test_files_of_others_are_neither_skipped_nor_replaced(run, tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for ending in (".labels.png", ".overlay.png", ".json"):
        (out / f"a.jpg{ending}").write_bytes(b"of somebody")
    for option in ("--skip-existing", "--resume"):
        done, passes = run(tree / "a.jpg", "-o", out, option)
        assert (done.exit_code, passes) == (1, 0)
        assert "was not written by diffseg" in done.output
    assert run(tree / "a.jpg", "-o", out, "--resume", "--force")[1] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--format", "labels"), "needs json among the formats"), (("--skip-existing",), "goes without --skip-existing")],
)
def test_options_that_contradict(run, tree, words, message):
    done, _ = run(tree, "--resume", *words)
    assert done.exit_code == 2
    assert message in done.output


def test_downloads_are_never_done_before(tmp_path):
    ((source, name),) = sources(["https://example.org/a.jpg"])
    assert name == "a.jpg"
    assert not Earlier(tmp_path, ["json"], {}).has(source, name)


def test_links_to_folders_are_not_followed(tree):
    (tree / "sub" / "round").symlink_to(tree, target_is_directory=True)
    assert {name for _, name in sources([str(tree)], recursive=True)} == ALL


part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text not in (".", "..")
)


@given(st.lists(part, min_size=1, max_size=4), st.integers(0, 3))
def test_a_name_maps_back_to_its_image(parts, depth):
    image = PurePosixPath("/photos", *parts)
    folder = PurePosixPath("/photos", *parts[: min(depth, len(parts) - 1)])
    for given_folder in (folder, None):
        name = result_name(image, given_folder)
        assert (folder if given_folder else image.parent) / name == image
    with pytest.raises(ValueError, match="photos"):
        result_name(image, Path("/elsewhere"))


def test_what_is_the_same_work():
    record = {"settings": {"tau": 0.5, "thresholds": [1.0]}, "origin": {"fit": "pad", "provider": "cpu"}, "width": 3}
    assert same_work(record, {"settings": {"tau": 0.5, "thresholds": [1.0]}, "origin": {"fit": "pad"}})
    assert not same_work(record, {"settings": {"tau": 0.6}})
    assert not same_work(record, {"source": {}})
    assert not same_work({"settings": None}, {"settings": {"tau": 0.5}})
