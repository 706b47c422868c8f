"""The description of the API (OpenAPI): what FastAPI derives from the routes, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from node.web.answers import ANSWERS

if TYPE_CHECKING:
    from fastapi import FastAPI

ABOUT = """\
Everything that the page does goes through this API. Amounts are whole satoshis; prices and rates are decimal strings \
without needless zeros; ids are hex; times are seconds since 1970. Errors are problems of RFC 9457. What changes \
something may carry an `Idempotency-Key`: the same request under the same key is carried out once, for a day. Beside \
what is listed here, `GET /api/v1/ws` is the feed as a WebSocket."""

KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
    "description": "The same request under the same key is carried out once, and answered alike.",
}

PROBLEM = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "a sentence for people"},
        "code": {"type": "string", "description": "for machines"},
        "field": {"type": "string", "description": "what is wrong, if it is one value"},
        "service": {"type": "string", "description": "which part of the node is away"},
        "reason": {"type": "string"},
        "remedy": {"type": "string", "description": "what the user can do"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def _object(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 1000}
_SESSION = _object(
    ["signed_in", "by", "password_set"],
    signed_in={"type": "boolean"},
    by={"type": ["string", "null"], "enum": ["password", "token", None]},
    until={"type": ["number", "null"]},
    password_set={"type": "boolean"},
)

OWN = {
    "/api/v1/session": {
        "get": {
            "summary": "Session",
            "description": "Whether this request is signed in, and whether there is a password. Needs neither.",
            "operationId": "session",
            "security": [],
            "responses": {"200": {"description": "told", **_json(_SESSION)}},
        },
        "post": {
            "summary": "Sign in",
            "description": "With the password, or with the token of the data directory, for a cookie that is good for"
            " thirty days; 429 after too many tries, with `Retry-After`.",
            "operationId": "sign_in",
            "security": [],
            "requestBody": {
                "required": True,
                **_json({"oneOf": [_object([name], **{name: _TEXT}) for name in ("password", "token")]}),
            },
            "responses": {"200": {"description": "signed in", **_json(_SESSION)}},
        },
        "delete": {
            "summary": "Sign out",
            "operationId": "sign_out",
            "security": [],
            "responses": {"204": {"description": "signed out"}},
        },
    },
    "/api/v1/password": {
        "put": {
            "summary": "Set the password",
            "description": "By who gives the present one, or signed in with the token. Every other session ends.",
            "operationId": "set_password",
            "requestBody": {"required": True, **_json(_object(["password"], password=_TEXT, current=_TEXT))},
            "responses": {"200": {"description": "set", **_json(_SESSION)}, "204": {"description": "set"}},
        }
    },
}
"""What `node.web.access` answers."""


def described(app: FastAPI) -> dict[str, Any]:
    """The whole description."""
    from fastapi.openapi.utils import get_openapi

    found = get_openapi(
        title=app.title, version=app.version, description=ABOUT, routes=app.routes, openapi_version=app.openapi_version
    )
    found["paths"] = {**OWN, **found["paths"]}
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM
    parts["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "of the file api.token in the data directory"},
        "session": {"type": "apiKey", "in": "cookie", "name": "cfdnode_session_PORT"},
    }
    found["security"] = [{"token": []}, {"session": []}]
    answers = _answers(schemas)
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, method, operation in _operations(found):
        operation["responses"].pop("422", None)
        operation["responses"]["default"] = {
            "description": "what went wrong",
            "content": {"application/problem+json": {"schema": problem}},
        }
        if (answer := answers.get((method, path))) is not None:
            told = next(told for status, told in operation["responses"].items() if status.startswith("2"))
            told["content"] = {"application/json": {"schema": answer}}
        if method != "get" and path not in OWN:
            operation.setdefault("parameters", []).append(KEY)
    return found


def _answers(schemas: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """The schema of each answer, by method and path; what they refer to goes into `schemas`."""
    from pydantic import TypeAdapter

    found = {}
    for (method, path), kind in ANSWERS.items():
        schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        found[method, f"/api/v1/{path}"] = schema
    return found


def _operations(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in found["paths"].items():
        for method in list(methods):
            methods[method] = {**methods[method], "responses": dict(methods[method]["responses"])}
            yield path, method, methods[method]
