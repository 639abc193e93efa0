"""Times of the engine's operators, from runs with the engine's own profiler on."""

from __future__ import annotations

from collections.abc import Sequence

from diffseg.engines.errors import ProviderError
from diffseg.engines.providers.operators import Operator, RecordsOperators
from diffseg.measure.profile.record import OperatorKind, OperatorNode, OperatorTimes
from diffseg.measure.profile.runs import Run, Runner

NODES = 50
"""Largest number of single operators in a record."""


def record_operators(runner: Runner, count: int) -> tuple[list[Run], list[Operator], str | None]:
    """Run again with the engine's own profiler on.

    Returns:
        The runs, their operators, and the reason why there are no operators, or None.
    """
    network = runner.segmenter.network
    if not count:
        return [], [], "not requested"
    if not isinstance(network, RecordsOperators):
        return [], [], f"provider {network.provider} does not record operators"
    try:
        with network.record_operators() as operators:
            runner.run(0)  # warm-up
            runs = [runner.run(i) for i in range(count)]
    except ProviderError as error:
        return [], [], str(error)
    begin = runs[0].span.start
    return runs, [operator for operator in operators if operator.start >= begin], None


def summarise_operators(
    operators: list[Operator], runs: list[Run], batch: int, totals: Sequence[float]
) -> OperatorTimes:
    """Add operators up by kind and by node.

    Args:
        operators: operators of all runs.
        runs: the runs in which they were recorded.
        batch: images per run.
        totals: seconds of the timed runs; the first of these runs had the same images as `runs`.
    """
    images = len(runs) * batch
    kinds: dict[str, list[int]] = {}
    nodes: dict[tuple[str, str, str], list[int]] = {}
    for operator in operators:
        kinds.setdefault(operator.kind, []).append(operator.duration)
        nodes.setdefault((operator.kind, operator.graph, operator.name), []).append(operator.duration)
    whole = sum(operator.duration for operator in operators)

    def figures(durations: list[int]) -> tuple[float, float, float]:
        """Return seconds per image, calls per image, and the share of the time."""
        return sum(durations) / 1e9 / images, len(durations) / images, sum(durations) / whole

    mean = sum(run.span.seconds for run in runs) / len(runs)
    longest_kinds = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    longest_nodes = sorted(nodes.items(), key=lambda item: -sum(item[1]))[:NODES]
    return OperatorTimes(
        images=images,
        slowdown=mean / (sum(totals[: len(runs)]) / len(runs)),
        kinds=[OperatorKind(kind, *figures(durations)) for kind, durations in longest_kinds],
        nodes=[OperatorNode(*key, *figures(durations)) for key, durations in longest_nodes],
    )
