"""Run a batch: find the images, skip those that are done, and let workers process the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffseg.engines.errors import ClusterError, DiffsegError
from diffseg.engines.text import first_line
from diffseg.scale.cluster import nodes_of
from diffseg.scale.dataset import worker_options
from diffseg.scale.inputs import find_inputs
from diffseg.scale.resources import WorkerPlan, plan_workers
from diffseg.scale.run import BatchReport, BatchRun, UnitWorker
from diffseg.scale.storage import is_remote, local_path
from diffseg.scale.units import Unit, container_unit, file_units, of_shard, unit_count


@dataclass(slots=True)
class Work:
    """The remaining work of a run.

    Attributes:
        units: the units that are not done.
        done: number of units that are done.
        others: how the other runs in the output differ from this one, one line each.
    """

    units: list[Unit] = field(default_factory=list)
    done: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def images(self) -> int | None:
        """Number of images to segment; None if files contain images, which are counted as they are read."""
        return sum(len(u.items) for u in self.units) if all(u.kind == "files" for u in self.units) else None


def find_work(
    run: BatchRun,
    inputs: Sequence[str],
    *,
    per_file: int = 100,
    column: str | None = None,
    shard: int = 0,
    shards: int = 1,
) -> Work:
    """Start a run, or resume it.

    Args:
        run: where results go and how they are made.
        inputs: see `find_inputs`.
        per_file: images per file of results, on average.
        column: name of the column to read from Parquet inputs; see `find_inputs`.
        shard: index of the part of the work to return, from 0. The parts do not depend on what is done.
        shards: number of parts into which the work is divided.

    Raises:
        ClusterError: there are no images, or inputs or outputs cannot be reached.
        MissingPackageError: a package that an input or output needs is missing.
        BundleError: the bundle does not exist or is damaged.
        ValueError: a setting is out of range.
    """
    output = run.output if is_remote(run.output) else str(local_path(run.output))
    found = find_inputs(inputs, column=column, output=output)
    count, others = run.begin(unit_count(len(found.files), per_file, shards))
    units = file_units(found.files, count)
    units += [container_unit("tar", name) for name in found.tars]
    units += [container_unit("parquet", name, groups, chosen) for name, groups, chosen in found.tables]
    pending, done = run.pending(of_shard(units, shard, shards))
    return Work(pending, done, others)


def run_local(run: BatchRun, units: Sequence[Unit]) -> Iterator[BatchReport]:
    """Process units in this process, without Ray, and yield a report after each.

    Raises:
        DiffsegError: the bundle cannot be loaded, or a file cannot be read or written.
    """
    if units:
        worker = UnitWorker(run)
        yield from map(worker.process, units)


class RayUnitWorker:
    """A unit worker in a process of Ray Data. It returns errors, because Ray would add tracebacks to raised ones.

    Args:
        run: the run whose files are written.
        threads: CPU threads of the network.
    """

    def __init__(self, run: BatchRun, threads: int) -> None:
        self._worker: UnitWorker | None = None
        self._problem = ""
        try:
            self._worker = UnitWorker(run, threads)
        except (DiffsegError, ValueError) as error:
            self._problem = str(error)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Process the units of a batch. Return one row per unit, with its report or its problem."""
        rows = [self._process(Unit.decode(str(text))) for text in batch["unit"]]
        return {name: [row[name] for row in rows] for name in ("images", "errors", "seconds", "problem")}

    def _process(self, unit: Unit) -> dict[str, Any]:
        report, problem = BatchReport(), self._problem
        if self._worker is not None:
            try:
                report = self._worker.process(unit)
            except DiffsegError as error:
                problem = str(error)
        return {
            "images": report.images,
            "errors": report.errors,
            "seconds": json.dumps(report.seconds),
            "problem": problem,
        }


def run_on_ray(ray: Any, run: BatchRun, units: Sequence[Unit], plan: WorkerPlan) -> Iterator[BatchReport]:  # noqa: ANN401
    """Process units with workers on Ray, and yield a report after each, in the order in which they finish.

    A worker that is killed is restarted, and its unit is given to a worker again.

    Args:
        ray: the `ray` module, connected to a cluster.
        run: the run whose files are written.
        units: what to process.
        plan: number of workers, and the resources of each.

    Raises:
        ClusterError: the job failed. What it had written by then is kept.
    """
    if not units:
        return
    items = [{"unit": unit.encode()} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    reports = dataset.map_batches(
        RayUnitWorker,
        fn_constructor_kwargs={"run": run, "threads": run.options.threads or plan.threads},
        batch_size=1,
        **worker_options(plan),
    )
    try:
        for row in reports.iter_rows():
            if row["problem"]:
                raise ClusterError(f"{row['problem']}; what was written is kept; run the command again to continue")
            yield BatchReport(row["images"], row["errors"], Counter(json.loads(row["seconds"])))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the job failed: {_cause(error)}; run the command again to continue") from None


def plan_on_ray(
    ray: Any,  # noqa: ANN401 - the module
    units: Sequence[Unit],
    workers: int | None,
    gpus: float | None,
    *,
    may_grow: bool = False,
) -> WorkerPlan:
    """Plan the workers for units: at most one worker per unit.

    Raises:
        ClusterError: the workers do not fit.
    """
    plan = plan_workers(nodes_of(ray), workers, gpus, may_grow=may_grow)
    if plan.workers <= len(units) or not units:
        return plan
    return plan_workers(nodes_of(ray), len(units), plan.gpus, may_grow=may_grow)


def _cause(error: BaseException) -> str:
    """Return the first line of a worker's error, without Ray's tracebacks."""
    cause = getattr(error, "cause", None)
    while cause is not None and getattr(cause, "cause", None) is not None:
        cause = cause.cause
    return first_line(error if cause is None else cause)
