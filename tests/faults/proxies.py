"""The way to an outside world, on which everything can go wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import trio
from attrs import Factory, define, field

Trouble = Literal["none", "cut", "hang", "late", "dribble", "garbage"]

TROUBLES: tuple[Trouble, ...] = ("cut", "garbage", "hang", "late", "dribble")
LATE = 1.0
"""Seconds that each piece is late."""
DRIBBLE = 0.02
"""Seconds for each byte."""
SIZE = 65536


@define(eq=False)
class Proxy:
    """Forwards connections to host and port. `trouble` applies to what runs through at once, also on open ones."""

    name: str
    host: str
    port: int
    at: int = 0
    """Its own port."""
    connections: int = 0
    """That were ever made."""
    _trouble: Trouble = "none"
    _changed: trio.Event = Factory(trio.Event)
    _open: set[trio.SocketStream] = field(factory=set)
    _draw: random.Random = Factory(lambda: random.Random(1))

    @property
    def _dribbling(self) -> bool:
        return self._trouble == "dribble"

    @contextmanager
    def troubled(self, trouble: Trouble) -> Iterator[None]:
        self._set(trouble)
        try:
            yield
        finally:
            self._set("none")

    def _set(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self._changed.set()
        self._changed = trio.Event()
        if trouble in ("cut", "none"):  # what was spoilt or held back leaves no connection that could go on
            for stream in self._open:
                stream.socket.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.at = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._forward, [listener])

    async def _forward(self, near: trio.SocketStream) -> None:
        self.connections += 1
        async with near:
            if self._trouble == "cut":
                return
            try:
                far = await trio.open_tcp_stream(self.host, self.port)
            except OSError:
                return
            async with far, trio.open_nursery() as nursery:
                self._open |= {near, far}
                try:
                    nursery.start_soon(self._pump, near, far, False, nursery.cancel_scope)
                    await self._pump(far, near, True, nursery.cancel_scope)
                finally:
                    self._open -= {near, far}

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, answers: bool, scope: trio.CancelScope
    ) -> None:
        """`answers`: what the node is told; only that becomes garbage."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(SIZE):
                while self._trouble == "hang":
                    await self._changed.wait()
                await self._pass(data, sink, answers)
        scope.cancel()

    async def _pass(self, data: bytes, sink: trio.SocketStream, answers: bool) -> None:
        match self._trouble:
            case "late":
                await trio.sleep(LATE)
                await sink.send_all(data)
            case "dribble":
                for n in range(len(data)):
                    await sink.send_all(data[n : n + 1])
                    await trio.sleep(DRIBBLE if self._dribbling else 0)
            case "garbage" if answers:
                await sink.send_all(self._draw.randbytes(len(data)) + b"\n")
            case _:
                await sink.send_all(data)
