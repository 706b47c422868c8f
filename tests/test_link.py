"""A link dials again, in ever longer pauses, and its users need not know."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, field

from node.network.address import Identity, PeerAddress
from node.network.carriers import Carriers
from node.network.endpoint import Endpoint, Limits
from node.network.errors import ConnectionLost, DialFailed, HandshakeFailed
from node.network.link import Link, Pauses
from protocols.errors import LocalError
from protocols.transport.http2 import SessionLimits
from tests.endpoints import ECHO, echo
from tests.sessions import DIALLER, LISTENER

ADDRESS = PeerAddress(Identity(LISTENER).public, "maker.example", 80)


@define
class InMemory(Carriers):
    """Carries to one endpoint, or to nobody."""

    maker: Endpoint | None
    nursery: trio.Nursery
    dialled: list[float] = field(factory=list)
    """When."""

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        self.dialled.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.maker is None:
            raise ConnectionRefusedError("nobody")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.maker.accept, theirs)
        return ours

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        raise NotImplementedError


@asynccontextmanager
async def linked(limits: Limits | None = None) -> AsyncIterator[tuple[Link, InMemory, Endpoint]]:
    """A link whose maker is there; the link does not run yet."""
    async with (
        trio.open_nursery() as nursery,
        Endpoint(Identity(LISTENER), handlers={ECHO: echo}, limits=limits).running() as maker,
    ):
        carriers = InMemory(maker, nursery)
        async with Endpoint(Identity(DIALLER), carriers=carriers, limits=limits).running() as taker:
            yield Link(taker, (ADDRESS,), jitter=random.Random(7)), carriers, maker
        nursery.cancel_scope.cancel()


def test_pauses_grow_from_half_a_second_to_a_minute() -> None:
    pauses, jitter = Pauses(), random.Random(1)
    drawn = [[pauses.draw(failures, jitter) for _ in range(200)] for failures in range(1, 100)]
    for failures, some in enumerate(drawn):
        ceiling = min(60, 2**failures)
        assert ceiling / 2 <= min(some) < 0.6 * ceiling
        assert 0.9 * ceiling < max(some) <= ceiling


async def test_it_dials_until_somebody_answers(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, carriers, maker), trio.open_nursery() as nursery:
        carriers.maker = None
        nursery.start_soon(link.run)
        await trio.sleep(600)
        assert isinstance(link.failure, DialFailed)
        gaps = [late - early for early, late in zip(carriers.dialled, carriers.dialled[1:], strict=False)]
        assert len(gaps) == link.failures - 1
        for number, gap in enumerate(gaps):
            assert min(60, 2**number) / 2 <= gap <= min(60, 2**number)
        assert len(set(gaps)) == len(gaps)
        carriers.maker = maker
        stream = await link.open(ECHO)
        assert link.connection is stream.connection
        assert link.failures > 10
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_healthy_minute_makes_the_next_pause_the_first(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, _, maker), trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for healthy, failures in ((1, 1), (1, 2), (59, 3), (61, 1), (1, 2)):
            connection = await link.wait_up()
            await trio.sleep(healthy)
            (at_maker,) = maker.connections
            await at_maker.aclose()
            await connection.wait_closed()
            await trio.testing.wait_all_tasks_blocked()
            assert link.connection is None
            assert isinstance(link.failure, ConnectionLost)
            assert link.failures == failures
        nursery.cancel_scope.cancel()


async def test_its_users_wait_while_it_is_down(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, _, maker), trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        done = 0
        for _ in range(5):
            async with await link.open(ECHO) as stream:
                await stream.send_all(b"question")
                assert await stream.receive_some() == b"question"
                done += 1
            (at_maker,) = maker.connections
            at_maker.part()
            await stream.connection.wait_closed()
        assert done == 5
        nursery.cancel_scope.cancel()


async def test_used_up_stream_ids_are_no_pause(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits(session=SessionLimits(last_stream=9))
    async with linked(limits) as (link, carriers, _), trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for _ in range(50):
            async with await link.open(ECHO) as stream:
                await stream.send_all(b"question")
                assert await stream.receive_some() == b"question"
        assert len(carriers.dialled) == 10
        assert max(carriers.dialled) == min(carriers.dialled)
        nursery.cancel_scope.cancel()


async def test_another_peer_there_is_a_failure_like_any_other(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, carriers, _), trio.open_nursery() as nursery:
        stranger = PeerAddress(Identity(DIALLER).public, "maker.example", 80)
        other = Link(link.endpoint, (stranger,))
        nursery.start_soon(other.run)
        await trio.sleep(100)
        assert isinstance(other.failure, HandshakeFailed)
        assert len(carriers.dialled) > 4
        nursery.cancel_scope.cancel()


async def test_what_may_not_be_dialled_is_not_tried_again() -> None:
    async with linked() as (link, carriers, _):
        link.endpoint.admit(None, {ADDRESS.peer})
        with pytest.raises(LocalError, match="block list"):
            await link.run()
        assert carriers.dialled == []
