"""How workers share CPUs and GPUs."""

import pytest
from diffseg.engines.errors import ClusterError
from diffseg.scale.resources import Node, WorkerPlan, plan_workers
from hypothesis import given
from hypothesis import strategies as st


def test_two_workers_on_two_cpus_leave_one_for_reading():
    assert plan_workers([Node(2)], 2) == WorkerPlan(workers=2, cpus=0.5, gpus=0, threads=1)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "plan"),
    [
        ([Node(1)], None, None, WorkerPlan(1, 0.0, 0.0, 1)),
        ([Node(16)], None, None, WorkerPlan(4, 3.75, 0.0, 4)),
        ([Node(16, 2)], None, None, WorkerPlan(2, 4, 1.0, 8)),
        ([Node(16, 2)], 4, 0.5, WorkerPlan(4, 3.75, 0.5, 4)),
        ([Node(8, 1)] * 10, None, None, WorkerPlan(10, 4, 1.0, 8)),
        ([Node(4, 0), Node(4, 1)], 1, 1, WorkerPlan(1, 2.91, 1, 8)),
        ([Node(1)] * 2, 2, None, WorkerPlan(2, 0.0, 0.0, 1)),  # wherever they are, a CPU is free
    ],
)
def test_plans(nodes, workers, gpus, plan):
    assert plan_workers(nodes, workers, gpus) == plan


@given(
    st.lists(st.builds(Node, st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 0, 0.5, 1, 2]),
)
def test_every_plan_fits_and_leaves_a_cpu(nodes, workers, gpus):
    try:
        plan = plan_workers(nodes, workers, gpus)
    except ClusterError:
        assert workers > 4 * sum(node.cpus for node in nodes) or workers > sum(
            int(node.gpus / (gpus or 1)) for node in nodes
        )
        return
    assert plan.workers == workers
    room = [
        min(
            round(node.cpus / plan.cpus - 0.5 + 1e-6) if plan.cpus else 999,
            int(node.gpus / plan.gpus + 1e-9) if plan.gpus else 999,
        )
        for node in nodes
    ]
    assert sum(room) >= workers
    total = sum(node.cpus for node in nodes)
    assert plan.cpus * workers <= sum(node.cpus - 1 for node in nodes) + 1e-6
    assert plan.threads * workers <= max(total, workers)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "message"),
    [
        ([Node(8)], 2, 1, "2 workers with 1 GPU each do not fit: the cluster has 0 GPUs in 1 machine, room for 0"),
        ([Node(8, 1)] * 2, 1, 2, "the cluster has 2 GPUs in 2 machines, room for 0"),
        ([Node(2)], 9, None, "9 workers are too many for 2 CPUs; choose at most 8 with --workers"),
    ],
)
def test_a_plan_that_cannot_run_is_refused(nodes, workers, gpus, message):
    with pytest.raises(ClusterError) as caught:
        plan_workers(nodes, workers, gpus)
    assert message in str(caught.value)


def test_a_cluster_that_grows_may_be_empty_yet():
    assert plan_workers([Node(4)], 100, 1, may_grow=True).workers == 100
