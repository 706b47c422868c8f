"""Endpoints joined in memory (for the virtual clock) or over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
import trio.testing
from attrs import define

from node.network.address import Identity, PeerAddress
from node.network.connection import Connection
from node.network.endpoint import Endpoint, Handler, Limits
from node.network.substream import Substream
from tests.sessions import DIALLER, LISTENER

ECHO = "/cfd/echo/1"


async def echo(stream: Substream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@define
class Joined:
    """`taker` has dialled `maker`; both ends of the connection."""

    taker: Endpoint
    maker: Endpoint
    at_taker: Connection
    at_maker: Connection

    async def streams(self) -> tuple[Substream, Substream]:
        """Both ends of a new substream that nobody handles but the test."""
        path = f"/cfd/test/{len(self.maker.paths) + 1}"
        send, receive = trio.open_memory_channel[Substream](1)

        async def hand_over(stream: Substream) -> None:
            await send.send(stream)
            await trio.sleep_forever()

        self.maker.handle(path, hand_over)
        ours = await self.at_taker.open(path)
        return ours, await receive.receive()


@asynccontextmanager
async def running(
    handlers: Mapping[str, Handler] | None = None,
    *,
    secret: bytes = LISTENER,
    limits: Limits | None = None,
) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(Identity(secret), handlers=handlers, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        yield endpoint
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def joined(
    handlers: Mapping[str, Handler] | None = None, *, limits: Limits | None = None, sockets: bool = False
) -> AsyncIterator[Joined]:
    """A taker and a maker, in memory or over loopback; `handlers` are the maker's."""
    async with (
        running(handlers, limits=limits) as maker,
        running(secret=DIALLER, limits=limits) as taker,
        trio.open_nursery() as nursery,
    ):
        events = maker.connection_events()
        if sockets:
            at_taker = await taker.dial(await address_of(maker))
        else:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(maker.accept, theirs)
            at_taker = await taker.connect(ours, maker.identity.public)
        up = await events.receive()
        events.close()
        yield Joined(taker, maker, at_taker, up.connection)
        nursery.cancel_scope.cancel()


async def address_of(endpoint: Endpoint) -> PeerAddress:
    """Where it listens, from now on."""
    host, port = await endpoint.listen("127.0.0.1", 0)
    return PeerAddress(endpoint.identity.public, host, port)
