"""The server of `diffseg serve` as an application of Ray Serve: `serve run containers/ray/serve.yaml`.

Each replica has a segmenter, a queue and dynamic batches of its own. Kept attention lives in the replica that made it;
its id names the replica, and `KeptAttentionRouter` sends requests for it there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffseg.engines.errors import ClusterError, MissingPackageError
from diffseg.engines.packages import install_command

MEGA = 1_000_000
ROUTER = "diffseg.scale.router.KeptAttentionRouter"
TOKEN = "DIFFSEG_TOKEN"  # noqa: S105 - the name of the variable


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The `args` of the application in a config file. They are those of `diffseg serve`, with its defaults.

    Attributes:
        model: embedded model, bundle folder or hub id, as each machine finds it.
        provider: execution provider.
        batch: largest batch; None uses the bundle's.
        threads: CPU threads of each replica; None uses all cores.
        queue: images that may wait in a replica.
        deadline: seconds after which a request is abandoned.
        max_body: largest request body, in megabytes.
        max_pixels: largest image, in megapixels.
        keep: megabytes of attention that each replica keeps.
        keep_seconds: seconds after which unused attention is dropped.
        token_file: file with the bearer token, on each machine; without it, `DIFFSEG_TOKEN` of the replica counts.
        no_token: accept requests without a token.
    """

    model: str = "tiny"
    provider: str = "auto"
    batch: int | None = None
    threads: int | None = None
    queue: int = 64
    deadline: float = 30.0
    max_body: float = 32.0
    max_pixels: float = 50.0
    keep: int = 1024
    keep_seconds: float = 600.0
    token_file: str | None = None
    no_token: bool = False


def app(args: dict[str, Any]) -> Any:  # noqa: ANN401 - a ray.serve Application
    """Build the application; Ray Serve calls this with the `args` of the config file.

    Raises:
        ClusterError: an unknown argument.
        MissingPackageError: Ray Serve or the server's packages are missing.
    """
    names = [field.name for field in fields(ServeOptions)]
    if unknown := sorted(set(args) - set(names)):
        raise ClusterError(f"unknown argument {unknown[0]!r}; the arguments are {', '.join(names)}")
    options = ServeOptions(**args)
    try:
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ImportError as error:
        raise MissingPackageError(f"Ray Serve needs {error.name}: {install_command('ray-serve')}") from None

    def build() -> Any:  # noqa: ANN401 - runs in the replica
        return make_replica(options, serve.get_replica_context().replica_id.unique_id)

    deployment = serve.deployment(
        name="diffseg",
        max_ongoing_requests=options.queue,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    )(serve.ingress(build)(Replica))
    return deployment.bind()


class Replica:
    """The methods that Ray Serve calls on a replica, besides passing it requests."""

    app: Any  # the ASGI application, which Ray Serve sets

    def check_health(self) -> None:
        """Fail if the worker thread has ended, so that Ray Serve replaces the replica.

        Raises:
            RuntimeError: it has ended.
        """
        if not self.app.app.state.service.live:
            raise RuntimeError("the worker that runs the network has ended")


def make_replica(options: ServeOptions, replica: str) -> Any:  # noqa: ANN401 - an ASGI application
    """Load the bundle and return the ASGI application of one replica.

    Args:
        options: options of the application.
        replica: unique id of the replica, with which the ids of kept attention begin.

    Raises:
        ClusterError: no token is set, and the options do not say that none is needed.
    """
    from diffseg.engines.bundle.bundle import open_bundle
    from diffseg.segmenter import Segmenter
    from diffseg.serving.http.app import make_app
    from diffseg.serving.http.attention_store import AttentionStore
    from diffseg.serving.http.limits import Limits
    from diffseg.serving.http.service import Service

    token = _token(options) or None
    if not token and not options.no_token:
        raise ClusterError(f"no token is set: set {TOKEN}, or token_file or no_token in the application's args")
    batch = options.batch or open_bundle(options.model).manifest.max_batch
    segmenter = Segmenter.load(options.model, provider=options.provider, batch=batch, threads=options.threads)
    body = round(options.max_body * MEGA)
    limits = Limits(
        body=body,
        bodies=16 * body,
        pixels=round(options.max_pixels * MEGA),
        deadline=options.deadline,
        queue=options.queue,
    )
    keep = options.keep * MEGA
    service = Service(segmenter, limits, token=token, keep=keep, keep_seconds=options.keep_seconds)
    service.store = AttentionStore(keep, options.keep_seconds, prefix=f"{replica}.")
    return make_app(service)


def _token(options: ServeOptions) -> str | None:
    if options.token_file is None:
        return os.environ.get(TOKEN)
    try:
        return Path(options.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ClusterError(f"{options.token_file}: the token cannot be read ({reason})") from None
