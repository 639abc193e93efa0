"""`diffseg batch`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from diffseg.cli.limits import MAX_MEGAPIXELS, MAX_THREADS
from diffseg.cli.terminal import consoles, wrong_usage
from diffseg.engines.bundle.settings import MAX_TAU, Method, Refine
from diffseg.engines.providers.select import Provider
from diffseg.engines.text import counted
from diffseg.image import Fit

if TYPE_CHECKING:
    from diffseg.scale.batch import Work
    from diffseg.scale.run import BatchReport, BatchRun

INDEX = "JOB_COMPLETION_INDEX"
"""Environment variable in which Kubernetes passes a pod of an indexed job its index, from 0."""
MEGA = 1_000_000


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Folders, glob patterns, images, .tar (WebDataset), .parquet, or .txt lists; local or s3://, gs://.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder or URI for the results.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Embedded model, bundle folder or hub id.")] = "tiny",
    provider: Annotated[Provider, typer.Option(help="Provider that executes the network.")] = Provider.AUTO,
    kind: Annotated[
        Literal["parquet", "webdataset", "coco"], typer.Option("--format", help="What to write.")
    ] = "parquet",
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="Merge maps closer than this KL divergence, in nats; default: the bundle's."),
    ] = None,
    anchors: Annotated[int | None, typer.Option(min=1, help="Anchors per side; default: the bundle's.")] = None,
    method: Annotated[Method | None, typer.Option(help="How masks are made; default: the bundle's.")] = None,
    tau: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_TAU, help="Divide regions whose cut costs less than this; default: the bundle's."),
    ] = None,
    fit: Annotated[Fit, typer.Option(help="How images are fitted to the network's input size.")] = "stretch",
    refine: Annotated[Refine | None, typer.Option(help="Refinement of the masks; default: the bundle's.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also write the labels of each image as a PNG.")] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write each image with its masks drawn over it.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Images per pass through the network.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: a local Ray."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers; default: one per GPU, or without GPUs one per 4 CPUs.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs per worker, or a fraction of one; default: 1 if there are enough.")
    ] = None,
    autoscaling: Annotated[
        bool, typer.Option("--autoscaling", help="The cluster starts machines on demand: wait for them.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads per worker; default: its share.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Do one of this many parts of the work, without Ray; see --shard. Implies --local."),
    ] = None,
    shard: Annotated[
        int | None, typer.Option(min=0, help=f"Which part, from 0; default: the value of {INDEX}.")
    ] = None,
    per_file: Annotated[
        int, typer.Option("--images-per-file", min=1, max=10_000, help="Images per file of results, on average.")
    ] = 100,
    column: Annotated[
        str | None,
        typer.Option(help="Column of Parquet inputs with encoded images, paths or URIs; default: a usual name."),
    ] = None,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, max=MAX_MEGAPIXELS, help="Largest image to decode, in megapixels.")
    ] = 50,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Segment any number of images, on one machine or a Ray cluster. Run the command again to resume."""
    from diffseg.engines.bundle.bundle import open_bundle
    from diffseg.lifetime import portable_model
    from diffseg.scale.batch import find_work
    from diffseg.scale.options import BatchOptions
    from diffseg.scale.run import BatchRun
    from diffseg.scale.storage import is_remote, local_path

    index, count = _shard(shard, shards)
    if address is not None and (local or shards):
        raise typer.BadParameter("--local and --shards run without Ray; leave one of them out", param_hint="--address")
    options = BatchOptions(
        model=portable_model(model, open_bundle(model).folder),
        provider=provider.value,
        batch=batch_size,
        threads=threads,
        threshold=threshold,
        method=method,
        anchors=anchors,
        tau=tau,
        refine=refine,
        fit=fit,
        labels=labels,
        overlays=overlays,
        pixels=round(max_pixels * MEGA),
    )
    run = BatchRun(output if is_remote(output) else str(local_path(output)), kind, options)
    say = _Lines(quiet=quiet)
    with wrong_usage():
        options.describe()
    work = find_work(run, inputs, per_file=per_file, column=column, shard=index, shards=count)
    _say_what(say, run, work)
    start = time.perf_counter()
    with ExitStack() as stack:
        if local or shards or not work.units:
            from diffseg.scale.batch import run_local

            reports = run_local(run, work.units)
            used = 1
        else:
            from diffseg.scale.batch import plan_on_ray, run_on_ray
            from diffseg.scale.cluster import ray_cluster

            ray = stack.enter_context(ray_cluster(address))
            plan = plan_on_ray(ray, work.units, workers, gpus_per_worker, may_grow=autoscaling)
            used = plan.workers
            gpus = f" and {counted(plan.gpus, 'GPU')}" if plan.gpus else ""
            say.status(f"{counted(used, 'worker')} with {counted(plan.threads, 'thread')}{gpus} each")
            reports = run_on_ray(ray, run, work.units, plan)
            start = time.perf_counter()
        total = _collect(reports, work)
    seconds = time.perf_counter() - start
    if kind == "coco" and shards is None:
        from diffseg.scale.join_coco import join_coco
        from diffseg.scale.storage import open_folder

        join_coco(open_folder(run.folder))
    _summary(say, run, total, seconds, used)


class _Lines:
    """Prints readable lines: the summary on standard output, everything else on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._results, self._errors = consoles()

    def status(self, line: str) -> None:
        if not self.quiet:
            self._errors.print(line, style="dim")

    def result(self, line: str) -> None:
        if not self.quiet:
            self._results.print(line)


def _shard(shard: int | None, shards: int | None) -> tuple[int, int]:
    """Return the index of the part of the work to do, and the number of parts."""
    named = os.environ.get(INDEX)
    if shards is None:
        if shard is not None or named is not None:
            found = f"--shard {shard}" if shard is not None else f"{INDEX}={named}"
            raise typer.BadParameter(f"found {found}; say how many parts there are", param_hint="--shards")
        return 0, 1
    if shard is None:
        if named is None or not named.isdecimal():
            raise typer.BadParameter(f"name a part, or set {INDEX} to its number", param_hint="--shard")
        shard = int(named)
    if shard >= shards:
        raise typer.BadParameter(f"parts are 0 to {shards - 1}, found {shard}", param_hint="--shard")
    return shard, shards


def _say_what(say: _Lines, run: BatchRun, work: Work) -> None:
    for other in work.others:
        say.status(f"{run.output} also has a run with other settings or another bundle: {other}")
    if work.done:
        say.status(f"going on with {run.name}: files done: {work.done}, left: {len(work.units)}")
    elif work.others:
        say.status(f"a new run: {run.name}")
    images = "" if work.images is None else f"{counted(work.images, 'image')}, "
    say.status(f"{images}{counted(len(work.units), 'file')} to write in {run.folder}")


def _collect(reports: Iterable[BatchReport], work: Work) -> BatchReport:
    """Add the reports, with a progress bar on a terminal."""
    from diffseg.scale.run import BatchReport

    total = BatchReport()
    for report in _tracked(reports, work):
        total.add(report)
    return total


def _tracked(reports: Iterable[BatchReport], work: Work) -> Iterator[BatchReport]:
    if not sys.stderr.isatty():
        yield from reports
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=consoles()[1], transient=True) as progress:
        task = progress.add_task("segmenting", total=work.images or len(work.units))
        for report in reports:
            progress.advance(task, report.images if work.images else 1)
            yield report


def _summary(say: _Lines, run: BatchRun, total: BatchReport, seconds: float, workers: int) -> None:
    if not total.images:
        say.result(f"nothing is left to do → {run.folder}")
        return
    pace = total.images / seconds
    say.result(
        f"{counted(total.images, 'image')}, {total.errors} with errors, in {seconds:.1f} s "
        f"({pace:.2f} images/s with {counted(workers, 'worker')}) → {run.folder}"
    )
    stages = {stage: taken for stage, taken in total.seconds.items() if stage != "total"}
    rest = total.seconds["total"] - sum(stages.values())
    parts = [f"{stage} {taken:.1f} s" for stage, taken in stages.items()] + [f"reading and the rest {rest:.1f} s"]
    say.result("  of the workers' time: " + ", ".join(parts))
