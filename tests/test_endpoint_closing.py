"""Endpoints that end: in order, within a time, at once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node.network.address import Identity
from node.network.endpoint import Endpoint
from node.network.errors import ConnectionLost, DialFailed
from protocols.errors import LocalError
from tests.endpoints import ECHO, address_of, echo, joined, running
from tests.sessions import DIALLER, LISTENER


async def test_dialogues_end_before_the_endpoint_does() -> None:
    maker = Endpoint(Identity(LISTENER), handlers={ECHO: echo})
    async with running(secret=DIALLER) as taker:
        async with maker.running(), trio.open_nursery() as nursery:
            address = await address_of(maker)
            stream = await taker.open(ECHO, address)
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
            nursery.start_soon(maker.aclose, 60)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(ConnectionLost, match="takes no more streams"):
                await stream.connection.open(ECHO)
            with pytest.raises(DialFailed, match="connection refused"):  # it listens no more, and its streams still run
                await taker.dial(address)
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
            assert maker.connections
            await stream.aclose()
        with pytest.raises(LocalError, match="not running"):
            await maker.aclose()
        await stream.connection.wait_closed()
        assert stream.connection.reason == "the peer closed it"


async def test_a_dialogue_that_does_not_end_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with joined({ECHO: echo}) as both:
        stream = await both.at_taker.open(ECHO)
        await both.maker.aclose(within=20)
        assert trio.current_time() == pytest.approx(20, abs=0.1)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert both.maker.connections == ()


async def test_a_cancelled_close_is_one_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    async with joined({ECHO: echo}) as both:
        stream = await both.at_taker.open(ECHO)
        with trio.CancelScope() as impatient:
            impatient.cancel()
            await both.maker.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert trio.current_time() == 0


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Endpoint(Identity(LISTENER)).running() as endpoint:
            await endpoint.listen("127.0.0.1", 0)
            _ = 1 / 0
    with pytest.raises(LocalError, match="not running"):
        await endpoint.listen("127.0.0.1", 0)


async def test_it_may_run_again() -> None:
    endpoint = Endpoint(Identity(LISTENER), handlers={ECHO: echo})
    for _ in range(2):
        async with (
            endpoint.running(),
            running(secret=DIALLER) as taker,
            await taker.open(ECHO, await address_of(endpoint)) as stream,
        ):
            await stream.send_all(b"question")
            assert await stream.receive_some() == b"question"
    assert endpoint.counts.connections == 2
