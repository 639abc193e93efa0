"""The compiled kernels match their source and are complete, intact and small; every architecture still compiles."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from diffseg.engines.errors import ProviderError
from diffseg.engines.kernels import record
from diffseg.engines.kernels.record import FOLDER, find_kernels, read_files, read_record, source_hash
from diffseg.engines.kernels.variants import PTX_VERSION, SHARED_MEMORY, variants

ROOT = Path(__file__).parents[3]
KINDS = ("ptx", "cubin")


def test_the_record_is_of_this_source():
    assert read_record()["source_sha256"] == source_hash(), "run scripts/release/compile_kernels"


def test_every_variant_is_recorded_and_fits_its_architecture():
    entries = read_record()["kernels"]
    expected = [(v.kernel, v.arch, v.dtype, v.width) for arch in SHARED_MEMORY for v in variants(arch)]
    assert [(e["kernel"], e["arch"], e["dtype"], e["width"]) for e in entries] == expected
    for entry in entries:
        assert entry["shared_memory"] <= SHARED_MEMORY[entry["arch"]]
        assert entry["registers"] * 32 * entry["warps"] <= 65536
        assert entry["arguments"][-2:] == ["scratch", "scratch"]


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_the_archives_hold_what_is_recorded(arch):
    files = {
        entry[kind]["file"]: entry[kind]
        for entry in read_record()["kernels"]
        if entry["arch"] == arch
        for kind in KINDS
    }
    packed = (FOLDER / f"sm_{arch}.tar.xz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == read_record()["archives"][f"sm_{arch}"]["sha256"]
    target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tarfile.open(FOLDER / f"sm_{arch}.tar.xz") as archive:
        for member in archive:
            data = archive.extractfile(member).read()
            expected = files.pop(member.name)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (expected["bytes"], expected["sha256"])
            if member.name.endswith(".ptx"):
                assert re.search(rb"^\.target (\w+)", data, re.MULTILINE).group(1).decode() == target
                assert f".version {PTX_VERSION // 10}.{PTX_VERSION % 10}".encode() in data
                assert b"/" not in b"".join(re.findall(rb'\.file.*"(.*)"', data)), "a path of the build machine"
            else:
                assert data.startswith(b"\x7fELF")
    assert files == {}


def test_all_archives_stay_under_4_mb():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000


@pytest.mark.parametrize(
    ("capability", "arch"),
    [(75, 75), (80, 80), (86, 86), (87, 86), (89, 89), (90, 90), (100, 100), (103, 89), (121, 89)],
)
def test_a_gpu_gets_the_newest_kernels_that_it_can_read(capability, arch):
    found = find_kernels(capability, "fp16", 40)
    assert [(kernel.kernel, kernel.arch) for kernel in found.values()] == [("row_sums", arch), ("average_maps", arch)]
    suffixes = {Path(name).suffix for kernel in found.values() for name, _ in kernel.files}
    assert suffixes == ({".cubin", ".ptx"} if capability == arch else {".ptx"})
    assert sorted(read_files(found)) == sorted(name for kernel in found.values() for name, _ in kernel.files)


def damage(folder, how):
    data = (FOLDER / "sm_90.tar.xz").read_bytes()
    if how == "altered":
        listed = json.loads((FOLDER / "record.json").read_text())
        for entry in listed["kernels"]:
            entry["ptx"]["sha256"] = "0" * 64
        (folder / "record.json").write_text(json.dumps(listed))
    if how != "missing":
        (folder / "sm_90.tar.xz").write_bytes(data[: len(data) // 3] if how == "cut" else data)


@pytest.mark.parametrize("how", ["missing", "cut", "altered"])
def test_damaged_archives_are_refused(tmp_path, monkeypatch, how):
    (tmp_path / "record.json").write_text((FOLDER / "record.json").read_text())
    damage(tmp_path, how)
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    read_record.cache_clear()
    try:
        with pytest.raises(ProviderError, match="install diffseg again"):
            read_files(find_kernels(90, "fp16", 160))
    finally:
        read_record.cache_clear()


COMPILE = """
import json, sys
sys.path.insert(0, "scripts/release")
from compile_kernels import compile_variant, compiler
from diffseg.engines.kernels.variants import Variant
entry = compile_variant(Variant("row_sums", int(sys.argv[1]), "fp16", 48)).entry
print(json.dumps([compiler(), entry["ptx"]["sha256"], entry["shared_memory"]]))
"""


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_every_architecture_compiles_without_a_gpu(tmp_path, arch):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton, to compile the kernels: pip install 'diffseg[kernels]'")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE, str(arch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    version, digest, shared = json.loads(done.stdout)
    recorded = next(entry for entry in read_record()["kernels"] if entry["arch"] == arch)
    assert (recorded["kernel"], recorded["dtype"], recorded["width"]) == ("row_sums", "fp16", 48)
    if version == read_record()["compiler"]:
        assert (digest, shared) == (recorded["ptx"]["sha256"], recorded["shared_memory"])


def test_the_check_of_a_stale_source_names_what_differs(monkeypatch):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton, which compile_kernels imports")
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "release"))
    import compile_kernels

    monkeypatch.setattr(compile_kernels, "source_hash", lambda: "another")
    assert any("source_sha256" in problem and "another" in problem for problem in compile_kernels.stale(None))
    monkeypatch.setattr(compile_kernels, "source_hash", source_hash)
    monkeypatch.setattr(compile_kernels, "compiler", lambda: read_record()["compiler"])
    assert compile_kernels.stale(None) == []
