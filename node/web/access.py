"""Who may ask what: the token for programs, a session in a cookie for the page; and signing in and out.

Starlette alone, no FastAPI: people can sign in from the first moment on, and see what the start waits for.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Collection
from http import cookies
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from node.clock import Clock
from node.errors import FieldError
from node.web.problems import problem
from node.web.sessions import LASTS, Attempts, Session, Sessions

SESSION, PASSWORD = "/api/v1/session", "/api/v1/password"
READING = ("GET", "HEAD", "OPTIONS")


class Access:
    """`hosts` and those `named` are what the Host of a request may be; the cookie's name holds the port, since browsers
    do not tell the cookies of one host's ports apart."""

    def __init__(
        self,
        *,
        token: str,
        hosts: Collection[str],
        port: int,
        named: Collection[str] = (),
        data: Path | None = None,
        clock: Clock | None = None,
        tls: bool = False,
    ) -> None:
        self.hosts = frozenset({*hosts, *named})
        self.sessions = Sessions(data, clock or Clock())
        self._token = token.encode()
        self._cookie = f"cfdnode_session_{port}"
        self._tls = tls
        self._keeps_password = data is not None
        scheme = "https" if tls else "http"
        # what stands before us, and has a name for it, may speak TLS in our place
        self._origins = frozenset(
            {*(f"{scheme}://{host}" for host in self.hosts), *(f"https://{host}" for host in named)}
        )
        self._attempts = Attempts()

    async def refusal(self, scope: Scope) -> Response | None:
        """Why a request is not let in: without a token or a session, or from another page; None if it is."""
        connection = HTTPConnection(scope)
        origin = connection.headers.get("origin")
        if scope["type"] == "websocket" and origin is not None and origin not in self._origins:
            return self._other_origin(origin)
        if self._has_token(connection):
            return None
        if await self._session(connection) is None:
            return problem(
                401,
                "unauthorized",
                "the request needs the header Authorization: Bearer and the token in the file api.token of the data"
                " directory, or the cookie of a session",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["type"] == "http" and scope["method"] in READING:
            return None
        return None if self._of_our_page(connection) else self._other_origin(origin)

    def own(self, path: str) -> ASGIApp | None:
        """What answers on the paths for which nobody needs to be signed in."""
        return {SESSION: self._on_session, PASSWORD: self._on_password}.get(path)

    # The session

    async def _on_session(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        origin = request.headers.get("origin")
        match request.method:
            case "GET" | "HEAD":
                answer: Response = await self._told(request)
            case "POST" | "DELETE" if origin is not None and not self._of_our_page(request):
                answer = self._other_origin(origin)
            case "POST":
                answer = await self._sign_in(request)
            case "DELETE":
                await self.sessions.end(request.cookies.get(self._cookie, ""))
                answer = Response(status_code=204)
                answer.delete_cookie(self._cookie, path="/", secure=self._tls, httponly=True, samesite="strict")
            case _:
                answer = _not_allowed(request, "GET, POST, DELETE")
        await answer(scope, receive, send)

    async def _told(self, request: Request) -> Response:
        session = await self._session(request)
        by = "token" if self._has_token(request) else session.by if session is not None else None
        return JSONResponse(
            {
                "signed_in": by is not None,
                "by": by,
                "until": session.until if session is not None else None,
                "password_set": await self.sessions.password_set(),
            }
        )

    async def _sign_in(self, request: Request) -> Response:
        said = await _object(request, {"password", "token"})
        if isinstance(said, Response):
            return said
        if len(said) != 1:
            return problem(422, "malformed", "password: either password or token is needed", field="password")
        if (wait := self._attempts.take(_source(request))) > 0:
            return _too_often(wait)
        if "token" in said:
            right = hmac.compare_digest(said["token"].encode(), self._token)
        else:
            right = await self.sessions.is_password(said["password"])
        if not right:
            kind = "token" if "token" in said else "password"
            return problem(401, "wrong_" + kind, f"{kind}: this is not the node's {kind}", field=kind)
        self._attempts.give_back(_source(request))
        return await self._signed_in(request, "token" if "token" in said else "password")

    async def _signed_in(self, request: Request, by: Any) -> Response:
        secret = await self.sessions.begin(by)
        answer = JSONResponse({"signed_in": True, "by": by, "password_set": await self.sessions.password_set()})
        answer.set_cookie(
            self._cookie, secret, max_age=int(LASTS), path="/", secure=self._tls, httponly=True, samesite="strict"
        )
        return answer

    # The password

    async def _on_password(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self.refusal(scope)
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        if refusal is not None:
            answer = refusal
        elif request.method != "PUT":
            answer = _not_allowed(request, "PUT")
        else:
            answer = await self._change_password(request)
        await answer(scope, receive, send)

    async def _change_password(self, request: Request) -> Response:
        """By the token, or by a session that was begun with it, without the present password."""
        said = await _object(request, {"password", "current"})
        if isinstance(said, Response):
            return said
        if "password" not in said:
            return problem(422, "malformed", "password: the new one is needed", field="password")
        session = await self._session(request)
        by = "token" if self._has_token(request) or session is None else session.by
        if by == "password":
            if (wait := self._attempts.take(_source(request))) > 0:
                return _too_often(wait)
            if not await self.sessions.is_password(said.get("current", "")):
                return problem(401, "wrong_password", "current: this is not the node's password", field="current")
            self._attempts.give_back(_source(request))
        if not self._keeps_password:
            return problem(409, "no_data_directory", "there is no data directory to keep a password in")
        try:
            await self.sessions.set_password(said["password"])
        except FieldError as error:
            return problem(422, error.code, error.sentence, field=error.field)
        except OSError as error:
            return problem(503, "not_written", f"the password cannot be kept in the data directory: {error.strerror}")
        return await self._signed_in(request, by) if session is not None else Response(status_code=204)

    # What a request carries

    def _has_token(self, connection: HTTPConnection) -> bool:
        scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(credentials.strip().encode("latin-1"), self._token)

    async def _session(self, connection: HTTPConnection) -> Session | None:
        try:
            secret = connection.cookies.get(self._cookie, "")
        except cookies.CookieError:
            return None
        return await self.sessions.find(secret) if secret else None

    def _of_our_page(self, connection: HTTPConnection) -> bool:
        """A browser says of every request that changes something which page it comes from."""
        origin = connection.headers.get("origin")
        if origin is None and connection.scope["type"] == "http":
            return connection.headers.get("sec-fetch-site") == "same-origin"
        return origin in self._origins

    def _other_origin(self, origin: str | None) -> Response:
        return problem(
            403,
            "other_origin",
            f"Origin {origin or 'is not given, and'!s} is not this API's page; with a session, what changes something"
            f" comes from {' or '.join(sorted(self._origins))}",
        )


async def _object(request: Request, fields: set[str]) -> dict[str, str] | Response:
    """The JSON object of strings that the body is, with no fields but these; or what is wrong with it."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return problem(415, "not_json", "Content-Type: a body is application/json")
    try:
        said = json.loads(await request.body())
    except (ValueError, RecursionError):
        return problem(422, "malformed", "body: is no JSON", field="body")
    if not isinstance(said, dict):
        return problem(422, "malformed", "body: is no object", field="body")
    for name, value in said.items():
        if name not in fields:
            return problem(422, "malformed", f"{name}: there is no such field", field=name)
        if not (isinstance(value, str) and len(value) <= 1000 and value.isprintable()):
            return problem(422, "malformed", f"{name}: is no string of at most 1000 characters", field=name)
    return said


def _source(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _too_often(wait: float) -> Response:
    seconds = math.ceil(wait)
    headers = {"Retry-After": str(seconds)}
    return problem(429, "too_many_attempts", f"too many attempts to sign in; the next in {seconds} s", headers=headers)


def _not_allowed(request: Request, allowed: str) -> Response:
    sentence = f"{request.method} {request.url.path}: Method Not Allowed"
    return problem(405, "method_not_allowed", sentence, headers={"Allow": allowed})
