"""`diffseg serve`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from diffseg.cli.limits import MAX_MEGABYTES, MAX_MEGAPIXELS, MAX_SECONDS, MAX_THREADS
from diffseg.cli.terminal import WRONG_USAGE, fail, wrong_usage
from diffseg.engines.bundle.settings import Method
from diffseg.engines.errors import MissingPackageError
from diffseg.engines.packages import install_command
from diffseg.engines.providers.select import Provider

if TYPE_CHECKING:
    from diffseg.engines.bundle.manifest import Manifest
    from diffseg.serving.annotation.label_studio import LabelStudio

TOKEN = "DIFFSEG_TOKEN"  # noqa: S105 - the name of the variable
LABEL_STUDIO_TOKEN = "DIFFSEG_LABEL_STUDIO_TOKEN"  # noqa: S105
MEGA = 1_000_000


def serve(
    model: Annotated[str, typer.Option(help="Embedded model, bundle folder or hub id.")] = "tiny",
    method: Annotated[
        Method | None, typer.Option(help="Method of requests that name none; default: the bundle's.")
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Provider that executes the network.")] = Provider.AUTO,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8000,
    batch: Annotated[int | None, typer.Option(min=1, help="Maximum batch size; default: the bundle's.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads; default: all cores.")
    ] = None,
    device: Annotated[
        int | None, typer.Option(min=0, help="Index of the NVIDIA GPU, in CUDA's order; default: the first.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; further requests get status 503.")] = 64,
    deadline: Annotated[
        float, typer.Option(min=0.1, max=MAX_SECONDS, help="Seconds after which a request is abandoned.")
    ] = 30,
    max_body: Annotated[
        float, typer.Option(min=0.001, max=MAX_MEGABYTES, help="Largest request body, in megabytes.")
    ] = 32,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, max=MAX_MEGAPIXELS, help="Largest image, in megapixels.")
    ] = 50,
    keep: Annotated[
        int, typer.Option(min=0, help="Megabytes of attention to keep for new masks; about 70 per image at 512 px.")
    ] = 512,
    keep_seconds: Annotated[
        float, typer.Option(min=1, max=MAX_SECONDS, help="Seconds after which unused attention is dropped.")
    ] = 600,
    log_format: Annotated[
        Literal["auto", "json", "console"],
        typer.Option(help="json: log as JSON lines. console: as readable text. auto: text on a terminal, else JSON."),
    ] = "auto",
    label_studio: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Answer as an ML backend of the Label Studio at this URL, and read the images of its tasks, with the "
            f"access token in {LABEL_STUDIO_TOKEN}.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token that requests must carry; or set {TOKEN}.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Accept requests without a token, even from other machines.")
    ] = False,
) -> None:
    """Serve masks over HTTP: a page at /, POST /v1/segment, the Open Inference Protocol at /v2, /metrics."""
    try:
        import fastapi  # noqa: F401, I001 - fastapi first: its absence means that the extra is missing
        import cachetools  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import structlog  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"serve needs {error.name}: {install_command('serve')}") from None
    from diffseg.engines.bundle.bundle import open_bundle
    from diffseg.segmenter import Segmenter
    from diffseg.serving.http.access import is_loopback
    from diffseg.serving.http.limits import Limits
    from diffseg.serving.http.logs import configure_logging
    from diffseg.serving.http.memory import set_allocator
    from diffseg.serving.http.server import bind_problem, open_sockets, run_server
    from diffseg.serving.http.service import Service

    token = read_token(token_file)
    if token is None and not no_token and not is_loopback(host):
        fail(
            f"other machines can reach {host}, and no token is set: set {TOKEN}, pass --token-file, or pass --no-token"
        )
    body = round(max_body * MEGA)
    with wrong_usage():
        manifest = open_bundle(model, method).manifest
    tool = _label_studio(label_studio, body, manifest) if label_studio else None
    try:
        sockets = open_sockets(host, port)
    except OSError as error:
        fail(str(error), WRONG_USAGE)
    set_allocator()
    with ExitStack() as stack:
        for item in sockets:
            stack.enter_context(item)
        size = batch or manifest.max_batch
        with wrong_usage():
            segmenter = Segmenter.load(
                model,
                provider=provider,
                batch=size,
                threads=threads,
                devices=None if device is None else (device,),
                method=method,
            )
        limits = Limits(body=body, bodies=8 * body, pixels=round(max_pixels * MEGA), deadline=deadline, queue=queue)
        configure_logging(log_format)
        service = Service(
            segmenter, limits, token=token, keep=keep * MEGA, keep_seconds=keep_seconds, label_studio=tool
        )
        try:
            run_server(service, host, port, sockets)
        except OSError as error:
            fail(bind_problem(error, host, port), WRONG_USAGE)


def _label_studio(url: str, body: int, manifest: Manifest) -> LabelStudio:
    """Return the access to the images of a Label Studio."""
    from diffseg.annotation.segmenters import need_attention
    from diffseg.serving.annotation.label_studio import LabelStudio

    need_attention(manifest)
    try:
        return LabelStudio(url, os.environ.get(LABEL_STUDIO_TOKEN) or None, body)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--label-studio") from None


def read_token(file: Path | None) -> str | None:
    """Return the token in a file or in the environment, or None if neither is set. An empty token is an error."""
    try:
        token = file.read_text(encoding="utf-8").strip() if file is not None else os.environ.get(TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: the token cannot be read ({getattr(error, 'strerror', None) or 'not text'})")
    if token == "":
        fail(f"the token is empty; set one, or unset {TOKEN}")
    return token
