"""A TCP proxy between two endpoints that does to their bytes what networks do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio
from attrs import define, evolve

from node.network.address import PeerAddress


@define
class Middleman:
    """Each direction of each carrier is treated alike; what is set takes effect at once, on those that are up too."""

    address: PeerAddress
    """What to dial."""
    frozen: bool = False
    """Nothing passes any more, and nobody is told."""
    delay: float = 0.0
    """Seconds that each piece is under way, in each direction."""
    truncate_after: int | None = None
    """Bytes of one direction after which the carrier is cut."""
    half_close_after: int | None = None
    """The same, but only this direction ends, and in order."""
    carried: int = 0
    """Bytes, in both directions."""
    carriers: int = 0
    """That were dialled."""

    async def carry(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        passed = 0
        while data := await source.receive_some(4096):
            if self.delay:
                await trio.sleep(self.delay)
            while self.frozen:
                await trio.sleep_forever()
            if self.truncate_after is not None:
                data = data[: max(0, self.truncate_after - passed)]
            if self.half_close_after is not None:
                data = data[: max(0, self.half_close_after - passed)]
            await sink.send_all(data)
            passed += len(data)
            self.carried += len(data)
            if self.truncate_after is not None and passed >= self.truncate_after:
                await source.aclose()
                await sink.aclose()
                return
            if self.half_close_after is not None and passed >= self.half_close_after:
                break
        await sink.send_eof()


@asynccontextmanager
async def middleman(target: PeerAddress) -> AsyncIterator[Middleman]:
    """Between whoever dials `address`, and `target`."""

    async def join(client: trio.SocketStream) -> None:
        this.carriers += 1
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with (
                client,
                await trio.open_tcp_stream(target.host, target.port) as server,
                trio.open_nursery() as both,
            ):
                both.start_soon(one_way, client, server)
                both.start_soon(one_way, server, client)

    async def one_way(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await this.carry(source, sink)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, join, 0, host="127.0.0.1"))
        this = Middleman(evolve(target, host="127.0.0.1", port=listener.socket.getsockname()[1]))
        yield this
        nursery.cancel_scope.cancel()
