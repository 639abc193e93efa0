"""The ASGI application: its routes and error handlers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from diffseg.serving.http import images, inference, label_studio, samples
from diffseg.serving.http.access import authorised
from diffseg.serving.http.document import page_document
from diffseg.serving.http.errors import status_and_headers
from diffseg.serving.http.memory import collect, trim
from diffseg.serving.http.middleware import RequestContext
from diffseg.serving.http.openapi import describe
from diffseg.serving.http.service import Service
from diffseg.serving.http.validation import explain
from diffseg.serving.protocol.echo import cut
from diffseg.serving.protocol.errors import RequestError
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

EXPIRY_SECONDS = 10.0
LONGEST_ERROR = 1000  # characters


def make_app(service: Service, hosts: Collection[str] | None = None) -> RequestContext:
    """Return the ASGI application that serves `service`.

    Args:
        service: started and closed together with the application.
        hosts: host names that the server accepts in a Host header. None accepts any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        expiry = asyncio.create_task(_expire(service))
        yield
        expiry.cancel()
        await asyncio.to_thread(service.close, service.limits.deadline)

    app = FastAPI(
        title="diffseg",
        version=version("diffseg"),
        summary="Zero-shot segmentation from the self-attention of Stable Diffusion.",
        docs_url=None,  # the page would load its scripts from a third-party CDN
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # the redirect would repeat the Host header, which the client chooses
    )
    app.state.service = service
    app.include_router(images.router)
    app.include_router(inference.router)
    app.include_router(samples.router)
    if service.label_studio is not None:
        app.include_router(label_studio.router)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    page = page_document()
    headers = {"Content-Security-Policy": content_policy(page)}

    app.openapi = lambda: describe(app, token=service.token is not None)  # type: ignore[method-assign]

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/metrics", dependencies=[Depends(authorised)], response_class=Response, tags=["operation"])
    async def metrics() -> Response:
        """Return metrics in the Prometheus text format: request counters, queue length, batch sizes and timings."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return RequestContext(app, service.metrics, hosts)


def content_policy(page: str) -> str:
    """Return a content security policy for `page`.

    Of all scripts and styles, the policy allows only the inline ones in the page, by their hashes.
    """

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _expire(service: Service) -> None:
    while True:
        await asyncio.sleep(EXPIRY_SECONDS)
        service.store.expire()
        # A request that ended before its image could not free it. Its tasks refer to each other.
        free, service.batcher.leftovers = collect if service.batcher.leftovers else trim, False
        await asyncio.to_thread(free)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this type only
    request.scope["state"]["outcome"] = error.outcome
    status, headers = status_and_headers(error)
    return JSONResponse({"error": cut(str(error), LONGEST_ERROR)}, status, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return JSONResponse({"error": cut("; ".join(map(explain, error.errors())), LONGEST_ERROR)}, HTTPStatus.BAD_REQUEST)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    path = cut(request.scope["path"])  # the host of `request.url` may be one that cannot be parsed
    method = cut(request.method, 20)
    messages = {
        HTTPStatus.NOT_FOUND: f"there is nothing at {path}; /openapi.json lists what there is",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{path} does not take {method}; /openapi.json lists what it takes",
    }
    message = messages.get(HTTPStatus(error.status_code), error.detail)
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _unexpected(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "unexpected error; see the log of the server"}, HTTPStatus.INTERNAL_SERVER_ERROR)
