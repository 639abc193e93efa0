"""Make the archive of full-size graphs that a machine with a GPU gets, and rehearse with it what needs no GPU.

    python scripts/bench/gpu_archive.py /tmp/archive --out scripts/results/gpu_archive.json

The checkpoint has random weights. Each step is a process of its own; its peak memory is the largest resident set that
the operating system saw. Steps whose result is in the folder already are not run again.

Needs the extra `export`, about 12 GB of disk and 10 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.processes import run
from bench.record import environment, read_record, write_record
from diffseg.engines import Bundle
from gpu_check.wheels import PIECE_BYTES

SCRIPTS = Path(__file__).parents[1]
STEPS = ("weights", "graphs", "network", "forms", "throughput")
CHECK = [sys.executable, SCRIPTS / "gpu_check"]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the checkpoint, the bundle and the archive")
    parser.add_argument("--family", default="sd15")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--small", action="store_true", help="a tenth of the width, to try this script")
    parser.add_argument("--steps", nargs="*", default=STEPS, help="steps of the check to rehearse")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    work, kept = arguments.work, arguments.work / "steps.json"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle, archive = work / "checkpoint", work / "bundle", work / "graphs.zip"
    small = ["--small"] if arguments.small else []
    commands: dict[str, tuple[Path, list[str | Path]]] = {
        "checkpoint": (
            checkpoint,
            [sys.executable, SCRIPTS / "make_checkpoint.py", arguments.family, checkpoint, *small],
        ),
        "export": (
            bundle,
            [sys.executable, "-m", "diffseg", "export", checkpoint, "-o", bundle, "--precision", arguments.precision],
        ),
        "pack": (archive, [*CHECK, "pack", bundle, archive]),
    }
    steps: dict[str, Any] = read_record(kept)
    for name, (result, command) in commands.items():
        if not result.exists():
            steps[name] = run(*command)
            write_record(steps, kept)
    record = environment("diffseg", "torch", "diffusers", "onnx", "onnxruntime")
    record |= {
        "what": f"{arguments.family}, {arguments.precision}, random weights{', small' if small else ''}",
        "steps": steps,
        "archive": describe(bundle, archive),
    }
    write_record(record, arguments.out)
    rehearsed = work / "rehearsal"
    options = ["--rehearse", "--runs", "1", "--work", rehearsed, "--graphs", archive]
    if arguments.steps:
        steps["rehearsal"] = run(*CHECK, *options, "--only", *arguments.steps)
        found = read_record(rehearsed / "rehearsal.json")["steps"]
        record["rehearsal"] = {
            name: {key: each[key] for key in each if key != "revision"} for name, each in found.items()
        }
    write_record(record, arguments.out)


def describe(folder: Path, archive: Path) -> dict[str, Any]:
    """Sizes in bytes: the archive, its files as they are packed, and the weights that it leaves out."""
    files = Bundle.open(folder).manifest.files
    with zipfile.ZipFile(archive) as packed:
        names = {each.filename: each.compress_size for each in packed.infolist()}
    size = archive.stat().st_size
    return {
        "bytes": size,
        "pieces_of_60_mib": -(-size // PIECE_BYTES),
        "packed_bytes": names,
        "left_out_bytes": sum(file.bytes for name, file in files.items() if name not in names),
    }


if __name__ == "__main__":
    main()
