"""Every error that the API answers with is an RFC 9457 problem: a code for machines, a sentence for people, and the
field, service or remedy where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.errors import Conflict, Disconnected, FieldError, NeedsUser, NotFound
from protocols.errors import CodedError, LocalError, RemoteError, WorldError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError

_log = structlog.get_logger(__name__)


_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def problem(
    status: int, code: str, sentence: str, *, headers: Mapping[str, str] | None = None, **members: object
) -> JSONResponse:
    """``application/problem+json``: type, title, status, detail, and `code` and `members` beside them."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": sentence,
        "code": code,
        **members,
    }
    return JSONResponse(content, status, media_type="application/problem+json", headers=headers)


def add_problem_handlers(app: FastAPI) -> None:
    """Make `app` answer errors of ours, malformed requests and unknown paths as problems."""
    from fastapi.exceptions import RequestValidationError

    app.exception_handler(CodedError)(_coded)
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(Exception)(_bug)


async def _coded(_request: Request, error: CodedError) -> JSONResponse:
    match error:
        case Disconnected():
            return problem(503, error.code, error.sentence, service=error.service, reason=error.reason)
        case NeedsUser():
            return problem(409, error.code, error.sentence, remedy=error.remedy)
        case FieldError():
            return problem(422, error.code, error.sentence, field=error.field)
        case NotFound():
            return problem(404, error.code, error.sentence)
        case Conflict():
            return problem(409, error.code, error.sentence)
        case LocalError():
            return problem(400, error.code, error.sentence)
        case RemoteError():
            return problem(502, error.code, error.sentence)
        case WorldError():
            return problem(503, error.code, error.sentence)
    raise error


async def _malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Names each field with what is wrong with it; the first is the `field` and the sentence."""
    errors = []
    for item in error.errors():
        source, *keys = (str(key) for key in item["loc"])
        field = ".".join(keys) if keys and item["type"] != "json_invalid" else source
        errors.append({"field": field, "detail": item["msg"]})
    first = errors[0]
    return problem(422, "malformed", f"{first['field']}: {first['detail']}", field=first["field"], errors=errors)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    code = _HTTP_CODES.get(status, f"http_{status}")
    sentence = f"{request.method} {request.url.path}: {error.detail}"
    return problem(status, code, sentence, headers=error.headers)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    _log.error("bug in a request's handler", path=request.url.path, exc_info=error)
    return problem(500, "internal_error", "a bug in this node; its log says more")


class CrashGuard:
    """The outermost layer of an app: a bug in a handler is one 500 problem, and is logged, and ends nothing else.

    FastAPI answers (with `_bug`) and then raises the bug once more, for its server to log; here that ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = complete = False

        async def watched(message: Message) -> None:
            nonlocal answered, complete
            answered = True
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if complete:
                return
            _log.error("bug in answering a request", path=scope.get("path"), exc_info=error)
            if answered or scope["type"] != "http":
                raise  # too late to answer: the server ends this connection
            await problem(500, "internal_error", "a bug in this node; its log says more")(scope, receive, send)
