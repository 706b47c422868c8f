"""Connections over networks that are slow, lose everything, or end in the middle; and peers that are stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from node.network.address import PeerAddress
from node.network.connection import Connection, Liveness
from node.network.endpoint import Endpoint, Limits
from node.network.errors import ConnectionLost, DialFailed, HandshakeFailed, StreamReset
from node.network.substream import Substream
from protocols.transport.http2 import SessionLimits
from tests.endpoints import ECHO, Joined, address_of, echo, joined, running
from tests.middleman import Middleman, middleman
from tests.sessions import DIALLER

WINDOW = 256 * 1024
HASTY = Limits(liveness=Liveness(ping_after=0.3, dead_after=0.6, farewell=0.05))
CURT = Limits(liveness=Liveness(farewell=0.05))


@asynccontextmanager
async def apart(limits: Limits | None = None) -> AsyncIterator[tuple[Endpoint, Endpoint, Middleman]]:
    """A maker that echoes, a taker, and a middleman between them."""
    async with (
        running({ECHO: echo}, limits=limits) as maker,
        running(secret=DIALLER, limits=limits) as taker,
        middleman(await address_of(maker)) as between,
    ):
        yield maker, taker, between


async def exchange(connection: Connection, data: bytes) -> bytes:
    """Send it to be echoed, and read it back to the end."""
    got = bytearray()
    async with await connection.open(ECHO) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        while piece := await stream.receive_some():
            got += piece
    return bytes(got)


# -- a network that drops, delays, truncates, half-closes


async def test_a_delay_changes_nothing_but_the_time() -> None:
    async with apart() as (_, taker, between):
        between.delay = 0.001
        data = bytes(range(256)) * 400
        assert await exchange(await taker.dial(between.address), data) == data


async def test_when_everything_is_dropped_both_sides_notice() -> None:
    async with apart(HASTY) as (maker, taker, between), maker.connection_events() as events:
        connection = await taker.dial(between.address)
        stream = await connection.open(ECHO)
        await stream.send_all(b"before")
        assert await stream.receive_some() == b"before"
        up = await events.receive()
        between.frozen = True
        with pytest.raises(ConnectionLost, match=r"silent for 0\.6 s"):
            await stream.receive_some()
        await up.connection.wait_closed()
        assert up.connection.reason == "silent for 0.6 s"
        assert maker.offences == taker.offences == 0


async def test_a_handshake_into_the_void_ends_in_time() -> None:
    async with apart(Limits(handshake_within=0.05)) as (_, taker, between):
        between.frozen = True
        with pytest.raises(DialFailed, match=r"no answer within 0\.05 s"):
            await taker.dial(between.address)


@pytest.mark.parametrize("after", [*range(0, 400, 13), 1000, 5000, 20_000, 50_000])
@pytest.mark.parametrize("how", ["truncate", "half-close"])
async def test_a_carrier_that_ends_anywhere_is_a_lost_connection_and_no_offence(after: int, how: str) -> None:
    """So many bytes of each direction arrive."""
    data = bytes(range(256)) * 400
    async with apart(CURT) as (maker, taker, between):
        if how == "truncate":
            between.truncate_after = after
        else:
            between.half_close_after = after
        try:
            connection = await taker.dial(between.address)
        except (HandshakeFailed, DialFailed):
            assert after < 400
        else:
            lost = False
            try:
                await exchange(connection, data)
            except* (ConnectionLost, StreamReset):  # if only one direction ended, a reset may come on the other
                lost = True
            assert lost
            await connection.wait_closed()
        between.truncate_after = between.half_close_after = None
        assert await exchange(await taker.dial(between.address), data) == data
        assert maker.offences == taker.offences == maker.crashes == taker.crashes == 0


# -- round trips


@asynccontextmanager
async def a_second_apart(maker: Endpoint) -> AsyncIterator[trio.abc.Stream]:
    """A carrier to it on which each byte is under way for one second."""
    ours, near = trio.testing.memory_stream_pair()
    far, theirs = trio.testing.memory_stream_pair()

    async def carry(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        under_way, arriving = trio.open_memory_channel[tuple[float, bytes]](1000)
        nursery.start_soon(deliver, arriving, sink)
        while True:
            data = bytes(await source.receive_some())
            under_way.send_nowait((trio.current_time() + 1, data))

    async def deliver(arriving: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.abc.Stream) -> None:
        async for due, data in arriving:
            await trio.sleep_until(due)
            await sink.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, near, far)
        nursery.start_soon(carry, far, near)
        nursery.start_soon(maker.accept, theirs)
        yield ours
        nursery.cancel_scope.cancel()


async def test_the_handshake_is_one_round_trip_and_so_are_opening_and_first_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running({ECHO: echo}) as maker, running(secret=DIALLER) as taker, a_second_apart(maker) as carrier:
        connection = await taker.connect(carrier, maker.identity.public)
        assert trio.current_time() == pytest.approx(2, abs=0.01)
        stream = await connection.open(ECHO)
        await stream.send_all(b"question")
        assert await stream.receive_some() == b"question"
        assert trio.current_time() == pytest.approx(4, abs=0.01)


# -- many at once


@pytest.mark.parametrize("sockets", [False, True])
async def test_sixty_cancelled_sends_leave_the_connection_sound(sockets: bool) -> None:
    """Each is cancelled in the midst of it, at another moment; what had arrived of it is what was sent."""
    data = bytes(range(251)) * 8000
    async with joined(sockets=sockets) as both:
        pairs = [await both.streams() for _ in range(60)]
        cut_short = 0

        async def send(stream: Substream, begun: trio.Event, turns: int) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                await begun.wait()
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await stream.aclose()

        async def read(stream: Substream, begun: trio.Event) -> None:
            nonlocal cut_short
            got = bytearray()
            try:
                while piece := await stream.receive_some(5000):
                    got += piece
                    begun.set()
                assert got == data
            except StreamReset:
                assert data.startswith(got)
                assert len(got) < len(data)
                cut_short += 1

        async with trio.open_nursery() as nursery:
            for number, (ours, theirs) in enumerate(pairs):
                begun = trio.Event()
                nursery.start_soon(send, ours, begun, number % 20)
                nursery.start_soon(read, theirs, begun)
        assert cut_short > 50
        ours, theirs = await both.streams()
        await ours.send_all(b"sound")
        assert await theirs.receive_some() == b"sound"
        assert both.maker.offences == both.taker.offences == 0


def held(both: Joined) -> int:
    """Bytes that one side keeps for readers."""
    return sum(sum(map(len, stream._chunks)) for stream in both.at_maker.substreams)


async def test_fifty_slow_readers_hold_at_most_their_windows_and_delay_nobody() -> None:
    limits = Limits(session=SessionLimits(stream_window=16 * 1024))
    async with joined({ECHO: echo}, limits=limits) as both, trio.open_nursery() as nursery:
        for _ in range(50):
            ours, _theirs = await both.streams()
            nursery.start_soon(ours.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked()
        assert held(both) == 50 * 16 * 1024
        for _ in range(10):
            assert await exchange(both.at_taker, bytes(100_000)) == bytes(100_000)
        assert held(both) == 50 * 16 * 1024
        assert not both.at_taker.congested
        nursery.cancel_scope.cancel()


async def test_streams_that_nobody_reads_do_not_use_up_the_connections_window() -> None:
    """100 × 256 KiB are more than the connection's 8 MiB, which are given back on receipt."""
    async with joined({ECHO: echo}) as both, trio.open_nursery() as nursery:
        for _ in range(50):
            ours, _theirs = await both.streams()
            nursery.start_soon(ours.send_all, bytes(2 * WINDOW))
        await trio.testing.wait_all_tasks_blocked()
        assert held(both) == 50 * WINDOW > 8 * 1024 * 1024
        assert await exchange(both.at_taker, bytes(WINDOW)) == bytes(WINDOW)
        nursery.cancel_scope.cancel()


# -- stopped processes


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("dialled", [False, True])
async def test_a_stopped_process_is_noticed(dialled: bool, busy: bool) -> None:
    """Whoever dialled; `busy`: while more is written to it than sockets and windows hold. At a tenth of the times."""
    blocked: list[str] = []

    async def write(stream: Substream) -> None:
        await stream.receive_some()
        begun.set()
        await pour(stream)

    async def pour(stream: Substream) -> None:
        try:
            if busy:
                await stream.send_all(bytes(50_000_000))
            await stream.receive_some()
        except ConnectionLost as error:
            blocked.append(error.reason)
        finally:
            over.set()

    begun, over = trio.Event(), trio.Event()
    limits = Limits(liveness=Liveness(ping_after=1.5, dead_after=3, farewell=0.5))
    peer = [sys.executable, "-m", "tests.peer_process", DIALLER.hex()]
    async with running({ECHO: write}, limits=limits) as here, trio.open_nursery() as nursery:
        command = peer if dialled else [*peer, str(await address_of(here))]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        try:
            if dialled:
                assert process.stdout is not None
                address = PeerAddress.parse(bytes(await process.stdout.receive_some()).decode())
                stream = await here.open(ECHO, address)
                await stream.send_all(b"here")
                assert await stream.receive_some() == b"here"
                process.send_signal(signal.SIGSTOP)
                nursery.start_soon(pour, stream)
            else:
                await begun.wait()
                process.send_signal(signal.SIGSTOP)
            with trio.fail_after(30):
                await over.wait()
            assert blocked == ["silent for 3 s"]
            assert here.connections == ()
        finally:
            process.kill()
            await process.wait()
