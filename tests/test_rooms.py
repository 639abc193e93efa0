"""Imports between packages, lengths of modules, and the list of installed packages."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"engines": "diffseg.engines", "export": "diffseg.export", "runtime": "diffseg"}
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LONGEST = 300


def imported(folder):
    """Every module that a folder's files import anywhere, functions included, as pairs of file and name."""
    pairs = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} has a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            pairs += [(path.relative_to(ROOT).as_posix(), name) for name in names]
    assert pairs
    return pairs


def within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", ["runtime/serving/triton", "runtime/serving/protocol"])
def test_triton_and_the_protocol_do_not_import_the_http_server(folder):
    assert [pair for pair in imported(folder) if within(pair[1], "diffseg.serving.http")] == []


@pytest.mark.parametrize(("folder", "allowed"), [("engines", ["engines"]), ("export", ["engines", "export"])])
def test_nothing_below_the_runtime_imports_it(folder, allowed):
    packages = [f"diffseg.{name}" for name in allowed]
    ours = [pair for pair in imported(folder) if within(pair[1], "diffseg")]
    assert [pair for pair in ours if not within(pair[1], *packages)] == []


def test_no_script_imports_tests():
    assert [pair for pair in imported("scripts") if within(pair[1], "tests")] == []


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).parts for path in MODULES}
    packages = {".".join([ROOMS[room], *rest]) for room, *rest in folders}
    assert packages <= set(settings["packages"])
