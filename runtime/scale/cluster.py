"""The connection to Ray: a cluster at an address, or a local Ray that ends with this process."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffseg.engines.errors import ClusterError, MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.engines.text import first_line
from diffseg.scale.resources import Node

OBJECT_STORE = 256 << 20
"""Bytes of a local Ray's object store. Only lists of images and counts pass through it."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage reports to Ray's developers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # errors reach Python as exceptions
}


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Any]:
    """Connect to Ray, and yield the module `ray`. At the end, disconnect; a local Ray is stopped.

    Ray's usage reports are off unless `RAY_USAGE_STATS_ENABLED` is set. A local Ray accepts only processes that have
    its token, which is made here unless `RAY_AUTH_MODE` is set.

    Args:
        address: address of a cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`. None starts a local Ray.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: the cluster cannot be reached, or asks for another token.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    local = address is None
    if local and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError(
            f"Ray is not installed ({error.name} is missing): {install_command('ray')}; or run without it, in this "
            "process, with --local"
        ) from None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if local:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address="local" if local else address, **options)
    except Exception as error:  # Ray raises many types, including gRPC's  # noqa: BLE001
        raise ClusterError(_unreachable(address, error)) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def nodes_of(ray: Any) -> list[Node]:  # noqa: ANN401 - the module
    """Return the machines of the cluster that are alive and have CPUs or GPUs for workers."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [Node(item.get("CPU", 0.0), item.get("GPU", 0.0)) for item in found]
    return [node for node in nodes if node.cpus or node.gpus] or [Node(0.0)]


def _unreachable(address: str | None, error: Exception) -> str:
    first = first_line(error)
    if address is None:
        return f"Ray cannot be started: {first}"
    if type(error).__name__ == "AuthenticationError":
        return (
            f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        )
    return f"no Ray cluster can be reached at {address}: {first}"
