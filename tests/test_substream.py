"""A substream is a trio stream: trio's own conformance suite, then what network.md says of ends and resets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from node.network.errors import Closed, ConnectionLost, StreamReset
from node.network.substream import CANCEL, NO_ERROR, Substream
from tests.endpoints import ECHO, Joined, echo, joined

WINDOW = 256 * 1024


@pytest.fixture(params=["memory", "sockets"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Joined]:
    async with joined({ECHO: echo}, sockets=request.param == "sockets") as both:
        yield both


async def clog(stream: Substream) -> None:
    """Send until the peer's window is full."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(2 * WINDOW))
        while stream.connection.session.streams.room(stream.stream_id):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("opener_first", [True, False])
async def test_trios_conformance_suite(pair: Joined, opener_first: bool) -> None:
    async def make() -> tuple[Substream, Substream]:
        ours, theirs = await pair.streams()
        return (ours, theirs) if opener_first else (theirs, ours)

    async def make_clogged() -> tuple[Substream, Substream]:
        first, second = await make()
        await clog(first)
        await clog(second)
        return first, second

    await trio.testing.check_half_closeable_stream(make, make_clogged)
    await trio.testing.check_two_way_stream(make, make_clogged)
    assert pair.maker.crashes == pair.maker.offences == pair.taker.offences == 0


async def read_all(stream: Substream) -> bytes:
    got = bytearray()
    while data := await stream.receive_some():
        got += data
    return bytes(got)


async def test_a_megabyte_both_ways_at_once(pair: Joined) -> None:
    stream = await pair.at_taker.open(ECHO)
    data = bytes(range(256)) * 4096

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await read_all(stream) == data
    await stream.aclose()


async def test_the_reader_of_a_closed_stream_gets_all_data_and_then_the_end(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await theirs.send_all(b"all of " + bytes(100_000))
    await theirs.aclose()
    assert len(await read_all(ours)) == 100_007
    # Nobody reads there any more: a peer that still sends is told.
    with pytest.raises(StreamReset) as told:
        while True:
            await ours.send_all(b"more")
    assert told.value.reset_code == NO_ERROR
    await ours.aclose()


async def test_data_before_a_reset_is_read_before_the_error(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await theirs.send_all(b"last words")
    theirs.reset(int(ErrorCodes.INTERNAL_ERROR))
    assert await ours.receive_some() == b"last words"
    for _ in range(2):
        with pytest.raises(StreamReset, match="INTERNAL_ERROR") as told:
            await ours.receive_some()
        assert told.value.reset_code == 2
    with pytest.raises(StreamReset):
        await ours.send_all(b"x")


async def test_a_cancelled_close_resets(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await trio.aclose_forcefully(theirs)
    with pytest.raises(StreamReset) as told:
        await ours.receive_some()
    assert told.value.reset_code == CANCEL
    with pytest.raises(Closed):
        await theirs.receive_some()


async def test_half_a_message_never_looks_like_a_whole_one(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await clog(ours)
    await ours.aclose()
    with pytest.raises(StreamReset) as told:
        await read_all(theirs)
    assert told.value.reset_code == CANCEL


async def test_a_send_that_was_cancelled_before_it_began_leaves_the_stream_whole(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ours.send_all(b"never")
    await ours.send_all(b"whole")
    await ours.aclose()
    assert await read_all(theirs) == b"whole"


async def test_a_cancelled_send_tears_no_record(pair: Joined) -> None:
    """Many senders cancelled at any moment, on a connection that is congested: the next dialogue is fine."""
    streams = [await pair.at_taker.open(ECHO) for _ in range(20)]
    with trio.move_on_after(0.02):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.send_all, bytes(10_000_000))
    for stream in streams:
        await stream.aclose()
    stream = await pair.at_taker.open(ECHO)
    await stream.send_all(b"fine")
    assert await stream.receive_some() == b"fine"
    assert pair.maker.offences == 0


async def test_a_slow_reader_delays_no_other_substream(pair: Joined) -> None:
    slow, _unread = await pair.streams()
    await clog(slow)
    stream = await pair.at_taker.open(ECHO)
    for _ in range(20):
        await stream.send_all(bytes(WINDOW // 2))
        got = 0
        while got < WINDOW // 2:
            got += len(await stream.receive_some())


async def test_senders_that_wait_for_the_connection_do_not_keep_each_other_waiting() -> None:
    """They are woken one by one: each of these wakes the next, whether it could send or not."""
    async with joined({ECHO: echo}) as both, trio.open_nursery() as nursery:
        (full, _), (hog, _), (idle, _), *others = [await both.streams() for _ in range(6)]
        await clog(full)
        await trio.testing.wait_all_tasks_blocked()
        carrier, opened, sent = both.at_taker._carrier, trio.Event(), list[Substream]()
        assert isinstance(carrier, trio.StapledStream)
        carrier.send_stream.send_all_hook = opened.wait

        async def send(stream: Substream) -> None:
            await stream.send_all(b"x")
            sent.append(stream)

        async def ask() -> None:
            await idle.wait_send_all_might_not_block()
            await trio.sleep_forever()

        await hog.send_all(bytes(WINDOW))
        assert both.at_taker.congested
        waiting: list[Callable[[], Awaitable[None]]] = [partial(full.send_all, b"x"), ask]
        waiting += [partial(send, stream) for stream, _ in others]
        for doing in waiting:
            nursery.start_soon(doing)
            await trio.testing.wait_all_tasks_blocked()
        assert sent == []
        opened.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [stream for stream, _ in others]
        nursery.cancel_scope.cancel()


async def test_the_end_of_the_connection_is_the_end_of_its_substreams(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await theirs.send_all(b"before the end")
    await pair.at_maker.aclose()
    assert await ours.receive_some() == b"before the end"
    with pytest.raises(ConnectionLost, match="the peer closed it"):
        await ours.receive_some()
    with pytest.raises(ConnectionLost):
        await ours.send_all(b"x")
    with pytest.raises(ConnectionLost, match="closed on this side"):
        await theirs.receive_some()
    await ours.aclose()
    await theirs.aclose()


async def test_an_ended_stream_stays_ended_when_its_connection_is_lost(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await theirs.send_all(b"complete")
    await theirs.send_eof()
    await trio.testing.wait_all_tasks_blocked(0.01)
    await pair.at_maker.aclose()
    assert await read_all(ours) == b"complete"


async def test_opening_reaches_the_peer_even_if_nothing_is_sent(pair: Joined) -> None:
    ours, theirs = await pair.streams()  # returns only when the handler has begun
    assert theirs.path == ours.path
    assert theirs.peer == pair.taker.identity.public
    assert ours.peer == pair.maker.identity.public
    assert theirs.connection is pair.at_maker


async def test_large_and_small_pieces_arrive_in_order(pair: Joined) -> None:
    ours, theirs = await pair.streams()
    await ours.send_all(b"abc")
    await ours.send_all(b"def")
    await ours.send_all(bytearray(b"ghi"))
    await ours.send_all(memoryview(b"jkl"))
    await ours.send_eof()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert await theirs.receive_some(2) == b"ab"
    assert await theirs.receive_some(5) == b"cdefg"
    assert await read_all(theirs) == b"hijkl"
