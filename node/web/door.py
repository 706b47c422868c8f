"""The door of the API: one app behind the server's sockets for as long as the process lives.

While the node is being built it answers for health and the services that there are, and everything else with a problem
that says what the start waits for; then the whole API is let in, and no connection is lost over it.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from fastapi import APIRouter, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from node import files
from node.clock import Clock
from node.health import UP
from node.supervision import Supervisor
from node.web.health_api import health_router
from node.web.problems import problem
from node.web.security import api_token
from node.web.server import create_app
from node.web.sockets import url_of

Make = Callable[[], Sequence[APIRouter]]

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
    ) -> None:
        self._listener = listener
        self._supervisor = supervisor
        self.token = kept_token(data, url_of(listener))
        self._whole: ASGIApp | None = None
        self._rest = rest
        self._first = self._app([health_router(supervisor, clock, warnings=warnings), self._starting()])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._whole is not None:
            await self._whole(scope, receive, send)
        else:
            await self._first(scope, receive, send)

    def let_in(self, routers: Sequence[APIRouter]) -> None:
        self._whole = self._app(routers)

    def open(self) -> None:
        """Let in what was promised, if something was: a life of the server begins."""
        if self._whole is None and self._rest is not None:
            self.let_in(self._rest())

    def _app(self, routers: Sequence[APIRouter]) -> ASGIApp:
        return create_app(routers, token=self.token, sockets=[self._listener])

    def _starting(self) -> APIRouter:
        """What holds up the start, for every other path."""
        router = APIRouter()

        async def starting() -> Response:
            for service in self._supervisor.services:
                health = service.health
                if health.state not in UP and health.reason:
                    sentence = f"the node is starting: {health.name}: {health.reason}"
                    return problem(503, "starting", sentence, service=health.name, remedy=health.remedy)
            return problem(503, "starting", "the node is starting")

        router.add_api_route(
            "/{path:path}", starting, methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
        )
        return router


def kept_token(data: Path, url: str) -> str:
    """The API's token; it and the URL are kept in the data directory, or, when that cannot be written and has no token,
    in a new directory that its owner alone may read, whose name is logged."""
    try:
        token = api_token(files.token_file(data))
    except OSError as error:
        folder = _elsewhere()
        token = secrets.token_urlsafe(32) if folder is None else api_token(files.token_file(folder))
        log.warning("the API's token is not in the data directory", reason=str(error), folder=str(folder))
        if folder is not None:
            files.url_file(folder).write_text(url + "\n", encoding="ascii")
    try:
        files.url_file(data).write_text(url + "\n", encoding="ascii")
    except OSError as error:
        log.warning("the API's address is not in the data directory", reason=str(error), url=url)
    return token


def _elsewhere() -> Path | None:
    """A new directory (0700) outside the data directory; None when nothing can be written anywhere."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), None):
        try:
            return Path(tempfile.mkdtemp(prefix="cfdnode-", dir=parent))
        except OSError:
            continue
    return None
