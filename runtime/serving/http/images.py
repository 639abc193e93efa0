"""Routes under `/v1`: segment an image, or make new masks from the stored attention of an earlier image."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any

from diffseg.engines.bundle.settings import MAX_TAU, MergeSettings, Method, Refine
from diffseg.formats.files import png_bytes
from diffseg.formats.rle import Counts
from diffseg.image import Fit
from diffseg.segmentation import Segmentation
from diffseg.serving.http.access import authorised
from diffseg.serving.http.errors import HTTPRequestError
from diffseg.serving.http.limits import image_part
from diffseg.serving.http.responses import (
    MEDIA_TYPES,
    Kind,
    attention_map,
    encode,
    negotiate,
    shrink,
    shrunk,
)
from diffseg.serving.http.responses import kept as attention_of
from diffseg.serving.http.service import Service
from diffseg.serving.protocol.settings import MOST_ANCHORS, MOST_ROUNDS, MOST_THRESHOLD, updated_settings
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from PIL import Image

BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"]}}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"image/*": BINARY, "multipart/form-data": FORM}}}
ERROR = {"content": {"application/json": {"example": {"error": "one line that says what is wrong and how to fix it"}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No image, a damaged image, or a setting that is out of range", **ERROR},
    401: {"description": "The server needs a token", **ERROR},
    408: {"description": "The body arrived too slowly", **ERROR},
    413: {"description": "The body has too many bytes, or the image too many pixels", **ERROR},
    503: {"description": "The queue is full or too long for the deadline; see Retry-After", **ERROR},
    504: {"description": "The request was not done before its deadline", **ERROR},
    "default": {"description": "Any other error", **ERROR},  # also keeps out the framework's 422, which is never sent
}
MASKS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON with one COCO run-length mask per segment. With `Accept: image/png`, the labels as "
        "8-bit grey, or as 16-bit grey if there are more than 256. With `Accept: image/png;kind=overlay`, the image "
        "with its masks drawn over it",
        "content": {"application/json": {}, "image/png": {}},
    },
    406: {"description": "The `Accept` header accepts none of these", **ERROR},
}
MAP: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]
Side = Annotated[
    int | None,
    Query(ge=16, le=8192, description="Longest side of the masks in pixels. Default: the image's"),
]
Timeout = Annotated[float | None, Query(gt=0, description="Time limit in seconds, at most the server's deadline")]
AsCounts = Annotated[Counts, Query(description="Run lengths as pycocotools' string, or as a list of integers")]


def _settings(
    service: Served,
    threshold: Annotated[
        list[Annotated[float, Query(ge=0, le=MOST_THRESHOLD, allow_inf_nan=False)]] | None,
        Query(
            max_length=MOST_ROUNDS,
            description="Largest KL distance of maps that are merged. Repeat it to set one threshold per round",
        ),
    ] = None,
    anchors: Annotated[int | None, Query(ge=1, le=MOST_ANCHORS, description="Anchors per side")] = None,
    refine: Annotated[
        Refine | None,
        Query(
            description="Refinement: none, kmeans (on the attention), colour or pamr (borders follow the image)",
        ),
    ] = None,
    method: Annotated[
        Method | None,
        Query(
            description="diffseg merges attention maps, cut cuts the graph of the attention, diffcut that of features"
        ),
    ] = None,
    tau: Annotated[
        float | None,
        Query(ge=0, le=MAX_TAU, description="With cut, diffcut: divide regions whose cut costs less than this"),
    ] = None,
) -> MergeSettings:
    one = threshold[0] if threshold and len(threshold) == 1 else threshold
    return updated_settings(service.segmenter.settings, one, anchors, refine, method, tau)


def _kept(service: Served, key: str) -> Segmentation:
    found = service.store.get(key)
    if found is None:
        message = (
            "no attention is stored under this id: it expired, made room for other images, was on a server that has "
            "ended, or never existed; "
            "send the image again"
        )
        raise HTTPRequestError(HTTPStatus.NOT_FOUND, "not_found", message)
    return found


Settings = Annotated[MergeSettings, Depends(_settings)]
Kept = Annotated[Segmentation, Depends(_kept)]
router = APIRouter(prefix="/v1", dependencies=[Depends(authorised)], responses=ERRORS, tags=["masks"])


@router.post("/segment", responses=MASKS, openapi_extra=BODY, response_class=Response)
async def segment(
    request: Request,
    service: Served,
    settings: Settings,
    fit: Fit = "stretch",
    timeout: Timeout = None,  # noqa: ASYNC109 - named as in the request
    counts: AsCounts = "string",
    accept: Annotated[str, Header(include_in_schema=False)] = "",  # OpenAPI does not describe this header
) -> Response:
    """Segment an image.

    Send the encoded image as the request body, or as the only file in a multipart form. The `Accept` header selects
    the response: JSON with one mask per segment (the default), a PNG of labels, or a PNG of the image with its masks
    drawn over it.
    """
    kind = negotiate(accept)
    async with service.bodies.read(request) as body:
        data = await _image(service, request, body)
        result = (await service.segment(request, [data], settings, fit, timeout=timeout))[0]
    return _answer(kind, await service.in_thread(encode, result, kind, service.facts, counts))


@router.post("/images", responses=MASKS, openapi_extra=BODY, response_class=Response, status_code=HTTPStatus.CREATED)
async def keep(
    request: Request,
    service: Served,
    settings: Settings,
    fit: Fit = "stretch",
    side: Side = None,
    counts: AsCounts = "string",
) -> Response:
    """Segment an image and store its attention, so that later requests can make new masks from it.

    The response is always JSON. It contains the masks and an `id`, which the other `/v1/images` routes take. The `id`
    is null if the attention is too large to store. Stored attention expires when it has not been used for a while, and
    is removed earlier if newer images need the space.
    """
    async with service.bodies.read(request) as body:
        data = await _image(service, request, body)
        result = (await service.segment(request, [data], settings, fit, keep=True))[0]
    facts = service.facts | {"id": await service.in_thread(service.store.add, result)}
    small = await service.in_thread(shrink, result, side)
    answer = _answer(Kind.JSON, await service.in_thread(encode, small, Kind.JSON, facts, counts))
    answer.status_code = HTTPStatus.CREATED
    return answer


@router.get("/images/{key}/masks", responses=MASKS, response_class=Response)
async def masks(
    request: Request,
    service: Served,
    key: str,
    kept: Kept,
    settings: Settings,
    side: Side = None,
    counts: AsCounts = "string",
    accept: Annotated[str, Header(include_in_schema=False)] = "",  # OpenAPI does not describe this header
) -> Response:
    """Make new masks from stored attention, without running the network again.

    The `Accept` header selects JSON or a PNG of labels, as for `/v1/segment`. An overlay is not available, because the
    server does not store the image.
    """
    kind = negotiate(accept)
    if kind is Kind.OVERLAY:
        message = "the server does not store the image, so it cannot draw an overlay; request JSON or labels"
        raise HTTPRequestError(HTTPStatus.NOT_ACCEPTABLE, "bad_request", message)
    whole = attention_of(kept)
    small = replace(kept, attention=whole.placed(shrunk(whole.placement, side)))
    result = await service.resegment(request, small, settings)
    service.store.get(key)  # measures it again: more anchors take more memory
    service.metrics.image(result.timings)
    return _answer(kind, await service.in_thread(encode, result, kind, service.facts, counts))


@router.get("/images/{key}/attention", response_class=Response, responses=MAP)  # noqa: FAST003
async def attention(
    service: Served,
    kept: Kept,
    x: Annotated[float, Query(ge=0, lt=1, description="Horizontal position of the point, as a fraction of the width")],
    y: Annotated[float, Query(ge=0, lt=1, description="Vertical position of the point, as a fraction of the height")],
    side: Side = None,
) -> Response:
    """Return the attention map of one point in the image, as an 8-bit greyscale PNG.

    With a bundle for DiffCut, it is the similarity of the point's features to those of all others.

    `x` and `y` give the point as fractions of the width and height. The map is scaled so that its largest value is 255.
    """

    def draw() -> bytes:
        return png_bytes(Image.fromarray(attention_map(kept, x, y, side)))

    return _answer(Kind.LABELS, await service.in_thread(draw))


@router.delete("/images/{key}", status_code=HTTPStatus.NO_CONTENT)
async def forget(service: Served, key: str) -> None:
    """Delete stored attention. Deleting an unknown or expired `id` is not an error."""
    service.store.drop(key)


async def _image(service: Service, request: Request, body: bytes) -> bytes:
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await service.in_thread(image_part, request.headers, body)
    return body


def _answer(kind: Kind, content: bytes) -> Response:
    return Response(content, media_type=MEDIA_TYPES[kind], headers={"Vary": "Accept"})
