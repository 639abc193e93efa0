"""Wheels of the GPU check: cut, joined, and installed into a folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check.wheels import WheelError, install, join_wheels, merge_folder, split_wheel, surroundings

PIECE = 1000


@pytest.fixture
def wheel(tmp_path):
    """A wheel that pip accepts, of a few pieces."""
    path = tmp_path / "wheels" / "thing-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nvidia/thing/data.bin", np.random.default_rng(0).bytes(3 * PIECE))
        archive.writestr("thing.py", "value = 7\n")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_is_cut_and_joined_again(wheel, tmp_path):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    assert len(pieces) == -(-wheel.stat().st_size // PIECE) > 2
    assert all(piece.stat().st_size <= PIECE for piece in pieces)
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert [path.read_bytes() for path in joined] == [wheel.read_bytes()]
    assert problems == []


def test_a_small_wheel_stays_whole(wheel, tmp_path):
    assert [path.name for path in split_wheel(wheel, tmp_path / "pieces")] == [wheel.name]


@pytest.mark.parametrize(("lost", "words"), [(0, "lacks part01"), (1, "lacks part02"), (-1, "ends too early")])
def test_a_wheel_that_lacks_a_piece_is_incomplete(wheel, tmp_path, lost, words):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    content = pieces[lost].read_bytes()
    pieces[lost].unlink()
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert joined == []
    assert words in problems[0]
    pieces[lost].write_bytes(content)  # it comes with a later call
    assert len(join_wheels(tmp_path / "pieces", tmp_path / "whole")[0]) == 1
    for piece in pieces:  # and once joined, no piece is needed
        piece.unlink()
    assert len(join_wheels(tmp_path / "pieces", tmp_path / "whole")[0]) == 1


def test_pieces_may_be_counted_from_0(wheel, tmp_path):
    for piece in split_wheel(wheel, tmp_path / "pieces", PIECE):
        stem, number = piece.name.rsplit("part", 1)
        piece.rename(piece.with_name(f"{stem}part{int(number) - 1:02}"))
    shutil.move(tmp_path / "pieces", tmp_path / "again")
    assert len(join_wheels(tmp_path / "again", tmp_path / "whole")[0]) == 1


def test_a_damaged_wheel_is_not_installed(wheel, tmp_path):
    pieces = split_wheel(wheel, tmp_path / "pieces", PIECE)
    pieces[1].write_bytes(bytes(PIECE))
    joined, problems = join_wheels(tmp_path / "pieces", tmp_path / "whole")
    assert joined == []
    assert "is damaged" in problems[0]


def test_wheels_are_installed_into_a_folder_once(wheel, tmp_path):
    site = tmp_path / "site"
    (site / "nvidia" / "other").mkdir(parents=True)  # of another wheel: pip would delete it or pass over the new one
    (site / "nvidia" / "other" / "kept.bin").write_bytes(b"kept")
    shutil.copy(wheel, wheel.with_name("onnxruntime-1.0-py3-none-any.whl"))
    wheels = sorted(wheel.parent.glob("*.whl"))
    assert install(wheels, site, source=False) == [wheel.name]
    assert install(wheels, site, source=False) == []
    assert (site / "nvidia" / "other" / "kept.bin").read_bytes() == b"kept"
    found = subprocess.run(
        [sys.executable, "-c", "import thing; print(thing.value)"],
        env=surroundings(site),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "7\n"


def test_what_pip_refuses_is_said_in_one_line(tmp_path):
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"no wheel")
    with pytest.raises(WheelError, match="pip can't install broken-1.0") as error:
        install([broken], tmp_path / "site", source=False)
    assert "\n" not in str(error.value)


def test_a_folder_is_moved_over_another(tmp_path):
    for folder, name in (("new", "a"), ("old", "a"), ("old", "b")):
        (tmp_path / folder / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "deep" / name).write_text(folder)
    merge_folder(tmp_path / "new", tmp_path / "old")
    assert {path.name: path.read_text() for path in (tmp_path / "old" / "deep").iterdir()} == {"a": "new", "b": "old"}
    assert not (tmp_path / "new").exists()


def test_the_loader_is_told_of_the_interpreters_cuda_libraries(tmp_path, monkeypatch):
    libraries = tmp_path / "own" / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path / "own")])
    monkeypatch.setenv("LD_LIBRARY_PATH", "before")
    found = surroundings(tmp_path / "site")["LD_LIBRARY_PATH"].split(os.pathsep)
    assert found[0] == str(libraries)
    assert found[-1] == "before"
