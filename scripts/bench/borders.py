"""Masks at the image's own resolution: seconds, memory and steps of borders, by the size of the image.

    python scripts/bench/borders.py [--out record.json]

The embedded model segments one of the example images, enlarged to each size, with and without colour refinement. CPU
times are given beside wall times, because other work on the machine does not count in them. The largest
size needs 2.5 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

import numpy as np
from bench.record import environment, write_record
from diffseg import Segmenter
from diffseg.engines import example_images
from PIL import Image

SIZES = ((512, 512), (1024, 768), (4000, 3000), (15_400, 11_550))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    arguments = parser.parse_args()
    segmenter = Segmenter.load("tiny", provider="cpu")
    with Image.open(example_images()[0]) as file:
        example = file.convert("RGB")
    segmenter(example)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        image = example.resize(size, Image.Resampling.BICUBIC)
        rows += [measure(segmenter, image, refine) for refine in ("none", "colour")]
        print(json.dumps(rows[-2:]), flush=True)
    write_record(environment("numpy", "pillow", "onnxruntime") | {"images": rows}, arguments.out)


def measure(segmenter: Segmenter, image: Image.Image, refine: Any) -> dict[str, Any]:  # noqa: ANN401
    """Segment an image once."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = segmenter(image, refine=refine)
    return {
        "megapixels": round(image.width * image.height / 1e6, 2),
        "refine": refine,
        "masks": len(result.segments),
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "stages": {name: round(seconds, 3) for name, seconds in result.timings.items()},
        "largest_step_px": largest_step(result.labels),
        "peak_gb_so_far": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def largest_step(labels: np.ndarray[Any, Any]) -> int:
    """Return the side of the squares of which a label map consists: 8 means that it was enlarged eightfold."""
    return int(min(_repeats(labels), _repeats(labels.T)))


def _repeats(labels: np.ndarray[Any, Any]) -> int:
    """Return the least distance between rows at which labels change."""
    changes = np.flatnonzero([bool((one != other).any()) for one, other in zip(labels[1:], labels, strict=False)])
    return int(np.diff(changes).min()) if len(changes) > 1 else len(labels)


if __name__ == "__main__":
    main()
