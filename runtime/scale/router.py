"""Routing of Ray Serve: a request for kept attention goes to the replica that keeps it."""

from __future__ import annotations

import pickle
import random
import re
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

KEPT = re.compile(r"/v1/images/([A-Za-z0-9]+)\.[^/]+")
"""Path of a request for kept attention. Its id begins with the replica's; see `diffseg.scale.serve`."""


class KeptAttentionRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed here
    """Sends a request with the id of kept attention to its replica, and others to the shorter queue of two.

    If the replica has ended, another one answers that nothing is kept under the id.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas among which Ray Serve takes the one with the shortest queue."""
        wanted = replica_of(_path(pending_request))
        mine = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        return [mine or random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def replica_of(path: str) -> str | None:
    """Return the unique id of the replica that a request's path names, or None."""
    found = KEPT.search(path)
    return found[1] if found else None


def _path(request: PendingRequest | None) -> str:
    """Return the path of an HTTP request, else an empty string. Ray's public interface does not give it."""
    if request is None or not request.args:
        return ""
    sent: Any = request.args[0]
    if isinstance(sent, bytes):  # as Ray Serve's proxy sends it to the replica
        sent = pickle.loads(sent)  # noqa: S301 - the proxy of this process pickled it
    scope = getattr(sent, "asgi_scope", None)
    return str(scope.get("path", "")) if isinstance(scope, dict) else ""
