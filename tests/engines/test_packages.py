"""The command that installs an extra, for each kind of installation."""

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffseg.cli.tables import machine_tables
from diffseg.engines.errors import MissingPackageError
from diffseg.engines.machine import Gpus
from diffseg.engines.packages import install_command
from diffseg.engines.tensorrt.build import import_engine
from diffseg.engines.tensorrt.pipeline import build_plan
from diffseg.measure import capabilities as info

ROOT = Path(__file__).parents[2]
WHEEL = "file:///downloads/diffseg-0.1.0-py3-none-any.whl"
GIT = {"vcs": "git", "commit_id": "0123abcd"}
SOURCES = {
    "an index": (None, "pip install 'diffseg[cpu]'"),
    "a folder": ({"url": "file:///src/diffseg", "dir_info": {}}, "pip install '/src/diffseg[cpu]'"),
    "an editable folder": (
        {"url": "file:///src/diffseg", "dir_info": {"editable": True}},
        "pip install -e '/src/diffseg[cpu]'",
    ),
    "a folder with a space": ({"url": "file:///my%20src", "dir_info": {}}, "pip install '/my src[cpu]'"),
    "a wheel": ({"url": WHEEL, "archive_info": {"hash": "sha256=00"}}, f"pip install 'diffseg[cpu] @ {WHEEL}'"),
    "an archive's folder": (
        {"url": "https://example.org/all.zip", "archive_info": {}, "subdirectory": "python"},
        "pip install 'diffseg[cpu] @ https://example.org/all.zip#subdirectory=python'",
    ),
    "a commit": (
        {"url": "https://example.org/diffseg.git", "vcs_info": GIT},
        "pip install 'diffseg[cpu] @ git+https://example.org/diffseg.git@0123abcd'",
    ),
    "a branch": (
        {"url": "https://example.org/diffseg.git", "vcs_info": GIT | {"requested_revision": "main"}},
        "pip install 'diffseg[cpu] @ git+https://example.org/diffseg.git@main'",
    ),
}


def install(site, source, kind="dist-info"):
    """Metadata as pip leaves them."""
    folder = site / f"diffseg-0.1.0.{kind}"
    folder.mkdir(parents=True)
    (folder / ("METADATA" if kind == "dist-info" else "PKG-INFO")).write_text("Name: diffseg\nVersion: 0.1.0\n")
    if source:
        (folder / "direct_url.json").write_text(json.dumps(source))


def look_in(*folders, monkeypatch):
    """Make these folders the only ones with installed packages."""
    path = [str(folder) for folder in folders]
    monkeypatch.setattr(importlib.metadata, "distributions", partial(importlib.metadata.distributions, path=path))


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
@pytest.mark.parametrize("kind", SOURCES)
def test_the_command_names_what_the_package_was_installed_from(kind, tmp_path, monkeypatch):
    source, expected = SOURCES[kind]
    install(tmp_path, source)
    look_in(tmp_path, monkeypatch=monkeypatch)
    assert install_command("cpu") == expected
    assert len(shlex.split(expected)) in {3, 4}


def test_metadata_in_a_clone_do_not_hide_those_of_the_installation(tmp_path, monkeypatch):
    install(tmp_path / "clone", None, "egg-info")
    install(tmp_path / "site", {"url": WHEEL, "archive_info": {}})
    look_in(tmp_path / "clone", tmp_path / "site", monkeypatch=monkeypatch)
    assert WHEEL in install_command("cpu")


def test_without_an_installation_the_name_is_all_there_is(tmp_path, monkeypatch):
    look_in(tmp_path, monkeypatch=monkeypatch)
    assert install_command("serve") == "pip install 'diffseg[serve]'"


def test_building_needs_less_than_executing(fake_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match=re.escape(install_command("rtx-build"))):
        build_plan(fake_bundle, "tensorrt-rtx", gpus=Gpus((), "none in this test"))
    with pytest.raises(MissingPackageError, match=re.escape(install_command("rtx"))):
        import_engine("tensorrt-rtx")


def test_a_builder_without_filelock_needs_that_alone(fake_bundle, monkeypatch):
    """The extra would install TensorRT from an index, although JetPack's may be present."""
    builder = SimpleNamespace(__version__="1.7.1.116", ComputeCapability=SimpleNamespace(__members__=["SM89"]))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", builder)
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingPackageError, match="filelock is not installed: pip install filelock$"):
        build_plan(fake_bundle, "tensorrt-rtx", gpus=Gpus((), "none in this test"))


def test_info_says_once_how_to_install_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(info, "installed_version", lambda _: None)
    facts = info.capabilities()
    assert facts.install_extra == install_command("EXTRA")
    assert facts.builders["tensorrt-rtx"] == ("missing", "extra 'rtx-build'")
    assert facts.providers["cpu"] == ("no", "needs onnxruntime: extra 'cpu'")
    assert facts.packages["torch"] == ("missing", "extra 'export', for export only")
    assert f"to install an extra: {install_command('EXTRA')}" in list(machine_tables(facts))


def test_every_hint_is_written_by_the_one_function():
    for folder in ("engines", "export", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "diffseg[" not in path.read_text(encoding="utf-8"), path


def test_every_extra_that_is_named_is_declared():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        extra
        for folder in ("engines", "export", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        for extra in re.findall(r"install_command\([\"']([^\"']+)[\"']\)", path.read_text(encoding="utf-8"))
    }
    assert {"cpu", "gpu", "eval", "hub", "serve", "export", "openvino"} <= named
    assert named - {"EXTRA"} <= set(extras)
