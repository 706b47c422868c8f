"""The HTTP API: FastAPI on anycorn, in the node's own nursery.

FastAPI is imported when the first app is made of it: the first answers of a node do without.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import anycorn.config
import anycorn.run
import anycorn.utils
import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from node.clock import Clock
from node.config import WebTable
from node.health import UNREPORTED, Report
from node.web.access import Access
from node.web.counted import Counted, Requests
from node.web.idempotency import Book, Idempotent
from node.web.page import Page
from node.web.problems import CrashGuard, add_problem_handlers
from node.web.security import Gate, Headers
from node.web.sockets import host_of

if TYPE_CHECKING:
    from fastapi import APIRouter

    from node.web.door import Door


def create_app(
    routers: Iterable[APIRouter],
    *,
    token: str,
    sockets: Sequence[socket.socket],
    access: Access | None = None,
    answers: Book | None = None,
) -> ASGIApp:
    """The API that these routers make, guarded; every error is a problem. `answers` are those given under a key."""
    from fastapi import FastAPI

    from node.web.describe import described

    class Api(FastAPI):
        def openapi(self) -> dict[str, Any]:
            if self.openapi_schema is None:
                self.openapi_schema = described(self)
            return self.openapi_schema

    # FastAPI's pages of documentation load scripts from elsewhere; ours is one of the page's files
    description = "/api/v1/openapi.json"
    app = Api(title="cfdnode", version=version("cfdnode"), docs_url=None, redoc_url=None, openapi_url=description)
    add_problem_handlers(app)
    for router in routers:
        app.include_router(router)
    app.state.requests = Requests()
    app.state.access = access or access_to(sockets, token)
    inner: ASGIApp = app if answers is None else Idempotent(app, answers)
    return guarded(Counted(inner, app.state.requests), app.state.access)


def guarded(app: ASGIApp, access: Access) -> ASGIApp:
    """`app` behind the gate, which lets in whom `access` says; a bug in it is answered."""
    return Headers(CrashGuard(Gate(app, access=access, page=Page())))


def access_to(
    sockets: Sequence[socket.socket],
    token: str,
    *,
    data: Path | None = None,
    clock: Clock | None = None,
    web: WebTable | None = None,
) -> Access:
    """Hosts allowed are the addresses of `sockets`, as ``localhost`` too, and those of `web`."""
    web = web or WebTable()
    ports = [listener.getsockname()[1] for listener in sockets]
    names = {"127.0.0.1", "localhost", *map(host_of, sockets)}
    hosts = {f"{host}:{port}" for host in names for port in ports}
    named = {*web.hosts, *(f"{host}:{port}" for host in web.hosts for port in ports if ":" not in host)}
    return Access(
        token=token, hosts=hosts, named=named, port=ports[0], data=data, clock=clock, tls=web.cert is not None
    )


async def run_door(
    door: Door,
    listener: socket.socket,
    *,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The API of a node as a service: what is behind the door, on its socket. It goes on as long as it answers us."""
    door.open()
    async with trio.open_nursery() as nursery:

        async def served(*, task_status: trio.TaskStatus[None]) -> None:
            await serve(door, [listener], web=door.web, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(served)
        task_status.started()
        await ask_itself(listener, door.token, report, tls=door.web.cert is not None)


async def ask_itself(listener: socket.socket, token: str, report: Report, *, tls: bool = False) -> NoReturn:
    """Ask for the health as any program of this machine would, and beat at each answer."""
    host, port = host_of(listener), listener.getsockname()[1]
    head = f"GET /api/v1/health HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
    while True:
        await trio.sleep(report.beat_every)
        with (
            trio.move_on_after(report.beat_every),
            contextlib.suppress(OSError, trio.BrokenResourceError, ssl.SSLError),
        ):
            async with await _to_itself(host.strip("[]"), port, tls=tls) as stream:
                await stream.send_all(f"{head}Connection: close\r\n\r\n".encode())
                answer = b"".join([data async for data in stream])
                if answer.startswith(b"HTTP/1.1 200 "):
                    report.beat()


async def _to_itself(host: str, port: int, *, tls: bool) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(host, port)
    if not tls:
        return stream
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate is for others, by its name
    return trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)


async def serve(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    *,
    web: WebTable | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on bound, listening sockets until cancelled, by TLS if `web` has a certificate.

    The sockets stay open when this ends, so that a service that is restarted answers on the same ones.
    """
    config = anycorn.config.Config()
    config.errorlog = logging.getLogger("cfdnode.http")
    config.errorlog.setLevel(logging.WARNING)  # where it listens is told by the node, once
    config.accesslog = None
    config.include_server_header = False
    framework: Any = _without_lifespan(app)
    copies = [listener.dup() for listener in sockets]
    served = anycorn.config.Sockets([], copies, [])
    if web is not None and web.cert is not None:
        config.certfile, config.keyfile = str(web.cert), str(web.key)
        config.alpn_protocols = ["http/1.1"]
        served = anycorn.config.Sockets(copies, [], [])
    try:
        await anycorn.run.worker_serve(
            anycorn.utils.wrap_app(framework, 0, "asgi"),
            config,
            sockets=served,
            task_status=_Started(task_status),
        )
    finally:
        for copy in copies:
            copy.close()


class _Started:
    """anycorn's addresses are no API: a service's started value is its own."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, _addresses: object = None) -> None:
        self._task_status.started()


def _without_lifespan(app: ASGIApp) -> ASGIApp:
    """Services begin and end in their supervisor; the server's own startup dialogue is answered, and does nothing."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    return answered
