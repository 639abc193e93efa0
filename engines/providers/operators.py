"""What an engine's own profiler reports: the operators inside a graph."""

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
    start: int  # nanoseconds of time.perf_counter_ns, as the stages have them
    duration: int  # nanoseconds


@runtime_checkable
class RecordsOperators(Protocol):
    """What a `Network` may offer beside its two graphs. One that doesn't is profiled by stages only.

    An engine that reports durations without start times (TensorRT's IProfiler) lays them end to end from the
    start of the call that they belong to.
    """

    def record_operators(self) -> AbstractContextManager[list[Operator]]:
        """Record the operators of every call within the block; the list is filled when the block ends.

        Calls are slower meanwhile, and no other thread may make one.

        Raises:
            ProviderError: the engine's profile can't be understood.
        """
