"""``openapi.json``: the API as OpenAPI 3.1, made of its routes and types."""

from __future__ import annotations

from typing import Any

import msgspec

from finwait.report.agent_page import ApiError, PictureDocument
from finwait.version import __version__
from finwait.web.api import ROUTES, ApiRoute

__all__ = ["openapi"]

_PLACE = "#/components/schemas/{name}"


def openapi() -> dict[str, Any]:
    """Return the description of the API."""
    types = [route.document for route in ROUTES if route.document is not None] + [ApiError, PictureDocument]
    _, schemas = msgspec.json.schema_components(types, ref_template=_PLACE)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "finwait agent",
            "version": __version__,
            "description": "What does not finish closing on this machine. Read only: nothing here acts or makes "
            "anybody look. `null` is not known, never 0.",
        },
        "paths": {route.path: {"get": _operation(route)} for route in ROUTES},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(route: ApiRoute) -> dict[str, Any]:
    name = route.document.__name__ if route.document is not None else ""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _PLACE.format(name=name)}}}
    if route.document is None:
        content = {"text/event-stream": {"schema": {"type": "string"}}}
    failed = {
        "application/json": {"schema": {"$ref": _PLACE.format(name="ApiError")}},
        "text/plain; charset=utf-8": {"schema": {"type": "string"}},
    }
    return {
        "summary": route.doc,
        "operationId": route.path.removeprefix("/api/v1/").replace("/{id}", ""),
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.doc,
                "schema": dict(parameter.schema),
            }
            for parameter in route.parameters
        ],
        "responses": {
            "200": {"description": route.doc, "content": content},
            "default": {
                "description": "No answer, and why; as text where the request is none at all.",
                "content": failed,
            },
        },
    }
