"""Operators inside a graph, as a provider's own profiler reports them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Operator:
    """One execution of one operator (a node of ONNX Runtime, a layer of TensorRT)."""

    graph: str
    name: str
    kind: str  # the operator's type: Conv, MatMul, …
    start: int  # nanoseconds of time.perf_counter_ns, like the stages
    duration: int  # nanoseconds


@runtime_checkable
class RecordsOperators(Protocol):
    """Optional interface of a `Network`. A network without it is profiled by stages only.

    An engine that reports durations without start times (TensorRT's IProfiler) places them end to end from the
    start of their call.
    """

    def record_operators(self) -> AbstractContextManager[list[Operator]]:
        """Record the operators of every call within the block; the list is filled when the block ends.

        Calls are slower within the block, and no other thread may make one.

        Raises:
            ProviderError: the profile can't be interpreted.
        """
