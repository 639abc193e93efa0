"""Routes under `/v2`, which implement version 2 of the Open Inference Protocol."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, get_args

from diffseg.image import Fit
from diffseg.serving.http.access import authorised
from diffseg.serving.http.errors import HTTPRequestError
from diffseg.serving.http.images import ERRORS, Served
from diffseg.serving.http.kserve import PARAMETERS, read_inference, write_inference
from diffseg.serving.protocol.echo import shorten
from diffseg.serving.protocol.errors import bad_request
from diffseg.serving.protocol.settings import updated_settings
from diffseg.serving.protocol.tensors import INPUTS, MODEL, OUTPUTS, VERSION
from diffseg.serving.protocol.untrusted import check_pixels
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

MICROSECONDS = 1e6
MOST_MICROSECONDS = 10**12
MODEL_PATH = "/models/{model}"
VERSION_PATH = "/models/{model}/versions/{model_version}"
JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": JSON_OBJECT}}
router = APIRouter(prefix="/v2", responses={"default": ERRORS["default"]}, tags=["open inference protocol"])


def _known(model: str, model_version: str = VERSION) -> None:
    if model != MODEL or model_version != VERSION:
        found = f"{shorten(model)} of version {shorten(model_version)}"
        message = f"there is no model {found}, only {MODEL!r} of version {VERSION!r}"
        raise HTTPRequestError(HTTPStatus.NOT_FOUND, "not_found", message)


Known = Depends(_known)
Authorised = Depends(authorised)


@router.get("/health/live")
async def live(service: Served) -> JSONResponse:
    """Report whether the server is alive: 200 if its worker is running, 503 if the server must be restarted."""
    return JSONResponse({"live": service.live}, HTTPStatus.OK if service.live else HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/health/ready")
async def ready(service: Served) -> JSONResponse:
    """Report whether the server is ready for requests: 200 if it is, 503 if it is not.

    The server is ready once it has warmed up, while it is not shutting down and its worker is alive and not stalled.
    """
    status = HTTPStatus.OK if service.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"ready": service.ready, "worker": service.batcher.health}, status)


@router.get("", dependencies=[Authorised])
async def server() -> dict[str, Any]:
    """Return the name and version of the server, and the protocol extensions that it supports."""
    return {"name": "diffseg", "version": version("diffseg"), "extensions": ["binary_tensor_data"]}


@router.get(MODEL_PATH, dependencies=[Authorised, Known])
@router.get(VERSION_PATH, dependencies=[Authorised, Known], include_in_schema=False)
async def metadata(service: Served) -> dict[str, Any]:
    """Return the metadata of the model: its inputs, outputs and request parameters.

    An inference request must contain exactly one of the two inputs.
    """
    manifest = service.segmenter.bundle.manifest
    return {
        "name": MODEL,
        "versions": [VERSION],
        "platform": f"diffseg_{service.segmenter.provider}",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "parameters": {
            "bundle": manifest.name,
            "precision": manifest.precision,
            "request_parameters": list(PARAMETERS),
        },
    }


@router.get(MODEL_PATH + "/ready", dependencies=[Known])
@router.get(VERSION_PATH + "/ready", dependencies=[Known], include_in_schema=False)
async def model_ready(service: Served) -> JSONResponse:
    """Report whether the model is ready for requests: 200 if it is, 503 if it is not."""
    status = HTTPStatus.OK if service.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"name": MODEL, "ready": service.ready}, status)


@router.post(MODEL_PATH + "/infer", dependencies=[Authorised, Known], openapi_extra=BODY, response_class=Response)
@router.post(VERSION_PATH + "/infer", dependencies=[Authorised, Known], include_in_schema=False)
async def infer(
    request: Request,
    service: Served,
    inference_header_content_length: Annotated[int | None, Header(ge=0)] = None,
) -> Response:
    """Segment a batch of images.

    Send one input: `image`, UINT8 of shape (B, H, W, 3), or `encoded`, BYTES of shape (B, 1) or (B), one encoded image
    per element. In JSON, the elements of `encoded` are base64 strings.
    """
    async with service.bodies.read(request) as body:
        inference = await service.in_thread(read_inference, body, inference_header_content_length, service.limits.queue)
        wanted = inference.parameters
        fit = wanted.get("fit", "stretch")
        if fit not in get_args(Fit):
            raise bad_request(f"fit must be one of {', '.join(get_args(Fit))}, found {shorten(fit)}")
        names = ("threshold", "anchors", "refine", "method", "tau")
        settings = updated_settings(service.segmenter.settings, *(wanted.get(name) for name in names))
        microseconds = wanted.get("timeout")
        if microseconds is not None and (type(microseconds) is not int or microseconds < 1):
            raise bad_request(
                f"timeout must be a whole number of microseconds of at least 1, found {shorten(microseconds)}"
            )
        seconds = None if microseconds is None else min(microseconds, MOST_MICROSECONDS) / MICROSECONDS
        for image in inference.images:
            if not isinstance(image, bytes):
                check_pixels(image.shape[0], image.shape[1], service.limits.pixels)
        results = await service.segment(request, inference.images, settings, fit, timeout=seconds)
        content, head = await service.in_thread(write_inference, inference, results)
    if head is None:
        return Response(content, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(head)}
    return Response(content, media_type="application/octet-stream", headers=headers)
