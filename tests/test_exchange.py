"""The regtest exchange speaks as BitMEX does, and misbehaves on request."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from node.clock import Clock
from node.config import TakerConfig, WorldConfig, load
from node.prices import Feeds
from node.regtest.exchange import EVERY, PATH, Exchange, Mode
from node.regtest.world import RunningWorld, run_world
from protocols.errors import WorldError

BASE = 1_790_000_000.0


class Market:
    """A price and a wall clock that tests push."""

    def __init__(self, price: str = "54000.2") -> None:
        self.price = price
        self.exchange = Exchange(lambda _: self.price, lambda: BASE + trio.current_time())


@asynccontextmanager
async def client(exchange: Exchange, resource: str = PATH) -> AsyncIterator[WebSocketConnection]:
    ours, theirs = trio.testing.memory_stream_pair()
    line: Any = ours
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.talk, theirs)
        yield await wrap_client_stream(nursery, line, "exchange.example", resource)
        nursery.cancel_scope.cancel()


async def said(connection: WebSocketConnection) -> Any:
    return json.loads(await connection.get_message())


async def subscribed(connection: WebSocketConnection, topic: str = "quote:XBTUSD") -> Any:
    """The partial."""
    assert "info" in await said(connection)
    request = {"op": "subscribe", "args": [topic]}
    await connection.send_message(json.dumps(request))
    assert await said(connection) == {"success": True, "subscribe": topic, "request": request}
    return await said(connection)


async def test_welcome_subscription_partial_inserts(autojump_clock: trio.testing.MockClock) -> None:
    market = Market()
    async with client(market.exchange) as connection:
        partial = await subscribed(connection)
        first = {
            "timestamp": "2026-09-21T14:13:20.000Z",
            "symbol": "XBTUSD",
            "bidSize": 1000,
            "bidPrice": 54000,
            "askPrice": 54000.5,
            "askSize": 1000,
        }
        assert (partial["table"], partial["action"], partial["data"]) == ("quote", "partial", [first])
        assert set(partial["types"]) == set(first)
        market.price = "54010.5"
        insert = await said(connection)
        assert trio.current_time() == EVERY
        assert (insert["table"], insert["action"]) == ("quote", "insert")
        assert [(each["bidPrice"], each["askPrice"]) for each in insert["data"]] == [
            (54000, 54000.5),  # what was before: whoever takes the first row is wrong
            (54010.5, 54011),
            (54010.5, 54011),
        ]
        assert {each["timestamp"] for each in insert["data"]} == {"2026-09-21T14:13:20.500Z"}


async def test_whole_prices_are_integers_on_the_wire(autojump_clock: trio.testing.MockClock) -> None:
    market = Market("60000")
    async with client(market.exchange) as connection:
        await subscribed(connection)
        text = await connection.get_message()
        assert isinstance(text, str)
        assert '"bidPrice":60000,"askPrice":60000.5,' in text


async def test_index_ticks_are_trades_of_size_0(autojump_clock: trio.testing.MockClock) -> None:
    market = Market("54000.21")
    async with client(market.exchange, PATH + "?subscribe=trade:.BXBT,quote:XBTUSD") as connection:
        messages = [await said(connection) for _ in range(9)]
        assert [each["subscribe"] for each in messages if "success" in each] == ["trade:.BXBT", "quote:XBTUSD"]
        for table in ("trade", "quote"):
            actions = [each["action"] for each in messages if each.get("table") == table]
            assert actions[:2] == ["partial", "insert"]
        (tick,) = next(each for each in messages if each.get("table") == "trade")["data"]
        assert (tick["symbol"], tick["size"], tick["price"]) == (".BXBT", 0, 54000.21)


async def test_pings_and_bad_requests_are_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with client(Market().exchange) as connection:
        await said(connection)
        await connection.send_message("ping")
        assert await connection.get_message() == "pong"
        for request, error in (
            ('{"op":"subscribe","args":["quote:NOSUCH"]}', "Unknown or expired symbol, or unknown table."),
            ('{"op":"dance"}', "Unrecognized request."),
            ("{", "Unrecognized request."),
            ("[" * 4000, "Unrecognized request."),
        ):
            await connection.send_message(request)
            answer = await said(connection)
            assert (answer["status"], answer["error"]) == (400, error)
        await connection.send_message('{"op":"subscribe","args":"quote:XBTUSD"}')
        assert (await said(connection))["success"] is True
        assert (await said(connection))["action"] == "partial"
        await connection.send_message('{"op":"subscribe","args":"quote:XBTUSD"}')
        assert "already subscribed" in (await said(connection))["error"]
        await connection.send_message('{"op":"unsubscribe","args":["quote:XBTUSD"]}')
        assert (await said(connection))["unsubscribe"] == "quote:XBTUSD"
        with trio.move_on_after(10 * EVERY) as quiet:
            await connection.get_message()
        assert quiet.cancelled_caught


async def test_a_client_that_breaks_the_rules_ends_its_own_line(autojump_clock: trio.testing.MockClock) -> None:
    exchange = Market().exchange
    async with client(exchange) as honest:
        await subscribed(honest)
        async with client(exchange) as other:
            assert exchange.clients == 2
            await other.send_message("x" * 5000)
            with pytest.raises(ConnectionClosed):
                while True:
                    await other.get_message()
        for nonsense in (b"", b"\0" * 1000, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            ours, theirs = trio.testing.memory_stream_pair()
            await ours.send_all(nonsense)
            await ours.send_eof()
            with trio.fail_after(11):
                await exchange.talk(theirs)
        with pytest.raises(ExceptionGroup) as refused:
            async with client(exchange, "/elsewhere"):
                pass
        assert refused.group_contains(ConnectionRejected)
        await trio.testing.wait_all_tasks_blocked()
        assert exchange.clients == 1
        assert (await said(honest))["action"] == "insert"


async def test_modes(autojump_clock: trio.testing.MockClock) -> None:
    exchange = Market().exchange
    async with client(exchange) as connection:
        await subscribed(connection)

        async def last() -> tuple[float, float]:
            row = (await said(connection))["data"][-1]
            return row["bidPrice"], row["askPrice"]

        exchange.mode = Mode.CROSSED
        assert await last() == (54000.5, 54000)
        exchange.mode = Mode.ABSURD
        bid, ask = await last()
        assert bid < 0
        assert ask > 2**20
        exchange.mode = Mode.STALL
        await connection.send_message("ping")
        assert await connection.get_message() == "pong"
        with trio.move_on_after(60) as quiet:
            await connection.get_message()
        assert quiet.cancelled_caught
        exchange.mode = Mode.SILENT
        await connection.send_message("ping")
        with trio.move_on_after(60) as quiet:
            await connection.get_message()
        assert quiet.cancelled_caught
        exchange.mode = Mode.NORMAL
        assert await last() == (54000, 54000.5)
        exchange.mode = Mode.DROP
        with pytest.raises(ConnectionClosed):
            await connection.get_message()
        assert exchange.clients == 0
        ours, theirs = trio.testing.memory_stream_pair()
        await exchange.talk(theirs)
        assert await ours.receive_some() == b""


@asynccontextmanager
async def running(config: WorldConfig) -> AsyncIterator[RunningWorld]:
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[RunningWorld]) -> None:
            await run_world(config, task_status=task_status)

        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


async def test_a_world_names_its_exchange_and_controls_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with running(WorldConfig(data=tmp_path)) as world, httpx2.AsyncClient(base_url=world.control) as http:
        config = load(TakerConfig, paths=[world.config], environ={}, flags={"data": str(tmp_path / "taker")})
        assert config.prices is not None
        assert config.prices.url == world.exchange
        feeds = Feeds(config.prices.url, Clock())
        feed = feeds["BTCUSD"]

        async def run() -> None:
            with pytest.raises((WorldError, ExceptionGroup)):
                await feeds.run()

        nursery.start_soon(run)
        await http.post("/price", json={"price": "65432.1"})
        with trio.fail_after(10):
            quote = await feed.after(None)
            while quote.bid != "65432":
                quote = await feed.after(quote)
        assert (quote.symbol, quote.ask) == ("BTCUSD", "65432.5")
        assert (await http.post("/exchange", json={"mode": "stall"})).json() == {"mode": "stall", "clients": 1}
        assert (await http.get("/state")).json()["exchange"] == "stall"
        refused = await http.post("/exchange", json={"mode": "dance"})
        assert refused.status_code == 422
        assert "mode: Input should be 'normal', 'stall'" in refused.json()["detail"]
        assert (await http.post("/exchange", json={"mode": "drop"})).json()["mode"] == "drop"
