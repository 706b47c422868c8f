"""py-libp2p with its defaults: TCP, Noise XX, yamux."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import frozen
from libp2p import new_host  # type: ignore[import-not-found]  # in the bench's environment only
from libp2p.crypto.ed25519 import create_new_key_pair  # type: ignore[import-not-found]
from libp2p.network.stream.exceptions import StreamEOF  # type: ignore[import-not-found]
from libp2p.peer.peerinfo import info_from_p2p_addr  # type: ignore[import-not-found]
from multiaddr import Multiaddr  # type: ignore[import-not-found]

from scripts.benches._transport import HOST, Address, Handler, Link, Talk

_PATH = "/cfd/bench/1"
_READ_BYTES = 128 * 1024


@frozen
class _Talk(Talk):
    stream: Any

    async def send(self, data: bytes) -> None:
        await self.stream.write(data)

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.read(_READ_BYTES))
        except StreamEOF:
            return b""

    async def aclose(self) -> None:
        await self.stream.close()


@frozen
class _Link(Link):
    host: Any
    peer: Any
    life: trio.CancelScope

    async def open(self) -> Talk:
        return _Talk(await self.host.new_stream(self.peer, [_PATH]))

    async def aclose(self) -> None:
        await self.host.disconnect(self.peer)
        self.life.cancel()


class Libp2p:
    asynchronous = "trio"
    one_stream = False

    def __init__(self) -> None:
        # it reports every connection that ends before it has introduced itself
        logging.disable()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def _host(self, *listen: str) -> tuple[Any, trio.CancelScope]:
        host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)), muxer_preference="YAMUX")
        life: trio.CancelScope = await self._nursery.start(_run, host, listen)
        return host, life

    async def listen(self, handler: Handler) -> Address:
        host, _ = await self._host(f"/ip4/{HOST}/tcp/0")

        async def serve(stream: Any) -> None:
            await handler(_Talk(stream))

        host.set_stream_handler(_PATH, serve)
        address = host.get_addrs()[0]
        return Address(int(address.value_for_protocol("tcp")), str(host.get_id()))

    async def connect(self, address: Address) -> Link:
        host, life = await self._host()
        info = info_from_p2p_addr(Multiaddr(f"/ip4/{HOST}/tcp/{address.port}/p2p/{address.key}"))
        await host.connect(info)
        return _Link(host, info.peer_id, life)


async def _run(
    host: Any, listen: tuple[str, ...], *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as life:
        async with host.run(listen_addrs=[Multiaddr(each) for each in listen]):
            task_status.started(life)
            await trio.sleep_forever()
