"""Segment a data set of Ray Data."""

from __future__ import annotations

from typing import Any

from diffseg.scale.cluster import nodes_of
from diffseg.scale.options import BatchOptions
from diffseg.scale.resources import WorkerPlan, plan_workers
from diffseg.scale.worker import SegmentWorker


def segment_dataset(
    dataset: Any,  # noqa: ANN401 - a ray.data.Dataset, which the type checker need not have
    model: str = "tiny",
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    data_column: str = "bytes",
    key_column: str = "path",
    rows_per_call: int = 16,
    plan: WorkerPlan | None = None,
    **settings: Any,  # noqa: ANN401 - checked by BatchOptions
) -> Any:  # noqa: ANN401
    """Segment the encoded images of a data set.

        rows = segment_dataset(ray.data.read_binary_files("photos", include_paths=True), "tiny", threshold=0.8)
        rows.write_parquet("masks")

    Ray must be running: the numbers of CPUs and GPUs come from its cluster.

    Args:
        dataset: a data set with a column of encoded images.
        model: embedded model, bundle folder or hub id, as every machine of the cluster finds it.
        workers: number of workers; None: one per GPU, or without GPUs one per 4 CPUs.
        gpus_per_worker: GPUs per worker, which may be a fraction.
        data_column: column with the encoded images.
        key_column: column with the keys; without it, keys are the SHA-256 of the images.
        rows_per_call: number of images per call of a worker.
        plan: resources of the workers; None plans them so that tasks that read and write have room.
        **settings: the other arguments of `SegmentWorker`, such as `threshold` and `provider`.

    Returns:
        A data set with one row per image; see `diffseg.scale.rows`. It is computed when it is consumed.

    Raises:
        ClusterError: the workers do not fit.
        TypeError: an unknown setting.
        ValueError: a setting is out of range.
    """
    import ray

    options = BatchOptions(model=model, **settings)
    options.describe()  # raises here, and not in a worker
    chosen = plan or plan_workers(nodes_of(ray), workers, gpus_per_worker)
    arguments = options.arguments() | {"data_column": data_column, "key_column": key_column}
    arguments["threads"] = options.threads or chosen.threads
    return dataset.map_batches(
        SegmentWorker,
        fn_constructor_kwargs=arguments,
        batch_size=rows_per_call,
        **worker_options(chosen),
    )


def worker_options(plan: WorkerPlan) -> dict[str, Any]:
    """Return the arguments of `map_batches` for workers."""
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(size=plan.workers),
        "num_cpus": plan.cpus,
        "num_gpus": plan.gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(plan.threads)}},
    }
