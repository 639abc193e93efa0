"""Results never replace an input, nor, without --force, a file that diffseg did not write."""

import json
import shutil

import pytest
from diffseg.cli.outputs import Outputs
from diffseg.cli.sources import expand
from diffseg.engines.examples import example_images
from diffseg.formats.files import output_paths
from diffseg.formats.marks import is_marked
from diffseg.formats.names import DEFAULT_FORMATS, FORMATS
from PIL import Image

from tests.commands import diffseg

FOREIGN = json.dumps({"camera": "of somebody", "generator": "another"})


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(example_images()[0].read_bytes())
    return path


def test_every_format_is_marked(segmenter, photo, tmp_path):
    files = segmenter(photo).save(tmp_path, "x", FORMATS)
    assert [path.name for path in files if not is_marked(path)] == []
    masks = len([path for path in files if path.stem.removeprefix("x.").isdecimal()])
    assert set(output_paths(tmp_path, "x", FORMATS, masks)) == set(files)
    assert expand([str(tmp_path)]) == []  # what was written is not segmented again


def test_files_of_others_are_not_marked(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(photo).save(tmp_path / "a.jpg", comment=b"diffseg")
    (tmp_path / "a.json").write_text(FOREIGN)
    (tmp_path / "b.json").write_text(json.dumps({"source": {"generator": "diffseg"}}, indent=1))
    (tmp_path / "a.svg").write_text('<svg><g data-generator="diffseg"/></svg>')
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "empty").touch()
    assert [path.name for path in tmp_path.iterdir() if is_marked(path)] == []
    assert not is_marked(tmp_path)
    assert not is_marked(tmp_path / "missing")


def test_a_foreign_file_is_replaced_with_force_alone(photo_file, tmp_path):
    (tmp_path / "photo.jpg.json").write_text(FOREIGN)
    done = diffseg("segment", photo_file, "-o", tmp_path)
    assert done.returncode == 1
    assert f"{photo_file}: {tmp_path / 'photo.jpg.json'} exists, and was not written by diffseg; choose" in done.stderr
    assert "1 of 1 images failed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "photo.jpg.json"]
    assert (tmp_path / "photo.jpg.json").read_text() == FOREIGN
    for words in (["--force"], []):  # afterwards it is ours
        done = diffseg("segment", photo_file, "-o", tmp_path, *words)
        assert (done.returncode, done.stderr) == (0, "model tiny, provider cpu\n")
        assert "segments" in json.loads((tmp_path / "photo.jpg.json").read_text())


def test_an_input_is_not_replaced_even_with_force(photo_file, tmp_path):
    second = tmp_path / "photo.jpg.labels.png"
    shutil.copy(example_images()[1], second)
    before = second.read_bytes()
    done = diffseg("segment", photo_file, second, "-o", tmp_path, "--force")
    assert done.returncode == 1
    assert f"{photo_file}: {second} is an image to segment, and this result would replace it" in done.stderr
    assert "1 of 2 images failed" in done.stderr
    assert second.read_bytes() == before
    assert (tmp_path / "photo.jpg.labels.png.labels.png").exists()


def test_what_a_result_would_replace(tmp_path):
    (tmp_path / "x.1.png").write_bytes(b"of somebody")
    (tmp_path / "y.json").symlink_to(tmp_path / "nowhere")
    outputs = Outputs(tmp_path, ["cutouts"], [], force=False)
    assert outputs.problem("x") is None  # the number of masks is not known yet
    assert outputs.problem("x", 1) is None
    assert "x.1.png exists" in outputs.problem("x", 2)
    assert outputs.problem("x", 11) is None  # x.00.png to x.10.png
    outputs = Outputs(tmp_path, DEFAULT_FORMATS, [tmp_path / "x.1.png"], force=False)
    assert "y.json exists" in outputs.problem("y")
    (tmp_path / "y.json").unlink()
    (tmp_path / "y.json").hardlink_to(tmp_path / "x.1.png")  # an input under another name
    assert "is an image to segment" in outputs.problem("y")
