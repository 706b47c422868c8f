"""A connection that is kept up: dialled again whenever it is lost, after pauses that grow with each failure."""

from __future__ import annotations

import random
from typing import NoReturn

import trio
from attrs import define, field, frozen

from node.network.address import PeerAddress
from node.network.connection import Connection
from node.network.endpoint import Endpoint
from node.network.errors import ConnectionLost, DialFailed, HandshakeFailed
from node.network.substream import Substream
from protocols.errors import CodedError, LocalError


@frozen
class Pauses:
    """Seconds. The n-th pause in a row is drawn from the upper half of `longest`, or of 2ⁿ times `shortest` if that is
    less; after `healthy` seconds of one connection the next pause is the first again."""

    shortest: float = 1
    longest: float = 60
    healthy: float = 60

    def draw(self, failures: int, jitter: random.Random) -> float:
        """Behind so many failures in a row, counted from 1."""
        ceiling = min(self.longest, self.shortest * 2.0 ** min(failures - 1, 30))
        return ceiling * jitter.uniform(0.5, 1.0)


@define(eq=False)
class Link:
    """Keeps up the connection to a peer for as long as `run` runs.

    ::

        link = Link(endpoint, (address,))
        nursery.start_soon(link.run)
        stream = await link.open("/cfd/ping/1")  # as soon as there is a connection
    """

    endpoint: Endpoint
    addresses: tuple[PeerAddress, ...]
    """Of one peer, in the order in which they are tried."""
    pauses: Pauses = field(factory=Pauses)
    jitter: random.Random = field(factory=random.Random)
    connection: Connection | None = field(init=False, default=None)
    """While it is up."""
    failure: CodedError | None = field(init=False, default=None)
    """Why it is not."""
    failures: int = field(init=False, default=0)
    """Without a healthy time between them."""
    _changed: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)

    async def run(self) -> NoReturn:
        """Until cancelled. Raises LocalError if the peer may or can not be dialled."""
        while True:
            try:
                self.connection = await self.endpoint.dial(*self.addresses)
            except LocalError:
                raise
            except CodedError as error:
                self.failure = error
            else:
                if await self._follow(self.connection):
                    continue
            self.failures += 1
            await trio.sleep(self.pauses.draw(self.failures, self.jitter))

    async def _follow(self, connection: Connection) -> bool:
        """To its end; says whether that was no failure: all its stream ids were used."""
        since, self.failure = trio.current_time(), None
        self._changed.unpark_all()
        try:
            await connection.wait_closed()
        finally:
            self.connection = None
        self.failure = ConnectionLost(connection.reason or "closed")
        if trio.current_time() - since >= self.pauses.healthy:
            self.failures = 0
        return connection.exhausted

    async def wait_up(self) -> Connection:
        """The connection, once there is one."""
        await trio.lowlevel.checkpoint()
        while self.connection is None:
            await self._changed.park()
        return self.connection

    async def open(self, path: str) -> Substream:
        """Open a substream, as soon as there is a connection. Raises `Refused` if the peer ends it with a reason."""
        while True:
            await self.wait_up()
            try:
                return await self.endpoint.open(path, *self.addresses)
            except (ConnectionLost, DialFailed, HandshakeFailed):
                await trio.lowlevel.checkpoint()  # `run` finds out as well
