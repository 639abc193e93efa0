"""Full-size Stable Diffusion 1.5 on this machine's CPU: figures beside their targets, and whether they are met.

    python scripts/bench/cpu.py WORK [--only speed,memory,start,growth] [--out record.json]

WORK is a folder for a random checkpoint and its bundles (20 GB with growth); existing ones are reused.
Needs the extras `cpu`, `export` and `dev`, 20 GB of memory, and an otherwise idle machine.

- speed: one process takes turns between a plain torch pipeline (diffusers' eager VAE encoder and UNet with attention
  probabilities, then aggregation and merging on whole arrays), our segmenter, and a 4096³ float32 matrix product in
  ONNX Runtime, NumPy and torch.
- memory: `diffseg segment` on one image, in a process per bundle; the peak of its resident set.
- start: the embedded model in fresh processes, with a warm disk.
- growth: `diffseg segment` at 320 to 1024 px, and batches of 1, 2 and 4 at 512 px.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
from bench.full_size import DIFFSEG, run, segment
from bench.merge import aggregate_whole, merge_whole
from bench.record import environment, read_record, write_record
from diffseg import Segmenter
from diffseg.engines import Bundle, example_images
from diffseg.measure.profile.startup import measure_starts
from packaging.requirements import Requirement

GEMM = 4096
SIZES = (320, 512, 768, 1024)
BATCHES = (1, 2, 4)
PARTS = ("memory", "start", "growth", "speed")
"""In this order, because the measured peak of a process includes the size of the process that started it."""

Target = tuple[str, float, float]  # name, measured value, limit


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the checkpoint and the bundles")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the speed part, after one that is not counted")
    parser.add_argument("--provider", default="cpu", help="provider of the speed part: cpu or openvino")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file, and keep the other parts in it")
    arguments = parser.parse_args()
    record = read_record(arguments.out) | environment("numpy", "onnxruntime", "openvino", "torch")
    work: Path = arguments.work
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(work, arguments.rounds, arguments.provider),
        "memory": lambda: memory(work),
        "start": start,
        "growth": lambda: growth(work),
    }
    for part in sorted(arguments.only.split(","), key=PARTS.index):
        other = part == "speed" and arguments.provider != "cpu"
        record[f"{part}_{arguments.provider}" if other else part] = steps[part]()
        write_record(record, arguments.out)
    print(json.dumps(record, indent=1))
    for what, found, most in targets(record):
        print(f"{'pass ' if found <= most else 'SHORT'} {what}: {found:.3g}, at most {most:.3g}")


def targets(record: dict[str, Any]) -> Iterator[Target]:
    """Return the figures that have a target."""
    for speed in (part for name, part in record.items() if name.startswith("speed")):
        most = 1 / 3.5 if speed["provider"] == "cpu" else 1 / 6
        yield f"{speed['provider']}: image file to masks, of the torch pipeline's time", speed["share_of_torch"], most
        yield "time of both graphs over that of the products alone", 1 / speed["share_of_product_rate"], 1 / 0.9
        yield "first image over the steady one, loading left out", speed["first_over_steady"], 1.5
    for precision, found in record.get("memory", {}).items():
        yield f"peak of segment in {precision}, GB", found["peak_gb"], 5 if precision == "fp32" else 3
    if "start" in record:
        yield "start of a process to the first masks of tiny, s", record["start"]["first_masks_s"], 1.2
        yield "import diffseg, s", record["start"]["import_s"], 0.25
    for row in record.get("growth", {}).get("sizes", []):
        if row["size"] == max(SIZES):
            yield f"peak at {row['size']} px, GB", row["peak_gb"], 12


def bundle_of(work: Path, precision: str = "fp32", size: int = 512) -> Path:
    """Make a bundle with random weights, unless it exists."""
    checkpoint, bundle = work / "sd15", work / (f"sd15-{precision}" + ("" if size == 512 else f"-{size}"))
    if not checkpoint.exists():
        run(sys.executable, Path(__file__).parents[1] / "make_checkpoint.py", "sd15", checkpoint)
    if not bundle.exists():
        run(*DIFFSEG, "export", checkpoint, "-o", bundle, "--size", str(size), "--precision", precision)
    return bundle


def speed(work: Path, rounds: int, provider: str) -> dict[str, Any]:
    """Time our segmenter, a PyTorch pipeline and large matrix products, alternately."""
    bundle = bundle_of(work)
    image = example_images()[0]
    begin = time.perf_counter()
    segmenter = Segmenter.load(bundle, provider=provider)
    load = time.perf_counter() - begin
    stages: dict[str, list[float]] = {}

    def ours() -> None:
        for stage, seconds in segmenter(image, 1.0).timings.items():
            stages.setdefault(stage, []).append(seconds)

    first = seconds_of(ours)
    steps = {"ours": ours, "torch": torch_pipeline(work / "sd15", image), **products()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            taken = seconds_of(step)
            if i:
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    stage_medians = {stage: statistics.median(values[2:]) for stage, values in stages.items()}
    flops = sum(graph.flops for graph in Bundle.open(bundle).manifest.graphs.values())
    product_rate = max(2 * GEMM**3 / min(seconds[name]) for name in seconds if name.startswith("product"))
    rate = flops / (stage_medians["encode"] + stage_medians["attend"])
    return {
        "provider": provider,
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "stages": {stage: round(value, 3) for stage, value in stage_medians.items()},
        "load_s": round(load, 2),
        "first_s": round(first, 2),
        "first_over_steady": round(first / median["ours"], 3),
        "share_of_torch": round(statistics.median(np.divide(seconds["ours"], seconds["torch"])), 4),
        "tflop_an_image": round(flops / 1e12, 3),
        "gflops": {"graphs": round(rate / 1e9, 1), "best_product": round(product_rate / 1e9, 1)},
        "share_of_product_rate": round(rate / product_rate, 3),
    }


def seconds_of(step: Callable[[], object]) -> float:
    """Run a step and return how long it took."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def products() -> dict[str, Callable[[], object]]:
    """Time one large float32 matrix product in each library."""
    import onnx_ir as ir
    import onnxruntime as ort
    import torch

    left, right = (np.random.default_rng(seed).random((GEMM, GEMM), np.float32) for seed in (1, 2))
    inputs = [ir.Value(name=n, shape=ir.Shape([GEMM] * 2), type=ir.TensorType(ir.DataType.FLOAT)) for n in "ab"]
    node = ir.node("MatMul", inputs)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "c", inputs[0].shape, inputs[0].type
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 18}, name="product")
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    return {
        "product, onnxruntime": lambda: session.run(None, {"a": left, "b": right}),
        "product, numpy": lambda: left @ right,
        "product, torch": lambda: tensors[0] @ tensors[1],
    }


def torch_pipeline(checkpoint: Path, image: Path) -> Callable[[], object]:
    """Return the pipeline without an export: eager float32, diffusers' own attention with its probabilities.

    Their mean over the heads is taken immediately; the reference code keeps all of them.
    """
    import torch
    from diffseg.export.checkpoint import load_checkpoint
    from diffseg.image import fit_image, read_image
    from diffseg.methods.suppress import non_max_suppression
    from diffusers.models.attention_processor import Attention, AttnProcessor

    loaded = load_checkpoint(checkpoint)
    recorded: dict[int, list[Any]] = {}
    loaded.unet.set_attn_processor(AttnProcessor())
    loaded.vae.set_attn_processor(AttnProcessor())
    for name, module in loaded.unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn1"):

            def record(*values: Any, honest: Any = module.get_attention_scores, heads: int = module.heads) -> Any:  # noqa: ANN401
                scores = honest(*values)
                recorded.setdefault(scores.shape[-1], []).append(scores.unflatten(0, (-1, heads)).mean(1)[0])
                return scores

            module.get_attention_scores = record

    @torch.no_grad()
    def step() -> object:
        recorded.clear()
        pixels = fit_image(read_image(image), (512, 512), "stretch")[0]
        tensor = torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2).float() / 127.5 - 1
        latent = loaded.vae.encode(tensor).latent_dist.mean * loaded.vae.config.scaling_factor
        loaded.unet(latent, 300, loaded.prompt)
        maps = [torch.stack(recorded[n]).mean(0).numpy() for n in sorted(recorded, reverse=True)]
        return non_max_suppression(merge_whole(aggregate_whole(maps), 1.0).reshape(-1, 64, 64), (512, 512))

    return step


def memory(work: Path) -> dict[str, Any]:
    """Time whole commands on one image."""
    return {precision: segment(bundle_of(work, precision)) for precision in ("fp32", "fp16")}


def start() -> dict[str, Any]:
    """Measure the embedded model."""
    found = measure_starts("tiny", example_images()[0], 5, "cpu", None)
    return {
        "first_masks_s": round(min(found.first_masks), 3),
        "import_s": round(min(found.importing), 3),
        "command_s": round(min(found.command), 3),
        "steps_s": {name: round(best, 3) for name, best in found.steps().items()},
        "lean_packages_mb": round(sum(installed_bytes(name) for name in needed("diffseg", "cpu")) / 1e6),
    }


def needed(name: str, extra: str = "") -> set[str]:
    """Return the names of the distributions that a distribution needs, directly or indirectly."""
    found: set[str] = set()
    waiting = [(name, extra)]
    while waiting:
        asker, extra = waiting.pop()
        for text in distribution(asker).requires or []:
            requirement = Requirement(text)
            if requirement.name not in found and (
                not requirement.marker or requirement.marker.evaluate({"extra": extra})
            ):
                found.add(requirement.name)
                waiting.append((requirement.name, ""))
    return found


def installed_bytes(name: str) -> int:
    """Return the size of an installed distribution's files in bytes."""
    files = distribution(name).files or []
    return sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())


def growth(work: Path) -> dict[str, Any]:
    """Measure time and peak memory by image size and by batch."""
    sizes = [{"size": size} | segment(bundle_of(work, "fp32", size)) for size in SIZES]
    bundle = bundle_of(work)
    batches = [{"batch": n} | segment(bundle, "--batch", str(n), images=max(BATCHES)) for n in BATCHES]
    return {"sizes": sizes, "batches": batches}


if __name__ == "__main__":
    main()
