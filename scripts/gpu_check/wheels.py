"""Wheels: split into pieces for transport, joined again, and installed into a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.record import ROOT

PIECE_BYTES = 60 << 20
PIECE = re.compile(r"(?P<wheel>.+\.whl)\.part(?P<number>\d+)")
CHUNK = 1 << 20
INSTALLED = ".installed.json"
OWN = "diffseg"
SOURCES = ("runtime", "engines", "export", "pyproject.toml")
DESCRIPTION = ("README.md", "LICENSE")


class WheelError(Exception):
    """A wheel or a piece of one is missing or damaged, or can't be installed."""


def split_wheel(wheel: Path, folder: Path, limit: int = PIECE_BYTES) -> list[Path]:
    """Write the pieces of a wheel, `NAME.whl.part01` and so on. A wheel within the limit is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    size = wheel.stat().st_size
    if size <= limit:
        return [Path(shutil.copy2(wheel, folder))]
    pieces = []
    with wheel.open("rb") as stream:
        for number in range(1, -(-size // limit) + 1):
            pieces.append(folder / f"{wheel.name}.part{number:02}")
            left = limit
            with pieces[-1].open("wb") as piece:
                while left and (data := stream.read(min(CHUNK, left))):
                    piece.write(data)
                    left -= len(data)
    return pieces


def join_wheels(folder: Path, target: Path) -> tuple[list[Path], list[str]]:
    """Join the pieces in a folder. Return the complete wheels, and a description of each incomplete one.

    Args:
        folder: folder of wheels and pieces of wheels; it is not modified.
        target: folder for the joined wheels. A wheel that exists there needs no pieces.
    """
    groups: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if found := PIECE.fullmatch(path.name):
            groups.setdefault(found["wheel"], {})[int(found["number"])] = path
    complete = {path.name: path for root in (target, folder) for path in sorted(root.glob("*.whl"))}
    problems = []
    for name, pieces in groups.items():
        if name in complete:
            continue
        numbers = range(min(1, *pieces), max(pieces) + 1)  # counted from 0 or from 1
        if missing := [number for number in numbers if number not in pieces]:
            words = ", ".join(f"part{number:02}" for number in missing)
            problems.append(f"{name} lacks {words}")
            continue
        target.mkdir(parents=True, exist_ok=True)
        temporary = target / f".{name}"
        with temporary.open("wb") as stream:
            for number in numbers:
                with pieces[number].open("rb") as piece:
                    shutil.copyfileobj(piece, stream, CHUNK)
        if problem := _damage(temporary):
            temporary.unlink()
            problems.append(f"{name}, joined of {len(pieces)} pieces, {problem}")
            continue
        complete[name] = temporary.replace(target / name)
    return sorted(complete.values()), problems


def _damage(wheel: Path) -> str | None:
    """Return why a file is not a complete wheel; None if it is. A wheel is a zip archive, with its directory last."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:  # of a directory that points nowhere, too
        return f"ends too early or is damaged ({error})"
    return f"is damaged at {bad}" if bad else None


def install(wheels: Iterable[Path], target: Path, *, source: bool) -> list[str]:
    """Install new wheels into a folder, without a network, and return the names of what was installed.

    pip would delete or skip a folder that two wheels share (`nvidia`) in a second `--target`, so the new packages go
    to a folder of their own, whose files are then moved.

    Args:
        wheels: the wheels. Dependencies are not resolved. diffseg's own wheel is ignored, and so is plain onnxruntime,
            which shares its module with onnxruntime-gpu.
        target: the folder, which must be put on PYTHONPATH.
        source: install this checkout of diffseg, too, if its files have changed.

    Raises:
        WheelError: pip failed.
    """
    record = target / INSTALLED
    before: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    usable = [wheel for wheel in wheels if not re.match(r"(diffseg|onnxruntime)-\d", wheel.name)]
    wanted = {wheel.name: str(wheel.stat().st_size) for wheel in usable}
    paths = {wheel.name: str(wheel) for wheel in usable}
    new = [name for name, mark in wanted.items() if before.get(name) != mark]
    if new:
        _pip([paths[name] for name in new], target)
    if source and before.get(OWN) != (mark := _digest()):
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:  # a build leaves files, and takes old ones in
            checkout = Path(folder, OWN)
            checkout.mkdir()
            for name in (*SOURCES, *DESCRIPTION):
                copy: Callable[..., object] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
                copy(ROOT / name, checkout / name)
            _pip([str(checkout)], target)
        wanted[OWN] = mark
        new.append(OWN)
    if new:
        record.write_text(json.dumps(before | wanted, indent=1), encoding="utf-8")
    return new


def _pip(what: list[str], target: Path) -> None:
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    words = (
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
        "--disable-pip-version-check",
    )
    command = [sys.executable, "-m", "pip", "install", *words, "--target", str(fresh), *what]
    # A wheel of setuptools that was installed before serves to build diffseg.
    done = subprocess.run(command, env=surroundings(target), capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise WheelError(f"pip can't install {', '.join(Path(word).name for word in what)}: {said[-1].strip()}")
    merge_folder(fresh, target)


def merge_folder(source: Path, target: Path) -> None:
    """Move all files of a folder into another one, over what is there, and delete the folder."""
    for path in sorted(source.rglob("*")):
        if not path.is_dir():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    shutil.rmtree(source)


def surroundings(target: Path) -> dict[str, str]:
    """Return the environment of a process that uses the packages of a folder over the interpreter's own.

    ONNX Runtime looks for CUDA's libraries beside itself, then where the loader looks; those of the interpreter's own
    packages (PyTorch's) are named to the loader.
    """
    found = dict(os.environ)
    folders = [target, *(Path(folder) for folder in _site_folders())]
    libraries = [str(path) for folder in folders for path in sorted(folder.glob("nvidia/*/lib"))]
    for name, first in (("PYTHONPATH", [str(target)]), ("LD_LIBRARY_PATH", libraries)):
        rest = [part for part in found.get(name, "").split(os.pathsep) if part]
        found[name] = os.pathsep.join([*first, *rest])
    return found


def _site_folders() -> list[str]:
    return [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]


def _digest() -> str:
    """Hash of the files that a diffseg is built from."""
    digest = hashlib.sha256()
    for name in SOURCES:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and "plans" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
