"""The sample images of the page, which need no token: everyone can read them in the package."""

from __future__ import annotations

from http import HTTPStatus

from diffseg.engines import example_images
from diffseg.serving.http.errors import HTTPRequestError
from diffseg.serving.http.images import ERRORS
from fastapi import APIRouter
from fastapi.responses import Response

NAMES = ("robot.jpg", "sloth.jpg")
BINARY = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
router = APIRouter(prefix="/samples", responses={"default": ERRORS["default"]}, tags=["page"])


@router.get("/{name}", response_class=Response, responses={200: {"content": BINARY}})
async def sample(name: str) -> Response:
    """Return a sample image of the page as JPEG: robot.jpg or sloth.jpg."""
    path = next((path for path in example_images() if path.name == name and name in NAMES), None)
    if path is None:
        message = f"there is no sample of this name, only {' and '.join(NAMES)}"
        raise HTTPRequestError(HTTPStatus.NOT_FOUND, "not_found", message)
    return Response(path.read_bytes(), media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})
