"""The door of the API: one app behind the server's sockets for as long as the process lives.

At first it answers for health alone, and everything else with a problem that says what the start waits for; that needs
next to nothing imported. Then come what may be asked of the services that there are, and, once the node is built, the
whole API: each is let in behind the same door, and no connection is lost over it.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from node import files
from node.clock import Clock
from node.config import WebTable
from node.health import UP, page
from node.supervision import Supervisor
from node.web.idempotency import Book
from node.web.problems import problem
from node.web.security import api_token
from node.web.server import access_to, create_app, guarded
from node.web.sockets import url_of

if TYPE_CHECKING:
    from fastapi import APIRouter

Make = Callable[[], "Sequence[APIRouter]"]

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
"""The first of a file is the server's own."""

log = structlog.get_logger("node")


class Door:
    """An app that is another one from `let_in` on. `warnings` may grow."""

    def __init__(
        self,
        data: Path,
        *,
        listener: socket.socket,
        supervisor: Supervisor,
        clock: Clock,
        warnings: Sequence[str],
        rest: Make | None = None,
        web: WebTable | None = None,
    ) -> None:
        self.web = web or WebTable()
        self._listener = listener
        self._supervisor = supervisor
        self._clock = clock
        self._warnings = warnings
        self.token, self._told_in = kept_token(data, url_of(listener, tls=self.web.cert is not None))
        self._rest = rest
        self._answers = Book(files.answers_file(data), clock)
        self._access = access_to([listener], self.token, data=data, clock=clock, web=self.web)
        self._app = guarded(self._health_alone, self._access)
        self._whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def let_in(self, routers: Sequence[APIRouter]) -> None:
        """The whole API."""
        self._app = create_app(
            routers, token=self.token, sockets=[self._listener], access=self._access, answers=self._answers
        )
        self._whole = True

    def let_in_services(self) -> None:
        """What may be asked of each service, while the whole API is not there yet."""
        from node.web.health_api import health_router, waiting_router

        if not self._whole:
            routers = [
                health_router(self._supervisor, self._clock, warnings=self._warnings),
                waiting_router(self._starting),
            ]
            self._app = create_app(routers, token=self.token, sockets=[self._listener], access=self._access)

    def open(self) -> None:
        """Let in what was promised, if something was: a life of the server begins, with the certificate of now."""
        for folder in self._told_in:
            keep_certificate(folder, self.web.cert)
        if not self._whole and self._rest is not None:
            self.let_in(self._rest())

    async def _health_alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1013})
        elif (scope["method"], scope["path"]) == ("GET", "/api/v1/health"):
            health = page(self._supervisor.health(), self._clock.now(), self._warnings)
            await JSONResponse(health)(scope, receive, send)
        else:
            await self._starting()(scope, receive, send)

    def _starting(self) -> Response:
        """What holds up the start."""
        for service in self._supervisor.services:
            health = service.health
            if health.state not in UP and health.reason:
                sentence = f"the node is starting: {health.name}: {health.reason}"
                return problem(503, "starting", sentence, service=health.name, remedy=health.remedy)
        return problem(503, "starting", "the node is starting")


def kept_token(data: Path, url: str) -> tuple[str, Sequence[Path]]:
    """The API's token, and where it and the URL are kept: in the data directory, and, when that cannot be written
    and has no token, in a new directory that its owner alone may read, whose name is logged."""
    folders = [data]
    try:
        token = api_token(files.token_file(data))
    except OSError as error:
        folder = _elsewhere()
        token = secrets.token_urlsafe(32) if folder is None else api_token(files.token_file(folder))
        log.warning("the API's token is not in the data directory", reason=str(error), folder=str(folder))
        if folder is not None:
            files.url_file(folder).write_text(url + "\n", encoding="ascii")
            folders.append(folder)
    try:
        files.url_file(data).write_text(url + "\n", encoding="ascii")
    except OSError as error:
        log.warning("the API's address is not in the data directory", reason=str(error), url=url)
    return token, folders


def keep_certificate(folder: Path, served: Path | None) -> None:
    """Put the certificate that is served where programs of this machine look for the one that they trust.

    It alone, without the rest of its file: others of its chain sign for many, and a key may stand there, too."""
    kept = files.certificate_file(folder)
    try:
        if served is None:
            kept.unlink(missing_ok=True)
        elif (found := CERTIFICATE.search(served.read_text(encoding="utf-8", errors="replace"))) is not None:
            files.write_private(kept, found[0] + "\n")
    except OSError as error:
        log.warning("the API's certificate is not beside its address", reason=str(error), folder=str(folder))


def _elsewhere() -> Path | None:
    """A new directory (0700) outside the data directory; None when nothing can be written anywhere."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), None):
        try:
            return Path(tempfile.mkdtemp(prefix="cfdnode-", dir=parent))
        except OSError:
            continue
    return None
