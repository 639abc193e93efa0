"""The OpenAPI description at `/openapi.json`, adapted to the options that the server was started with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ERROR = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
            "example": {"error": "one line that says what is wrong and how to fix it"},
        }
    }
}


def describe(app: FastAPI, *, token: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Args:
        app: the application. The document is made once.
        token: whether requests need a token. Without one, the document mentions neither the header nor status 401.
    """
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            if "{" in path and path != "/v1/images/{key}" and "404" not in responses:
                responses["404"] = {"description": "There is nothing under this name or id", **ERROR}
            if path.endswith(("/ready", "/live")):
                text = "Not ready" if path.endswith("/ready") else "The server must be restarted"
                responses["503"] = {"description": text, "content": {"application/json": {}}}
            if token and "security" in operation:
                responses["401"] = {"description": "The server needs a token", **ERROR}
            elif not token:
                operation.pop("security", None)
                responses.pop(str(HTTPStatus.UNAUTHORIZED.value), None)
    if not token:
        document.get("components", {}).pop("securitySchemes", None)
    app.openapi_schema = document
    return document
