"""The node's own transport, by its public API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from node.network.address import Identity, PeerAddress, PeerId
from node.network.connection import Connection
from node.network.endpoint import Endpoint, Limits
from node.network.substream import Substream
from protocols.transport.http2 import SessionLimits
from scripts.benches._transport import HOST, Address, Handler, Link, Talk

_PATH = "/cfd/bench/1"
_LIMITS = Limits(session=SessionLimits(streams=1_100))


@frozen
class _Talk(Talk):
    stream: Substream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some())

    async def aclose(self) -> None:
        await self.stream.aclose()


@frozen
class _Link(Link):
    endpoint: Endpoint
    connection: Connection
    nursery: trio.Nursery

    async def open(self) -> Talk:
        return _Talk(await self.connection.open(_PATH))

    async def aclose(self) -> None:
        await self.connection.aclose()
        self.nursery.cancel_scope.cancel()


class Ours:
    asynchronous = "trio"
    one_stream = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def _endpoint(self, handler: Handler | None = None) -> tuple[Endpoint, trio.Nursery]:
        endpoint = Endpoint(Identity(os.urandom(32)), limits=_LIMITS)
        if handler is not None:
            endpoint.handle(_PATH, lambda stream: _handle(handler, stream))
        nursery: trio.Nursery = await self._nursery.start(_run, endpoint)
        return endpoint, nursery

    async def listen(self, handler: Handler) -> Address:
        endpoint, _ = await self._endpoint(handler)
        _, port = await endpoint.listen(HOST, 0)
        return Address(port, str(endpoint.identity.public))

    async def connect(self, address: Address) -> Link:
        # another identity each time: with one peer there is one connection
        endpoint, nursery = await self._endpoint()
        peer = PeerAddress(PeerId.parse(address.key), HOST, address.port)
        return _Link(endpoint, await endpoint.dial(peer), nursery)


async def _handle(handler: Handler, stream: Substream) -> None:
    await handler(_Talk(stream))


async def _run(endpoint: Endpoint, *, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        task_status.started(nursery)
