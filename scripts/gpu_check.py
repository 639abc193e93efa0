"""Everything of this package that needs a GPU, checked and measured in one run; see scripts/gpu_check.

    python scripts/gpu_check.py [--work gpu] [--family sd15] [--out scripts/results/gpu_<name>.json] [--parts …]

Part by part: the GPU's matrix products, merging by CuPy, the embedded model and a full-size checkpoint with random
weights in every provider that runs here, and PyTorch in eager mode as the baseline. A part that can't run says why in
one line and the rest goes on. The record is written after each part, so a run that is cut off keeps what it had.

Latency is from uint8 on the host to labels on the host. Shares of the GPU's peak are of the rate of its own fp16
product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench.merge import make_maps
from bench.record import environment, percentiles, write_record
from diffseg import Segmenter
from diffseg.engines import Bundle, DiffsegError, example_images, open_bundle
from diffseg.engines.machine import find_gpus
from diffseg.engines.providers.cuda import import_cupy
from diffseg.image import fit_image, read_image
from diffseg.measure.compare import compare_providers
from diffseg.methods.aggregate import aggregate_attention
from diffseg.methods.merge import merge_attention
from diffseg.methods.suppress import non_max_suppression

GEMM = 8192
milliseconds = partial(percentiles, unit=1e-3)
PROVIDERS = ("cuda", "tensorrt-rtx", "tensorrt", "ort-tensorrt")
PACKAGES = ("torch", "diffusers", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cupy-cuda13x", "numpy")


@dataclass
class Check:
    """What the parts share."""

    work: Path
    family: str
    runs: int
    gemm_flops: float = 0.0  # of the fp16 product, a second
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        """The full-size fp16 bundle."""
        return self.work / f"{self.family}-fp16"


def device_seconds(cupy: Any, work: Callable[[], Any], runs: int) -> list[float]:  # noqa: ANN401 - untyped upstream
    """Seconds on the GPU of each of `runs` calls, after three that don't count."""
    found = []
    for i in range(runs + 3):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        if i > 2:
            found.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return found


def check_gemm(check: Check) -> dict[str, Any]:
    """Rate of one large matrix product, fp16 and fp32, on random data."""
    cupy = import_cupy()
    result = {}
    for kind in ("float16", "float32"):
        a, b = (cupy.random.standard_normal((GEMM, GEMM), dtype=np.float32).astype(kind) for _ in range(2))
        seconds = statistics.median(device_seconds(cupy, lambda a=a, b=b: a @ b, 20))
        result[f"{kind}_tflops"] = round(2 * GEMM**3 / seconds / 1e12, 1)
    check.gemm_flops = 1e12 * result["float16_tflops"]
    return result


def check_merging(check: Check) -> dict[str, Any]:
    """Aggregate, merge and suppress on the GPU: the NumPy code's masks, and how long each takes."""
    cupy = import_cupy()
    result: dict[str, Any] = {}
    for grid in (64, 128):
        host = make_maps(grid)
        proposals = merge_attention(aggregate_attention(host), 0.6)
        expected = non_max_suppression(proposals, (8 * grid, 8 * grid))
        maps = [cupy.asarray(m) for m in host]
        attention = aggregate_attention(maps)
        found = merge_attention(attention, 0.6)
        labels = cupy.asnumpy(non_max_suppression(found, (8 * grid, 8 * grid)))
        stages = {
            "aggregate": lambda maps=maps: aggregate_attention(maps),
            "merge": lambda attention=attention: merge_attention(attention, 0.6),
            "suppress": lambda found=found, grid=grid: non_max_suppression(found, (8 * grid, 8 * grid)),
        }
        result[f"{grid}x{grid}"] = {
            "equal_pixels": float((labels == expected).mean()),
            "proposals": [int(proposals.shape[0]), int(found.shape[0])],
            "milliseconds": {
                stage: milliseconds(device_seconds(cupy, work, check.runs)) for stage, work in stages.items()
            },
        }
    return result


def check_export(check: Check) -> dict[str, Any]:
    """A full-size checkpoint with random weights, and its fp16 bundle."""
    scripts, checkpoint = Path(__file__).parent, check.work / check.family
    seconds = {}
    steps = {
        checkpoint: [scripts / "make_checkpoint.py", check.family, checkpoint],
        check.bundle: ["-m", "diffseg", "export", checkpoint, "-o", check.bundle, "--precision", "fp16"],
    }
    for target, command in steps.items():
        if not target.exists():
            start = time.perf_counter()
            words = [sys.executable, *(str(word) for word in command)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            seconds[target.name] = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "parity": Bundle.open(check.bundle).manifest.parity}


def check_torch(check: Check) -> dict[str, Any]:
    """The baseline: diffusers in eager mode, half precision, attention probabilities averaged as they come."""
    import torch
    from diffseg.export.checkpoint import load_checkpoint
    from diffseg.export.graphs import AttentionUNet, Encoder

    bundle = Bundle.open(check.bundle)
    loaded = load_checkpoint(check.work / check.family)
    size = bundle.manifest.image_size
    with torch.inference_mode():
        unet = AttentionUNet(loaded.unet, loaded.prompt, bundle.manifest.timestep, size).half().cuda()
        encoder = Encoder(loaded.vae).half().cuda()
        images = network_images(bundle, 1)
        seconds: dict[str, list[float]] = {"encode": [], "attend": [], "total": []}
        for i in range(min(check.runs, 30) + 3):
            start = time.perf_counter()
            latent = encoder(torch.from_numpy(images).cuda())
            torch.cuda.synchronize()
            middle = time.perf_counter()
            unet(latent)
            torch.cuda.synchronize()
            end = time.perf_counter()
            if i > 2:
                for stage, value in zip(seconds, (middle - start, end - middle, end - start), strict=True):
                    seconds[stage].append(value)
        peak = torch.cuda.max_memory_allocated()
    del unet, encoder, latent
    torch.cuda.empty_cache()
    return {
        "milliseconds": {k: milliseconds(v) for k, v in seconds.items()},
        "peak_gb": round(peak / 1e9, 2),
    }


def network_images(bundle: Bundle, count: int) -> np.ndarray:
    """Example photographs at the network's size, uint8 (count, H, W, 3)."""
    pictures = [read_image(path) for path in example_images()]
    pixels = [fit_image(picture, bundle.manifest.image_size, "stretch")[0] for picture in pictures]
    return np.stack([pixels[i % len(pixels)] for i in range(count)])


def check_provider(check: Check, bundle: Bundle, provider: str) -> dict[str, Any]:
    """Agreement with the CPU, latency by stage, throughput by batch, and a folder with images in flight."""
    result: dict[str, Any] = {}
    if provider in ("tensorrt", "tensorrt-rtx"):
        start = time.perf_counter()
        words = [sys.executable, "-m", "diffseg", "build", str(bundle.folder), "--engine", provider]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        result["build"] = {"seconds": round(time.perf_counter() - start, 1), "said": done.stdout.splitlines()[1:]}
    start = time.perf_counter()
    segmenter = Segmenter.load(bundle.folder, provider=provider)
    result["load_seconds"] = round(time.perf_counter() - start, 2)
    images = network_images(bundle, 8)
    start = time.perf_counter()
    segmenter(images[0])
    result["first_image_seconds"] = round(time.perf_counter() - start, 2)
    for i in range(5):
        segmenter(images[i])
    totals, stages = [], {}
    for i in range(check.runs):
        start = time.perf_counter()
        timings = segmenter(images[i % len(images)]).timings
        totals.append(time.perf_counter() - start)
        for stage, seconds in timings.items():
            stages.setdefault(stage, []).append(seconds)
    result["milliseconds"] = {
        "total": milliseconds(totals),
        **{s: milliseconds(v) for s, v in stages.items()},
    }
    flops = sum(graph.flops for graph in bundle.manifest.graphs.values())
    network = sum(statistics.median(stages[stage]) for stage in ("encode", "attend"))
    if check.gemm_flops:
        result["share_of_gemm"] = round(flops / network / check.gemm_flops, 3)
    result["images_per_second"] = {}
    for batch in (b for b in (1, 2, 4, 8) if b <= bundle.manifest.max_batch):
        many = Segmenter(bundle, segmenter.network, batch=batch)
        sources = [images[i % len(images)] for i in range(max(32, 4 * batch))]
        many(sources[: 2 * batch])
        start = time.perf_counter()
        done = many(sources)
        seconds = time.perf_counter() - start
        busy = sum(sum(v for s, v in r.timings.items() if s not in ("decode", "resize")) for r in done)
        result["images_per_second"][batch] = {"rate": round(len(done) / seconds, 1), "busy": round(busy / seconds, 3)}
    free, whole = import_cupy().cuda.runtime.memGetInfo()
    result["gpu_memory_gb"] = round((whole - free) / 1e9, 2)
    comparison = compare_providers(bundle, provider, example_images()[:1])
    result["agreement"] = asdict(comparison) | {"passed": comparison.passed}
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("gpu"), help="folder for checkpoint and bundle; kept")
    parser.add_argument("--family", default="sd15", help="architecture of the full-size checkpoint")
    parser.add_argument("--runs", type=int, default=100, help="images that latency is taken of")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--parts", nargs="+", help="only these parts, by name or beginning of it")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    check = Check(arguments.work, arguments.family, arguments.runs)
    found = find_gpus()
    check.record = environment(*PACKAGES) | {"parts": {}}
    if found.first is None:
        sys.exit(f"no GPU to check: {found.reason}")
    print(f"{found.first.name}, compute capability {found.first.compute_capability}", flush=True)
    parts: dict[str, Callable[[], Any]] = {
        "gemm": lambda: check_gemm(check),
        "merging": lambda: check_merging(check),
        **{f"tiny/{p}": lambda p=p: check_provider(check, open_bundle("tiny"), p) for p in PROVIDERS},
        "export": lambda: check_export(check),
        "torch": lambda: check_torch(check),
        **{f"{check.family}/{p}": lambda p=p: check_provider(check, Bundle.open(check.bundle), p) for p in PROVIDERS},
    }
    for name, part in parts.items():
        if arguments.parts and not name.startswith(tuple(arguments.parts)):
            continue
        start = time.perf_counter()
        try:
            outcome = part()
        except Exception as error:  # a part must not take the others down  # noqa: BLE001
            text = str(error).strip().splitlines()
            outcome = {"could_not_run": f"{type(error).__name__}: {text[0] if text else ''}"}
            if not isinstance(error, DiffsegError | RuntimeError | ImportError):
                traceback.print_exc()
        check.record["parts"][name] = {"seconds": round(time.perf_counter() - start, 1), **outcome}
        print(f"{name}: {json.dumps(outcome, indent=1)}", flush=True)
        write_record(check.record, arguments.out)


if __name__ == "__main__":
    main()
