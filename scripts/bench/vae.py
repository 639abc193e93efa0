"""Compare the work of the VAE's encoder with that of TAESD and TAESDXL, with random weights, in PyTorch on the CPU.

    python scripts/bench/vae.py --size 512 --out scripts/results/vae_encoders.json

Besides the seconds, the record has those of all threads together, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import torch
from bench.record import environment, write_record
from make_checkpoint import make_vae
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def measure(kind: str, size: int, runs: int) -> dict[str, Any]:
    """Return parameters, FLOPs per image, and the fastest of several passes of an encoder of SDXL's size."""
    encoder = make_vae(kind, "sdxl", small=False).encoder.eval()
    image = torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    times = []
    for _ in range(runs):
        start, cpu = time.perf_counter(), time.process_time()
        encoder(image)
        times.append((time.process_time() - cpu, time.perf_counter() - start))
    best = min(times)
    return {
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "flops": counter.get_total_flops(),
        "cpu_seconds": round(best[0], 2),
        "seconds": round(best[1], 2),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()
    record = {**environment("torch", "diffusers"), "size": arguments.size, "weights": "random"}
    record["encoders"] = {kind: measure(kind, arguments.size, arguments.runs) for kind in ("kl", "tiny")}
    print(json.dumps(record, indent=1))
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
