"""The number of workers of a batch, and the CPUs and GPUs of each, planned so that no worker waits forever.

Ray starts a task only where the CPUs that it asks for are free. On a machine with 2 CPUs, two workers of one CPU each
leave nothing for the tasks that read and write, so the job hangs without a message. So do two workers on two machines
with one CPU each. Workers therefore ask for shares that leave one CPU free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffseg.engines.errors import ClusterError
from diffseg.engines.text import counted

CPUS_PER_WORKER = 4
"""Default for workers without a GPU. More threads speed up a single image only little."""
CPUS_PER_GPU = 4
"""Largest number of CPUs for a worker with a GPU, which decodes and merges images on them."""
MOST_WORKERS = 10_000
ROUNDING = 1e-9
STEP = 0.01
"""Ray counts CPUs in steps of 0.0001."""


@dataclass(frozen=True, slots=True)
class Node:
    """The CPUs and GPUs of one machine of a cluster."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The workers, and the resources that each reserves.

    Attributes:
        workers: number of workers.
        cpus: CPUs that each worker reserves; fewer than it uses on a machine with few CPUs.
        gpus: GPUs that each worker reserves.
        threads: CPU threads of each worker's network.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int


def plan_workers(
    nodes: Sequence[Node], workers: int | None = None, gpus: float | None = None, *, may_grow: bool = False
) -> WorkerPlan:
    """Plan how many workers run, and what each may use.

    Args:
        nodes: the machines of the cluster.
        workers: number of workers. None: one per GPU, or without GPUs one per 4 CPUs.
        gpus: GPUs per worker, which may be a fraction. None: one if there are enough GPUs for that, else none.
        may_grow: the cluster starts machines on demand, so that workers may wait for those.

    Raises:
        ClusterError: there is no room for the workers.
    """
    total = sum(node.cpus for node in nodes)
    all_gpus = sum(node.gpus for node in nodes)
    if gpus is None:
        gpus = 1.0 if all_gpus >= (workers or 1) else 0.0
    if workers is None:
        workers = math.floor(all_gpus / gpus) if gpus else max(1, int(total) // CPUS_PER_WORKER)
        workers = max(1, workers)
    if gpus and not may_grow and (room := sum(math.floor(node.gpus / gpus) for node in nodes)) < workers:
        raise ClusterError(
            f"{counted(workers, 'worker')} with {counted(gpus, 'GPU')} each do not fit: the cluster has "
            f"{counted(all_gpus, 'GPU')} in {counted(len(nodes), 'machine')}, room for {room}; choose "
            "fewer --workers or --gpus-per-worker, or pass --autoscaling if the cluster starts machines on demand"
        )
    if may_grow and _room(nodes, STEP, gpus) < workers:  # there are no machines yet to divide
        return WorkerPlan(workers, 1.0, gpus, max(1, int(max((node.cpus for node in nodes), default=1.0)) - 1))
    if workers > total * 4:
        raise ClusterError(
            f"{counted(workers, 'worker')} are too many for {counted(total, 'CPU')}; choose at most "
            f"{max(1, int(total * 4))} with --workers"
        )
    return WorkerPlan(workers, _share(nodes, workers, gpus), gpus, max(1, int(total // workers)))


def _share(nodes: Sequence[Node], workers: int, gpus: float) -> float:
    """Return the CPUs per worker with which all fit, and some machine has one CPU left for other tasks.

    Ray may place workers on any machines. One CPU of each is set aside: if all workers together ask for no more than
    the rest, at least one machine keeps its CPU, wherever they are placed. With machines of one CPU, nothing is left,
    and workers ask for none.
    """
    free = [Node(max(0.0, node.cpus - 1), node.gpus) for node in nodes]
    share = sum(node.cpus for node in free) / workers
    share = min(share, CPUS_PER_GPU) if gpus else share
    share = math.floor(share / STEP) * STEP
    while share >= STEP and _room(free, share, gpus) < workers:
        share = math.floor(share * 0.9 / STEP) * STEP
    return round(max(0.0, share), 2)


def _room(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """Return how many workers fit on the machines."""
    room = 0
    for node in nodes:
        by_gpus = [math.floor(node.gpus / gpus + ROUNDING)] if gpus else []
        room += min(math.floor(node.cpus / cpus + ROUNDING), *by_gpus, MOST_WORKERS)
    return room
