"""Atomic files and folders, and the temporary files that killed processes leave."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from diffseg.engines import files
from diffseg.engines.errors import BundleError, BundleNotFoundError, PlanError
from diffseg.engines.files import atomic_file, atomic_folder


def write_half(path):
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_a_link_is_replaced_and_its_target_untouched(tmp_path):
    """An output folder can contain links created by other users."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("of somebody else")
    link.symlink_to(target)
    with atomic_file(link) as temporary:
        temporary.write_text("ours")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("of somebody else", "ours", False)


def made(folder, process, name="bundle", role="part", host=None):
    """A temporary folder as another process leaves it."""
    path = folder / f".{name}.{host or files._host()}-{process}-1.{role}"
    path.mkdir()
    (path / "graph").touch()
    return path


@pytest.fixture
def ended():
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(folder, text="new", **options):
    with atomic_folder(folder, kind="bundle", marker="text", **options) as temporary:
        (temporary / "text").write_text(text)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_temporary_names_differ_between_threads(tmp_path):
    with ThreadPoolExecutor(2) as threads:
        barrier = threading.Barrier(2)

        def name(_):
            barrier.wait(20)  # each thread takes one
            with atomic_file(tmp_path / "x") as temporary:
                temporary.touch()
                barrier.wait(20)
                return temporary.name

        names = set(threads.map(name, range(2)))
    assert len(names) == 2
    assert all(str(os.getpid()) in name for name in names)


@pytest.mark.skipif(sys.platform == "win32", reason="cannot ask whether a process runs")
def test_what_ended_processes_left_is_deleted_and_nothing_else(tmp_path, ended):
    running, elsewhere, long_ago = (
        made(tmp_path, os.getppid()), made(tmp_path, ended, host="0" * 8), made(tmp_path, 1, host="1" * 8)
    )  # fmt: skip
    os.utime(long_ago, (0, 0))
    made(tmp_path, ended)
    made(tmp_path, ended, "other")
    (tmp_path / ".git").mkdir()
    write(tmp_path / "bundle")
    assert listing(tmp_path) == sorted([".git", running.name, elsewhere.name, "bundle"])
    left = tmp_path / "masks" / f".a.png.{files._host()}-{ended}-7.part"
    left.parent.mkdir()
    left.touch()
    with atomic_file(tmp_path / "masks" / "b.png") as temporary:
        temporary.touch()
    assert listing(tmp_path / "masks") == ["b.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="cannot ask whether a process runs")
def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path, ended):
    aside = made(tmp_path, ended, role="old")
    (aside / "text").write_text("old")
    with pytest.raises(BundleError, match="--force"):
        write(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "text").read_text() == "old"
    made(tmp_path, ended, role="old")
    write(tmp_path / "bundle", overwrite=True)
    assert listing(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "text").read_text() == "new"


def test_the_old_folder_stays_until_the_new_one_is_in_place(tmp_path, monkeypatch):
    target, replace = tmp_path / "bundle", Path.replace
    write(target, "old")

    def fail(path, other):
        if path.suffix == ".part":
            assert [child.read_text() for child in tmp_path.glob(".bundle.*.old/text")] == ["old"]
            raise OSError(errno.EIO, "Input/output error", str(path))
        return replace(path, other)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BundleError, match=r"^cannot write \S+: Input/output error; choose another folder with -o$"):
        write(target, overwrite=True)
    monkeypatch.undo()
    assert (target / "text").read_text() == "old"
    assert listing(tmp_path) == ["bundle"]


def test_what_the_system_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"^cannot write \S+: \S+file is not a folder; choose another folder"):
        write(tmp_path / "file" / "bundle")

    def full(problem):
        with atomic_folder(tmp_path / "x", kind="plan", marker=None, error=PlanError, hint="make room"):
            raise problem

    with pytest.raises(PlanError, match=r"^cannot write \S+x: No space left on device; make room$"):
        full(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(PlanError, match=r"^cannot write \S+x: Permission denied \(/source\); make room$"):
        full(OSError(errno.EACCES, "Permission denied", "/source"))
    with pytest.raises(BundleNotFoundError, match="^of its own$"):
        full(BundleNotFoundError("of its own"))
    with pytest.raises(ConnectionError, match="^no route to the hub$"):  # of a network library
        full(ConnectionError("no route to the hub"))
    assert listing(tmp_path) == ["file"]
