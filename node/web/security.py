"""Who may use the API: programs of this machine that can read the node's token, and no web page.

A page in the user's browser can reach 127.0.0.1. It cannot know the token, and what it can make a browser send by DNS
rebinding carries its own host name, which is refused.
"""

import hmac
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.web.problems import problem

LARGEST_BODY = 64 * 1024


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
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    fresh.replace(path)
    return token


class Gate:
    """The layer that asks for a Host of ours and ``Authorization: Bearer <token>``."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        if host not in self._hosts:
            refusal = problem(421, "wrong_host", f"Host {host!r} is not this API's; allowed: {sorted(self._hosts)}")
        elif scheme.lower() != b"bearer" or not hmac.compare_digest(credentials.strip(), self._token):
            refusal = problem(
                401,
                "unauthorized",
                "the request needs the header Authorization: Bearer and the token in the file api.token of the data"
                " directory",
                headers={"WWW-Authenticate": "Bearer"},
            )
        else:
            await self._app(scope, _bounded(receive), send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)


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
