"""Batches: images per second per worker, memory as the input grows, and larger clusters on paper.

    python scripts/bench/scale.py WORK [--only workers,memory,local,paper] [--small BUNDLE] [--out record.json]

WORK is a folder for images and results. Needs the extras `cpu` and `ray`, Linux, and an otherwise idle machine.

- workers: `tiny` with 1 and 2 workers in turn, several rounds in one run. Only the time from the first finished image
  to the last is counted, because Ray starts for tens of seconds.
- memory: peak of the resident sets of the driver and of the largest worker for 200 and 2,000 tiny images, with a bundle
  of a small input size (--small), because it is the number of images that counts.
  The record's `toy` has 64 pixels and a few nodes per graph: `tests.engines.toy.make_toy(folder)` writes it.
- local: the same peak of `diffseg batch --local`, without Ray, one process per number of images.
- paper: bytes per image as measured here; from those, what 10, 100 and 1,000 GPUs would read and write, what saturates
  first, and the cost of a million images. Nothing of this was run. `--gpu-pace` and `--gpu-hour` set its assumptions.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

sys.path.append(str(Path(__file__).parents[1]))  # for the modules that scripts share

from bench.record import environment, read_record, write_record
from diffseg.engines.examples import example_images
from diffseg.scale.batch import find_work, run_on_ray
from diffseg.scale.cluster import nodes_of, ray_cluster
from diffseg.scale.options import BatchOptions
from diffseg.scale.resources import plan_workers
from diffseg.scale.run import BatchReport, BatchRun
from PIL import Image

PARTS = ("workers", "memory", "local", "paper")
CLUSTERS = (10, 100, 1000)
MILLION = 1_000_000
GETS, PUTS = 5500, 3500
"""Requests per second per prefix of an S3 bucket, at least (docs.aws.amazon.com, optimizing-performance)."""
PER_FILE = 100
GPU_PACE = 10.0
GPU_HOUR = 1.006
"""US dollars: g5.xlarge (one A10G), on demand, us-east-1, as factualminds.com reported AWS's list on 17 June 2026."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for images and results")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--small", default="tiny", help="bundle of the memory part; a small input size saves time")
    parser.add_argument("--images", type=int, default=12, help="images per round of the workers part")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the workers part")
    parser.add_argument("--gpu-pace", type=float, default=GPU_PACE, help="images per second per GPU, assumed")
    parser.add_argument("--gpu-hour", type=float, default=GPU_HOUR, help="US dollars per GPU and hour")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file, and keep the other parts in it")
    arguments = parser.parse_args()
    record = read_record(arguments.out) | environment("ray", "pyarrow", "numpy", "onnxruntime")
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "workers": lambda: workers(arguments.work, arguments.images, arguments.rounds),
        "memory": lambda: memory(arguments.work, arguments.small),
        "local": lambda: local(arguments.work, arguments.small),
        "paper": lambda: paper(record.get("workers", {}), arguments.gpu_pace, arguments.gpu_hour),
    }
    for part in arguments.only.split(","):
        record[part] = steps[part]()
        print(part, record[part])
        if arguments.out:
            write_record(record, arguments.out)


def workers(work: Path, count: int, rounds: int) -> dict[str, Any]:
    """Images per second of 1 and 2 workers, in turn, and bytes per image."""
    photos = work / "photos"
    _photos(photos, count)
    paces: dict[int, list[float]] = {1: [], 2: []}
    with ray_cluster() as ray:
        for _ in range(rounds):
            for number, found in paces.items():
                results = work / "masks"
                shutil.rmtree(results, ignore_errors=True)
                run = BatchRun(str(results), "parquet", BatchOptions(provider="cpu"))
                units = find_work(run, [str(photos)], per_file=1).units
                plan = plan_workers(nodes_of(ray), number)
                ends = []
                for report in run_on_ray(ray, run, units, plan):
                    ends += [time.perf_counter()] * report.images
                found.append((len(ends) - number) / (ends[-1] - ends[number - 1]))
                shared = ray.cluster_resources().get("object_store_memory", 0.0)
                used = shared - ray.available_resources().get("object_store_memory", shared)
    read = [path.stat().st_size for path in photos.iterdir()]
    written = [path.stat().st_size for path in results.rglob("part-*")]
    medians = {number: statistics.median(found) for number, found in paces.items()}
    return {
        "model": "tiny",
        "images_per_second": {str(number): [round(pace, 3) for pace in found] for number, found in paces.items()},
        "images_per_second_per_worker": {str(n): round(pace / n, 3) for n, pace in medians.items()},
        "ratio_of_2_to_1": round(medians[2] / medians[1], 3),
        "bytes_read_per_image": round(statistics.mean(read)),
        "bytes_written_per_image_alone_in_a_file": round(statistics.mean(written)),
        "object_store_bytes_held_at_the_end": round(used),
    }


def memory(work: Path, model: str) -> dict[str, Any]:
    """Peak memory in bytes for 200 and 2,000 images."""
    found: dict[str, Any] = {"model": Path(model).name}
    for count in (200, 2000):
        photos, results = work / f"small-{count}", work / f"small-masks-{count}"
        _small(photos, count)
        shutil.rmtree(results, ignore_errors=True)
        with ray_cluster() as ray, Watch() as watch:
            run = BatchRun(str(results), "parquet", BatchOptions(model=model, provider="cpu"))
            work_left = find_work(run, [str(photos)], per_file=20)
            plan = plan_workers(nodes_of(ray), 2)
            total = BatchReport()
            for report in run_on_ray(ray, run, work_left.units, plan):
                total.add(report)
        assert total.images == count  # noqa: S101 - otherwise something else was measured
        found[str(count)] = {"driver_bytes": watch.driver, "largest_worker_bytes": watch.worker, "errors": total.errors}
    return found


def local(work: Path, model: str) -> dict[str, Any]:
    """Peak memory in bytes of a process without Ray for 200 and 2,000 images."""
    found: dict[str, Any] = {"model": Path(model).name}
    for count in (200, 2000):
        photos, results = work / f"small-{count}", work / f"local-masks-{count}"
        _small(photos, count)
        shutil.rmtree(results, ignore_errors=True)
        words = ["batch", photos, "-o", results, "--model", model, "--provider", "cpu", "--local", "--format", "coco"]
        process = subprocess.Popen([sys.executable, "-m", "diffseg", *map(str, words), "--threads", "1", "-q"])
        peak = 0  # not that of os.wait4, which counts the memory of this process at the fork, too
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, _status(str(process.pid)).get("VmHWM", 0))
            time.sleep(0.02)
        _, status, usage = ended
        if status:
            raise SystemExit("the batch failed")
        found[str(count)] = {"peak_bytes": peak, "cpu_seconds": round(usage.ru_utime, 1)}
    return found


def paper(measured: dict[str, Any], pace: float, hour: float) -> dict[str, Any]:
    """Larger clusters, computed; nothing of this was run."""
    read = measured.get("bytes_read_per_image", 0)
    written = measured.get("bytes_written_per_image_alone_in_a_file", 0)
    clusters = {}
    for gpus in CLUSTERS:
        images = gpus * pace
        shares = {"GETs of one prefix": images / GETS, "PUTs of one prefix": images / PER_FILE / PUTS}
        first = max(shares, key=lambda name: shares[name])
        clusters[str(gpus)] = {
            "images_per_second": images,
            "read_megabytes_per_second": round(images * read / 1e6, 1),
            "written_megabytes_per_second": round(images * written / 1e6, 1),
            "hours_per_million_images": round(MILLION / images / 3600, 2),
            "saturates_first": f"{first}: {shares[first]:.0%} of the limit; otherwise the GPUs",
        }
    return {
        "assumed": {"images_per_second_per_gpu": pace, "us_dollars_per_gpu_hour": hour, "images_per_file": PER_FILE},
        "us_dollars_per_million_images": round(MILLION / pace / 3600 * hour, 2),
        "clusters": clusters,
        "run": False,
    }


class Watch:
    """Samples the resident sets of this process and of Ray's workers below it."""

    def __init__(self) -> None:
        self.driver = self.worker = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.2):
            self.driver = max(self.driver, _resident("self"))
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdecimal() and b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                        self.worker = max(self.worker, _resident(entry.name))
                except OSError:
                    continue


def _resident(process: str) -> int:
    """Bytes of private memory: without the pages that Ray's processes share through its object store."""
    fields = _status(process)
    return fields.get("RssAnon", 0) + fields.get("RssFile", 0)


def _status(process: str) -> dict[str, int]:
    """Bytes of each kind of memory of a process; none if it has ended."""
    found = {}
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _photos(folder: Path, count: int) -> None:
    """Write photographs of 640 pixels, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = example_images()
    for i in range(count):
        with Image.open(sources[i % len(sources)]) as image:
            image.convert("RGB").resize((640, 400 + 10 * (i // len(sources)))).save(folder / f"{i}.jpg", quality=90)


def _small(folder: Path, count: int) -> None:
    """Write images of 64 pixels, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(example_images()[0]) as image:
        small = image.convert("RGB").resize((64, 64))
    for i in range(count):
        small.putpixel((i % 64, i // 64), (i % 256, 0, 0))
        small.save(folder / f"{i}.png")


if __name__ == "__main__":
    main()
