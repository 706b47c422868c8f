"""Carriers in memory, and substreams on which messages are lost, doubled, late, or bent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgpack
import trio
from attrs import Factory, define, frozen

from node.chain.servers import ServerAddress, Servers
from node.network.carriers import Carriers
from node.network.substream import Substream
from tests.simulation.faults import DELAY, Fault, Faults

HOUSEKEEPING = frozenset({"/cfd/ping/1", "/cfd/identify/1", "/cfd/offers/1"})
"""Not worth a fault of their own: they begin anew with each connection."""


class Owner(Protocol):
    """Whose carriers and substreams these are: one life of a node."""

    alive: bool

    @property
    def name(self) -> str: ...

    def crash(self) -> None: ...


@define(eq=False)
class _Pipe:
    """One direction of a carrier: what was sent can be received at once."""

    data: bytearray = Factory(bytearray)
    ended: bool = False
    bell: trio.lowlevel.ParkingLot = Factory(trio.lowlevel.ParkingLot)


@define(eq=False)
class Link:
    """A carrier, both ends."""

    cut_: bool = False
    pipes: tuple[_Pipe, _Pipe] = Factory(lambda: (_Pipe(), _Pipe()))
    delivered: dict[tuple[int, int], tuple[int, Callable[[], None]]] = Factory(dict)
    """By the receiving side and the substream: what happens once so many bytes have arrived on it."""

    def cut(self) -> None:
        """Both ends break; what was not received yet is lost."""
        self.cut_ = True
        for pipe in self.pipes:
            pipe.data.clear()
            pipe.bell.unpark_all()


class Carrier(trio.abc.HalfCloseableStream):
    """One end of a link."""

    def __init__(self, link: Link, side: int) -> None:
        self.link, self.side = link, side
        self._out, self._in = link.pipes[side], link.pipes[1 - side]
        self._closed = False

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end of the carrier was closed")
        if self.link.cut_:
            raise trio.BrokenResourceError("the carrier was cut")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        if self._out.ended:
            raise trio.BrokenResourceError("the other end was closed")
        self._out.data += data
        self._out.bell.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not (self._in.data or self._in.ended or self.link.cut_ or self._closed):
            await self._in.bell.park()
        self._check()
        data = bytes(self._in.data[:max_bytes])
        del self._in.data[: len(data)]
        return data

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end()

    async def aclose(self) -> None:
        self._closed = True
        self._end()
        self._in.ended = True
        self._in.bell.unpark_all()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        self._out.ended = True
        self._out.bell.unpark_all()


class Listener(trio.abc.Listener[Carrier]):
    """Gives whoever listens the other end of each carrier that is dialled."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[Carrier](64)

    async def accept(self) -> Carrier:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("nobody listens here any more") from None

    async def aclose(self) -> None:
        self.send.close()
        await trio.lowlevel.checkpoint()


@define
class Network:
    """Who listens where, and every carrier with those whose it is."""

    listeners: dict[tuple[str, int], tuple[Listener, Owner | None]] = Factory(dict)
    links: list[tuple[Link, Owner | None, Owner | None]] = Factory(list)

    def listen(self, host: str, port: int, owner: Owner | None = None) -> Listener:
        listener = Listener()
        self.listeners[host, port] = listener, owner
        return listener

    def dial(self, host: str, port: int, owner: Owner | None = None) -> Carrier:
        if (host, port) not in self.listeners or (owner is not None and not owner.alive):
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        listener, other = self.listeners[host, port]
        link = Link()
        self.links = [each for each in self.links if not each[0].cut_]
        self.links.append((link, owner, other))
        listener.send.send_nowait(Carrier(link, 1))
        return Carrier(link, 0)

    def leave(self, owner: Owner) -> None:
        """Nothing leaves or reaches this life of a node any more."""
        self.listeners = {place: each for place, each in self.listeners.items() if each[1] is not owner}
        for link, *owners in self.links:
            if owner in owners:
                link.cut()


@frozen
class CarriersOf(Carriers):
    """The network as one life of a node sees it."""

    network: Network
    owner: Owner

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return self.network.dial(host, port, self.owner)

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        await trio.lowlevel.checkpoint()
        return [self.network.listen(host, port, self.owner)], (host, port)


@frozen
class _ServerInMemory(ServerAddress):
    carriers: CarriersOf | None = None

    async def connect(self) -> trio.abc.Stream:
        assert self.carriers is not None
        return await self.carriers.dial(self.host, self.port)


class ServersInMemory(Servers):
    """One Electrum server."""

    def __init__(self, host: str, port: int, carriers: CarriersOf) -> None:
        super().__init__([f"{host}:{port}"])
        self.addresses = (_ServerInMemory(host, port, carriers=carriers),)


def substreams(owner: Owner, faults: Faults) -> type[Substream]:
    """The kind of substream on which a node's messages meet their faults: each `send_all` is one message."""

    class Watched(Substream):
        sent = arrived = 0

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            message = bytes(data)
            if self.path in HOUSEKEEPING:
                await self._pass_on(message)
                return
            plain = msgpack.unpackb(message, strict_map_key=False)
            step, fault = faults.at(owner.name, self.path, plain["type"])
            deceit = faults.deceits.get(owner.name)
            bent = deceit(step, plain) if deceit is not None else None
            await self._send(message if bent is None else msgpack.packb(bent), fault)

        async def _send(self, message: bytes, fault: Fault | None) -> None:
            match fault:
                case Fault.CUT_BEFORE:
                    self.link.cut()
                case Fault.CRASH_BEFORE:
                    owner.crash()
                case Fault.DROP:
                    await trio.lowlevel.checkpoint()
                    return
                case Fault.DELAY:
                    await trio.sleep(DELAY)
                case Fault.CUT_AFTER:
                    self._once_delivered(len(message), self.link.cut)
                case Fault.CRASH_AFTER:
                    self._once_delivered(len(message), owner.crash)
                case Fault.TWICE:
                    await self._pass_on(message)
            await self._pass_on(message)

        async def _pass_on(self, message: bytes) -> None:
            await super().send_all(message)
            self.sent += len(message)

        def data_arrived(self, data: bytes) -> None:
            super().data_arrived(data)
            self.arrived += len(data)
            wanted, act = self.link.delivered.get((self.carrier.side, self.stream_id), (self.arrived + 1, None))
            if act is not None and self.arrived >= wanted:
                del self.link.delivered[self.carrier.side, self.stream_id]
                act()

        def _once_delivered(self, size: int, act: Callable[[], None]) -> None:
            self.link.delivered[1 - self.carrier.side, self.stream_id] = self.sent + size, act

        @property
        def carrier(self) -> Carrier:
            carrier = self.connection._carrier
            assert isinstance(carrier, Carrier)
            return carrier

        @property
        def link(self) -> Link:
            return self.carrier.link

    return Watched
