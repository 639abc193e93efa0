"""The routes of Label Studio's ML backend: `/health`, `/setup`, `/predict`, `/webhook` and `/versions`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar

from diffseg.annotation.clicks import Clicks, answer, clicked_mask, read_clicks
from diffseg.annotation.label_studio import Labelling, prediction, read_labelling
from diffseg.annotation.picking import PickableMasks
from diffseg.annotation.scores import mask_scores
from diffseg.engines.bundle.manifest import MANIFEST
from diffseg.engines.errors import ImageError
from diffseg.engines.files import sha256
from diffseg.segmentation import Segmentation
from diffseg.serving.annotation.label_studio import LabelStudio
from diffseg.serving.http.access import bearer, same_token
from diffseg.serving.http.errors import CLIENT_DISCONNECTED, HTTPRequestError
from diffseg.serving.http.images import ERRORS, Served
from diffseg.serving.http.service import Service, unless_disconnected
from diffseg.serving.protocol.echo import shorten
from diffseg.serving.protocol.errors import RequestError, bad_request
from fastapi import APIRouter, Depends, Request, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS = 60.0
"""Seconds after which no further task of a request is started. Label Studio waits for 100 s."""
JSON: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


async def _authorised(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> None:
    """Check the token, which Label Studio sends as the password of basic authentication.

    Raises:
        RequestError: the server has a token, and the request does not send it (401).
    """
    token: str | None = request.app.state.service.token
    given = credentials.credentials if credentials else _password(request.headers.get("authorization", ""))
    if token is not None and not same_token(token, given):
        message = "this server needs a token: set it as the password of basic authentication; any user name will do"
        headers = {"WWW-Authenticate": "Basic", "Connection": "close"}
        raise HTTPRequestError(HTTPStatus.UNAUTHORIZED, "unauthorized", message, headers)


def _password(header: str) -> str:
    """Return the password of basic authentication, as Latin-1, or an empty string."""
    scheme, _, value = header.partition(" ")
    try:
        decoded = base64.b64decode(value.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(b":")[2].decode("latin-1")


router = APIRouter(dependencies=[Depends(_authorised)], responses=ERRORS, tags=["label studio"])


@router.get("/health")
async def health(service: Served) -> JSONResponse:
    """Report whether the server is ready."""
    status = HTTPStatus.OK if service.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"status": "UP" if service.ready else "DOWN", "model_class": "diffseg"}, status)


@router.post("/setup", openapi_extra=JSON)
async def setup(request: Request, service: Served) -> dict[str, str]:
    """Check that masks can be sent in the form that a project's labelling configuration asks for.

    The host name and the token that Label Studio sends here are ignored: images are read from the server's own
    `--label-studio` only.
    """
    _labelling(await _message(request, service), "schema")
    return {"model_version": _version(service)}


@router.get("/versions")
async def versions(service: Served) -> dict[str, list[str]]:
    """Return the version of the model."""
    return {"versions": [_version(service)]}


@router.post("/webhook", status_code=HTTPStatus.CREATED, openapi_extra=JSON)
async def webhook(request: Request, service: Served) -> dict[str, str]:
    """Accept an event, and do nothing: DiffSeg is not trained."""
    await _message(request, service)
    return {}


@router.post("/predict", openapi_extra=JSON)
async def predict(request: Request, service: Served) -> dict[str, Any]:
    """Segment the images of tasks, one after another, or answer what was drawn with smart tools on them.

    A task whose image cannot be read, or whose turn does not come in time, gets an empty list in place of a
    prediction, and a line in the server's log. Label Studio asks for it again with its next request.
    """
    message = await _message(request, service)
    labelling = _labelling(message, "label_config")
    clicks = _clicks(message)
    tasks = message.get("tasks")
    if not isinstance(tasks, list):
        raise bad_request(f"'tasks' must be a list, found {shorten(tasks)}")
    end = time.monotonic() + SECONDS
    results: list[Any] = []
    for task in tasks:
        name = task.get("id") if isinstance(task, dict) else None
        if time.monotonic() > end:
            logger.warning("%d of %d tasks had no time; ask for them again", len(tasks) - len(results), len(tasks))
            results += [[]] * (len(tasks) - len(results))
            break
        try:
            results.append(await _predicted(request, service, labelling, task, clicks))
        except (ImageError, RequestError) as error:
            if getattr(error, "status", None) == CLIENT_DISCONNECTED:
                raise
            logger.warning("no prediction for task %s: %s", shorten(name), error)
            results.append([])
    return {"results": results, "model_version": _version(service)}


async def _predicted(
    request: Request, service: Service, labelling: Labelling, task: object, clicks: Clicks | None
) -> dict[str, Any]:
    """Segment the image of one task, or answer clicks on it from kept masks.

    Raises:
        ImageError: the image cannot be downloaded.
        RequestError: the image cannot be segmented.
    """
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict) or labelling.field not in data:
        raise bad_request(f"the task has no {shorten(labelling.field)} in its data")
    address, version = data[labelling.field], _version(service)
    if clicks is None:
        return await _segmented(request, service, address, partial(_written, labelling, version))
    masks = service.pickable.get(address) if isinstance(address, str) else None
    if masks is None:
        of_result = partial(PickableMasks.of_result, settings=service.segmenter.settings)
        masks = await _segmented(request, service, address, of_result)
        with suppress(ValueError):  # larger than all that is kept
            service.pickable[address] = masks
    return await service.in_thread(_answer, labelling, version, masks, clicks)


async def _segmented(request: Request, service: Service, address: object, write: Callable[[Segmentation], T]) -> T:
    """Download an image, segment it with its own deadline, and return what `write` makes of the result."""
    source = service.label_studio
    assert isinstance(source, LabelStudio)  # noqa: S101 - without one, there are no such routes
    image = await unless_disconnected(request, asyncio.to_thread(source.fetch, address))
    request.state.start = time.monotonic()
    try:
        (result,) = await service.segment(request, [image], service.segmenter.settings, "stretch", keep=True)
        return await service.in_thread(write, result)
    finally:
        if (charge := getattr(request.state, "charge", None)) is not None:
            request.state.charge = None
            charge.release()


def _written(labelling: Labelling, version: str, result: Segmentation) -> dict[str, Any]:
    return prediction(labelling, result, mask_scores(result).tolist(), version)


def _answer(labelling: Labelling, version: str, masks: PickableMasks, clicks: Clicks) -> dict[str, Any]:
    return answer(labelling, clicked_mask(masks, clicks), clicks, version)


async def _message(request: Request, service: Service) -> dict[str, Any]:
    async with service.bodies.read(request) as body:
        try:
            message = await service.in_thread(json.loads, body)
        except (ValueError, RecursionError):
            raise bad_request("the body is not JSON that can be read") from None
    if not isinstance(message, dict):
        raise bad_request("the body must be a JSON object")
    return message


def _labelling(message: dict[str, Any], key: str) -> Labelling:
    config = message.get(key)
    if not isinstance(config, str):
        raise bad_request(f"{key!r} must be the labelling configuration, found {shorten(config)}")
    try:
        return read_labelling(config)
    except ValueError as error:
        raise bad_request(str(error)) from None


def _clicks(message: dict[str, Any]) -> Clicks | None:
    parameters = message.get("params")
    try:
        return read_clicks(parameters.get("context") if isinstance(parameters, dict) else None)
    except ValueError as error:
        raise bad_request(str(error)) from None


def _version(service: Service) -> str:
    """Return the version of the model: Label Studio asks for new predictions when it changes."""
    return f"diffseg-{service.facts['model']}-{_digest(service.segmenter.bundle.folder)[:8]}"


@cache
def _digest(folder: Path) -> str:
    """Return the hash of a bundle's manifest, which contains the hashes of all its files."""
    return sha256(folder / MANIFEST)
