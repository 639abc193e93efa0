"""Compile the GPU kernels ahead of time for every architecture. Needs triton, but no GPU.

Writes one archive per architecture (PTX and cubins) and `record.json` into engines/kernels/compiled. `--check` compiles
one architecture again, and fails if its PTX, the source, the compiler or the list of variants differs from the record.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from diffseg.engines.kernels import source, variants
from diffseg.engines.kernels.record import FOLDER, source_hash
from diffseg.engines.kernels.variants import PARTS, PTX_VERSION, SHARED_MEMORY, Variant
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile  # noqa: A004

HIDDEN = 2  # pointers to scratch memory that Triton appends to the declared arguments; these kernels use neither
POINTERS = ("queries", "keys", "sums", "averaged")
TYPES = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One compiled variant: its two files, and its entry of the record."""

    ptx: bytes
    cubin: bytes
    entry: dict[str, Any]


def compiler() -> str:
    """Name the compiler and its version."""
    return f"triton {importlib.metadata.version('triton')}"


def compile_variant(variant: Variant) -> Compiled:
    """Compile one variant to PTX and cubin.

    Raises:
        SystemExit: it does not fit its architecture, or its arguments are not those that the launcher passes.
    """
    knobs.compilation.disable_line_info = True  # otherwise the PTX contains the path of this checkout
    knobs.compilation.always_compile = True
    function, tiles = getattr(source, variant.kernel), variant.tiles
    declared = [name for name in function.arg_names if not name.isupper()]
    signature = {
        name: "constexpr"
        if name.isupper()
        else TYPES[variant.dtype]
        if name in {"queries", "keys"}
        else "*fp32"
        if name in POINTERS
        else "i32"
        for name in function.arg_names
    }
    part_a, part_b = PARTS[variant.width]
    constants = {
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "PART_A": part_a,
        "PART_B": part_b,
        "PRECISION": variant.precision,
        "STAGES": tiles.stages,
    }
    aligned: dict[tuple[int, ...], list[list[Any]]] = {
        (index,): [["tt.divisibility", 16 if name in POINTERS else 8]]
        for index, name in enumerate(function.arg_names)
        if name in (*POINTERS, "width")
    }
    started = time.perf_counter()
    kernel = compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", variant.arch, 32),
        options={
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
            "enable_fp_fusion": True,
            "ptx_version": PTX_VERSION,
        },
    )
    seconds = time.perf_counter() - started
    ptx, cubin, metadata = kernel.asm["ptx"].encode(), kernel.asm["cubin"], kernel.metadata
    arguments = [*declared, *["scratch"] * HIDDEN]
    found = _parameters(ptx.decode())
    if len(found) != len(arguments) or metadata.global_scratch_size or metadata.profile_scratch_size:
        raise SystemExit(f"{variant.name} of sm_{variant.arch} takes {found}; the launcher passes {arguments}")
    if metadata.shared > SHARED_MEMORY[variant.arch]:
        raise SystemExit(
            f"{variant.name} needs {metadata.shared} bytes of shared memory, too many for sm_{variant.arch}"
        )
    registers, spilled = _resources(cubin)
    entry = {
        **asdict(variant),
        **asdict(tiles),
        "precision": variant.precision,
        "name": metadata.name,
        "arguments": arguments,
        "shared_memory": metadata.shared,
        "registers": registers,
        "stack_bytes": spilled,
        "seconds": round(seconds, 1),
        "ptx": {"file": f"{variant.name}.ptx", "bytes": len(ptx), "sha256": hashlib.sha256(ptx).hexdigest()},
        "cubin": {"file": f"{variant.name}.cubin", "bytes": len(cubin), "sha256": hashlib.sha256(cubin).hexdigest()},
    }
    return Compiled(ptx, cubin, entry)


def _parameters(ptx: str) -> list[str]:
    """List the types of a kernel's parameters."""
    declaration = re.search(r"\.visible \.entry \w+\((.*?)\)", ptx, re.DOTALL)
    return re.findall(r"\.param \.(\w+)", declaration.group(1)) if declaration else []


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers per thread, and bytes of stack per thread, which holds spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", listed)
    if usage is None:
        raise SystemExit(f"cuobjdump lists no registers: {listed}")
    return int(usage.group(1)), int(usage.group(2))


def archive(files: list[tuple[str, bytes]]) -> bytes:
    """Pack files as tar.xz. The same files always give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def build(jobs: int) -> None:
    """Compile everything, and write archives and record."""
    wanted = [variant for arch in SHARED_MEMORY for variant in variants.variants(arch)]
    done = []
    with ProcessPoolExecutor(jobs) as pool:
        for variant, compiled in zip(wanted, pool.map(compile_variant, wanted), strict=True):
            done.append(compiled)
            entry = compiled.entry
            print(
                f"sm_{variant.arch} {variant.name:22} {entry['registers']:3} registers, "
                f"{entry['stack_bytes']:4} bytes of stack, {entry['shared_memory']:6} of shared memory, "
                f"{entry['seconds']:4} s",
                flush=True,
            )
    FOLDER.mkdir(exist_ok=True)
    archives = {}
    for arch in SHARED_MEMORY:
        ours = [compiled for compiled in done if compiled.entry["arch"] == arch]
        packed = archive(
            [(compiled.entry["ptx"]["file"], compiled.ptx) for compiled in ours]
            + [(compiled.entry["cubin"]["file"], compiled.cubin) for compiled in ours]
        )
        (FOLDER / f"sm_{arch}.tar.xz").write_bytes(packed)
        archives[f"sm_{arch}"] = {"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    record = {
        "source_sha256": source_hash(),
        "compiler": compiler(),
        "ptx_version": f"{PTX_VERSION // 10}.{PTX_VERSION % 10}",
        "archives": archives,
        "kernels": [compiled.entry for compiled in done],
    }
    (FOLDER / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(each['bytes'] for each in archives.values()) / 1e6:.2f} MB in {len(archives)} archives")


def stale(arch: int | None) -> list[str]:
    """List what differs between the record and this source and compiler; compile `arch` again unless it is None."""
    record = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    problems = [
        f"{name} is {record[name]!r} in the record and {now!r} now"
        for name, now in {"source_sha256": source_hash(), "compiler": compiler()}.items()
        if record[name] != now
    ]
    for name, expected in record["archives"].items():
        path = FOLDER / f"{name}.tar.xz"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            problems.append(f"{path.name} is missing or not the archive of the record")
    if arch is not None and not problems:
        entries = {(entry["arch"], entry["ptx"]["file"]): entry for entry in record["kernels"]}
        problems += [
            f"{variant.name} of sm_{arch} compiles to another PTX"
            for variant in variants.variants(arch)
            if compile_variant(variant).entry["ptx"] != entries[arch, f"{variant.name}.ptx"]["ptx"]
        ]
    return problems


def main() -> None:
    """Compile, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed files are out of date")
    parser.add_argument("--arch", type=int, choices=sorted(SHARED_MEMORY), default=80, help="compiled again by --check")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile at the same time")
    arguments = parser.parse_args()
    if not arguments.check:
        build(arguments.jobs)
        return
    problems = stale(arguments.arch)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise SystemExit("The compiled kernels are stale: run scripts/release/compile_kernels and commit its output.")
    print("The compiled kernels match their source and compiler.")


if __name__ == "__main__":
    main()
