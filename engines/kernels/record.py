"""The compiled kernels that ship with the package: selection for a GPU, and their files."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg.engines.errors import ProviderError
from diffseg.engines.kernels.variants import AMPERE, DTYPES, KERNELS, PARTS, Kernel

FOLDER = Path(__file__).parent / "compiled"
LAST_PORTABLE = 89
"""The newest architecture whose PTX later GPUs can read. From 9.0 on, PTX uses features of one architecture only."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One kernel of the record.

    Attributes:
        kernel: name of the kernel.
        arch: the architecture that it was compiled for: 90 for compute capability 9.0.
        rows: queries per block.
        columns: keys per block, or per step of `row_sums`.
        warps: warps of 32 threads per block.
        shared_memory: dynamic shared memory, in bytes per block.
        name: name of the function in its module.
        arguments: names of the arguments in order, with the hidden pointers at the end as "scratch".
        files: names and SHA-256 of its files in the archive, in the order in which they are tried.
    """

    kernel: Kernel
    arch: int
    rows: int
    columns: int
    warps: int
    shared_memory: int
    name: str
    arguments: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def source_hash() -> str:
    """Return the SHA-256 of the sources of the kernels and their variants, which the record also contains."""
    files = (Path(__file__).with_name(name) for name in ("source.py", "variants.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def read_record() -> dict[str, Any]:
    """Read the record of the compiled kernels that `scripts/release/compile_kernels` wrote."""
    record: dict[str, Any] = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    return record


def find_kernels(capability: int, dtype: str, width: int) -> dict[Kernel, CompiledKernel]:
    """Find the kernels for a GPU.

    If kernels were compiled for the GPU's architecture, their cubin is used, or their PTX if the driver rejects the
    cubin. Any other GPU gets the newest PTX that it can read, which the driver compiles at the first use.

    Args:
        capability: compute capability: 89 for 8.9.
        dtype: type of queries and keys: fp16, bf16 or fp32.
        width: width of a head.

    Raises:
        ProviderError: there are no kernels for this GPU, type or width.
    """
    entries = read_record()["kernels"]
    compiled = sorted({entry["arch"] for entry in entries})
    readable = [arch for arch in compiled if arch == capability or arch <= min(capability, LAST_PORTABLE)]
    if not readable:
        raise ProviderError(
            f"this GPU has compute capability {capability / 10:.1f}; the kernels of the averaged attention need "
            f"{compiled[0] / 10:.1f} or newer: use another provider"
        )
    arch = readable[-1]
    if dtype not in DTYPES:
        raise ProviderError(f"queries and keys are {dtype}; the kernels take float16, bfloat16 and float32")
    if dtype == "bf16" and arch < AMPERE:
        raise ProviderError(
            f"bfloat16 needs compute capability 8.0; this GPU has {capability / 10:.1f}: export the bundle in fp16"
        )
    wide = [each for each in PARTS if each >= width]
    if width % 8 or width < 1 or not wide:
        raise ProviderError(f"heads are {width} wide; the kernels take multiples of 8 from 8 to {max(PARTS)}")
    found = {
        entry["kernel"]: _compiled(entry, portable=arch != capability)
        for entry in entries
        if (entry["arch"], entry["dtype"], entry["width"]) == (arch, dtype, wide[0])
    }
    return {kernel: found[kernel] for kernel in KERNELS}


def read_files(kernels: dict[Kernel, CompiledKernel]) -> dict[str, bytes]:
    """Unpack the files of some kernels of one architecture, by name.

    Raises:
        ProviderError: the archive is missing or damaged.
    """
    arch = next(iter(kernels.values())).arch
    path = FOLDER / f"sm_{arch}.tar.xz"
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:xz") as archive:
            for name in (name for kernel in kernels.values() for name, _ in kernel.files):
                member = archive.extractfile(name)
                files[name] = member.read() if member else b""
    except (OSError, EOFError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
        raise ProviderError(f"the compiled kernels {path} cannot be read ({error}): install diffseg again") from None
    for name, expected in (file for kernel in kernels.values() for file in kernel.files):
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ProviderError(f"{name} of the compiled kernels {path} does not match its hash: install diffseg again")
    return files


def _compiled(entry: dict[str, Any], *, portable: bool) -> CompiledKernel:
    kinds = ("ptx",) if portable else ("cubin", "ptx")
    return CompiledKernel(
        kernel=entry["kernel"],
        arch=entry["arch"],
        rows=entry["rows"],
        columns=entry["columns"],
        warps=entry["warps"],
        shared_memory=entry["shared_memory"],
        name=entry["name"],
        arguments=tuple(entry["arguments"]),
        files=tuple((entry[kind]["file"], entry[kind]["sha256"]) for kind in kinds),
    )
