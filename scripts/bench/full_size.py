"""Take a full-size random checkpoint through the main job on this machine, and record seconds and memory.

    python scripts/bench/full_size.py /tmp/full --family sd15 --out scripts/results/full_size_cpu.json

With `--build 8.6 8.9 12.0` each bundle is also built by TensorRT-RTX, for which no GPU is needed (extra `rtx-build`).

Needs the extra `export`, about 12 GB of disk and 20 GB of memory. Each step is a process of its own; its peak memory is
the largest resident set that the operating system saw. Steps whose result exists are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.processes import run
from bench.record import environment, read_record, write_record
from diffseg.engines import Bundle, example_images
from diffseg.engines.bundle.manifest import UNET
from diffseg.engines.inspect import inspect_bundle
from diffseg.engines.tensorrt.plan import RECORD
from msgspec import to_builtins

DIFFSEG = [sys.executable, "-m", "diffseg"]


def describe(folder: Path) -> dict[str, Any]:
    """Return the size, cost and parity that a bundle's manifest states."""
    manifest = Bundle.open(folder).manifest
    graphs: dict[str, dict[str, Any]] = {
        name: {
            "parameters": g.parameters,
            "flops": g.flops,
            "parameters_dropped": g.parameters_dropped,
            "activation_bytes": g.activation_bytes,
            "layers": g.layers,
        }
        for name, g in manifest.graphs.items()
    }
    graphs[UNET]["flops_dropped"] = manifest.graphs[UNET].flops_dropped
    for name, form in manifest.graphs[UNET].forms.items():
        size_alone = manifest.files[form.file].bytes  # it shares the weights of the graph
        graphs[f"{UNET}.{name}"] = {"flops": form.flops, "bytes_without_weights": size_alone, "layers": form.layers}
    size = sum(file.bytes for file in manifest.files.values())
    return {
        "gigabytes": round(size / 1e9, 3),
        "graphs": graphs,
        "parity": manifest.parity,
        "versions": manifest.versions,
    }


def newest_plan(bundle: Path) -> dict[str, Any]:
    """Return the facts in the record of the plan that was built last, and the sizes of its files."""
    plans = inspect_bundle(Bundle.open(bundle)).plans
    plan = max(plans, key=lambda plan: Path(plan.folder, RECORD).stat().st_mtime)
    if plan.problem is not None:
        raise SystemExit(plan.problem)
    return {"purpose": plan.purpose, "graphs": to_builtins(plan.graphs)}


def segment(bundle: Path, *options: str, images: int = 1) -> dict[str, Any]:
    """Run `diffseg segment` on the CPU in a separate process, and time the stages of the first image."""
    paths, masks = example_images()[:images], bundle.parent / "masks"
    found = run(*DIFFSEG, "segment", *paths, "-o", masks, "--model", bundle, "--provider", "cpu", *options)
    timings = json.loads((masks / f"{paths[0].name}.json").read_text())["timings"]
    return found | {"stages": {stage: round(seconds, 3) for stage, seconds in timings.items()}}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the checkpoint and the bundles")
    parser.add_argument("--family", default="sd15")
    parser.add_argument("--size", default="512")
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16", "bf16"), help="default: fp32 and fp16")
    parser.add_argument("--method", action="append", choices=("diffseg", "diffcut"), help="default: diffseg")
    parser.add_argument("--taesd", action="store_true", help="also export with an AutoencoderTiny as the VAE")
    parser.add_argument("--build", nargs="+", metavar="N.N", help="also build plans for these compute capabilities")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file; what it holds already is kept")
    arguments = parser.parse_args()
    checkpoint, tiny = arguments.work / arguments.family, arguments.work / f"{arguments.family}-taesd-vae"
    record: dict[str, Any] = {
        **environment("torch", "diffusers", "onnxruntime", "tensorrt-rtx"),
        "family": arguments.family,
        "size": arguments.size,
        "weights": "random",
    }
    record = read_record(arguments.out) | record
    steps = record.setdefault("steps", {})
    script = Path(__file__).parents[1] / "make_checkpoint.py"
    if not checkpoint.exists():
        steps["make_checkpoint"] = run(sys.executable, script, arguments.family, checkpoint)
    if arguments.taesd and not tiny.exists():
        run(sys.executable, script, arguments.family, tiny, "--vae", "tiny", "--only-vae")
    for precision in arguments.precision or ("fp32", "fp16"):
        for method in arguments.method or ("diffseg",):
            for vae in ("", "taesd") if arguments.taesd else ("",):
                name = "_".join(part for part in ("" if method == "diffseg" else method, vae, precision) if part)
                bundle = arguments.work / f"{arguments.family}-{name.replace('_', '-')}"
                if not bundle.exists():
                    options = ["-o", bundle, "--size", arguments.size, "--precision", precision, "--method", method]
                    options += ["--vae", tiny] if vae else []
                    steps[f"export_{name}"] = run(*DIFFSEG, "export", checkpoint, *options)
                record[f"bundle_{name}"] = describe(bundle)
                if arguments.build:
                    wanted = [w for capability in arguments.build for w in ("--compute-capability", capability)]
                    step = run(*DIFFSEG, "build", bundle, "--engine", "tensorrt-rtx", "--force", *wanted)
                    steps[f"build_{name}"] = step | {"plan": newest_plan(bundle)}
                steps[f"segment_{name}"] = segment(bundle)
                write_record(record, arguments.out)
    print(json.dumps(record, indent=1))
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
