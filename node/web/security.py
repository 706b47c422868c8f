"""Who may use the API: programs of this machine that can read the node's token, and no web page.

A page in the user's browser can reach 127.0.0.1. It cannot know the token, and what it can make a browser send by DNS
rebinding carries its own host name, which is refused. The page that this node serves itself signs in for a cookie
(`node.web.access`), which the browser sends to us alone, and which is good for nothing but requests of that page.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node import files
from node.web.page import DOCS
from node.web.problems import problem

if TYPE_CHECKING:
    from starlette.responses import Response

    from node.web.access import Access
    from node.web.page import Page

LARGEST_BODY = 64 * 1024

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BROWSER_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""What an answer carries unless it says otherwise itself."""


def api_token(path: Path) -> str:
    """The token kept in `path` (0600), made on first use.

    One that others of this machine could read, or that is damaged, is replaced by a new one. Raises `OSError`.
    """
    try:
        with path.open(encoding="ascii") as file:
            private = not stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            token = file.read(200).strip()
            if private and len(token) >= 43:
                return token
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    token = secrets.token_urlsafe(32)
    files.write_private(path, token + "\n")
    return token


class Gate:
    """The layer that asks for a Host of ours, and for a token or a session but for the page's files and signing in."""

    def __init__(self, app: ASGIApp, *, access: Access, page: Page) -> None:
        self._app = app
        self._access = access
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if host not in self._access.hosts:
            allowed = sorted(self._access.hosts)
            refusal: Response | None = problem(
                421, "wrong_host", f"Host {host!r} is not this API's; allowed: {allowed}"
            )
        elif own := self._access.own(scope["path"]):
            await own(scope, _bounded(receive), send)
            return
        elif file := await self._file(scope):
            await file(scope, receive, send)
            return
        else:
            refusal = await self._access.refusal(scope)
        if refusal is None:
            await self._app(scope, _bounded(receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    async def _file(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return None
        if path.startswith(("/api/", "/metrics")) and path != DOCS:
            return None
        return await self._page.answer(path)


class Headers:
    """The layer that says to browsers what an answer may do: nothing that does not come from here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                given = list(message.get("headers", ()))
                named = {name.lower() for name, _ in given}
                added = [header for header in BROWSER_HEADERS if header[0] not in named]
                message = {**message, "headers": [*given, *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


def _bounded(receive: Receive) -> Receive:
    """A request's body up to `LARGEST_BODY`; more is answered with 413 wherever it is read."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body") or b"")
        if total > LARGEST_BODY:
            raise HTTPException(413, f"the body is larger than {LARGEST_BODY} bytes")
        return message

    return bounded
