"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in their own registry, so that two servers in one process do not conflict."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "diffseg_requests", "Requests by route and how they ended", ["route", "outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "diffseg_request_seconds",
            "Seconds from the head of a request to its response",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "diffseg_stage_seconds",
            "Seconds an image spent in a stage",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "diffseg_batch_size",
            "Images that went through the network at once",
            buckets=BATCHES,
            registry=self.registry,
        )

    def describe(self, *, model: str, precision: str, provider: str) -> None:
        """Record which model is served, and how."""
        facts = {"model": model, "precision": precision, "provider": provider, "version": version("diffseg")}
        Info("diffseg", "What is served", registry=self.registry).info(facts)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read each time the metrics are requested."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def batch(self, waits: list[float]) -> None:
        """Record a batch, given the seconds that each of its images waited."""
        self.batches.observe(len(waits))
        for seconds in waits:
            self.stages.labels("queue").observe(seconds)

    def image(self, timings: Mapping[str, float]) -> None:
        """Record the seconds that an image spent in each stage."""
        for stage, seconds in timings.items():
            self.stages.labels(stage).observe(seconds)
