"""The price feed: what is taken for a quote, what ends a connection, and what outlives it."""

import json
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from node.causes import leaves
from node.clock import Clock
from node.health import UNREPORTED, Report, State
from node.prices import (
    CLOCK_SLACK,
    CONNECT_WITHIN,
    INSTRUMENTS,
    MAX_MESSAGE,
    SILENCE,
    STALE_AFTER,
    BadQuote,
    Feed,
    Feeds,
    Quote,
    last_rows,
    read_quote,
)
from node.regtest.exchange import Exchange, Mode
from node.supervision import Supervisor
from node.web.views import quote_view
from protocols.contract.numbers import parse_price
from protocols.errors import WorldError

BASE = 1_790_000_000.0
URL = "ws://exchange.example/realtime"
SERVED = ["BTCUSD"]
WELCOME = '{"info":"Welcome to the BitMEX Realtime API.","version":"1","limit":{"remaining":39}}'
CONFIRMED = '{"success":true,"subscribe":"quote:XBTUSD","request":{"op":"subscribe","args":["quote:XBTUSD"]}}'


def stamp(seconds: float = 0.0) -> str:
    moment = datetime.fromtimestamp(BASE, UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def row(bid: str = "54000", ask: str = "54000.5", at: float = 0.0, **changes: str) -> str:
    fields = {
        "timestamp": json.dumps(stamp(at)),
        "symbol": '"XBTUSD"',
        "bidSize": "100",
        "bidPrice": bid,
        "askPrice": ask,
        "askSize": "200",
        **changes,
    }
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def rows(*data: str, action: str = "insert") -> str:
    return f'{{"table":"quote","action":"{action}","data":[{",".join(data)}]}}'


def wall() -> float:
    return BASE + trio.current_time()


class Told:
    """What a feed reported, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.fresh_at: list[float] = []

    beat_every = math.inf

    def beat(self) -> None: ...

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        self.said.append(reason)

    def recovered(self) -> None:
        self.said.append("")

    def fresh(self) -> None:
        self.fresh_at.append(trio.current_time())


class Lines:
    """A feed's connections, in memory, and the exchange's ends of them."""

    def __init__(self, symbols: Sequence[str] = SERVED, **options: Any) -> None:
        self.topics = [f"quote:{INSTRUMENTS[symbol]}" for symbol in symbols]
        self._dialled, self._to_answer = trio.open_memory_channel[trio.StapledStream[Any, Any]](10)
        self.streams: list[trio.abc.Stream] = []
        self.told = Told()
        self.feeds = Feeds(URL, Clock(wall=wall), symbols, dial=self._dial, **options)
        self.feed = self.feeds["BTCUSD"]

    async def _dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.streams.append(ours)
        self._dialled.send_nowait(theirs)
        return ours

    async def next_stream(self) -> trio.StapledStream[Any, Any]:
        return await self._to_answer.receive()

    async def lost(self) -> str:
        """Run the feed on one connection to its end, and say how it ended."""
        return (await end_of(self.feeds, self.told)).removeprefix(f"the exchange at {URL} ")

    @asynccontextmanager
    async def up(self, *first: str) -> AsyncIterator[WebSocketConnection]:
        """A subscribed connection that brought these messages."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lost)
            yield await self.answer(nursery, *first)
            nursery.cancel_scope.cancel()

    async def answer(self, nursery: trio.Nursery, *first: str) -> WebSocketConnection:
        request = await wrap_server_stream(nursery, await self.next_stream())
        connection = await request.accept()
        confirmed = [CONFIRMED.replace("quote:XBTUSD", topic) for topic in self.topics]
        for message in (WELCOME, *confirmed, *first):
            await connection.send_message(message)
        asked = json.loads(await connection.get_message())
        assert (asked.pop("op"), set(asked.pop("args")), asked) == ("subscribe", set(self.topics), {})
        await trio.testing.wait_all_tasks_blocked()
        return connection


async def end_of(feeds: Feeds, report: Report = UNREPORTED) -> str:
    """Run the feed on one connection to its end, and say how it ended."""
    with pytest.raises((WorldError, ExceptionGroup)) as ended:
        await feeds.run(report=report)
    (cause,) = leaves(ended.value)
    assert isinstance(cause, WorldError)
    return cause.sentence


def prices(feed: Feed) -> tuple[str, str] | None:
    return (feed.quote.bid, feed.quote.ask) if feed.quote is not None else None


def read_rows(text: str, before: Quote | None, now: float) -> Quote:
    """What they quote bitcoin at."""
    rows = last_rows(json.loads(text, parse_int=Decimal, parse_float=Decimal), {"BTCUSD": "XBTUSD"})
    return read_quote(rows["BTCUSD"], "BTCUSD", before, now)


class TestQuotes:
    @pytest.mark.parametrize(
        ("sent", "taken"),
        [
            ("54000", "54000"),
            ("27778.0", "27778"),
            ("77465.50", "77465.5"),
            ("77543.12", "77543.12"),
            ("0.01", "0.01"),
            ("1048575.99", "1048575.99"),
            ("100", "100"),
        ],
    )
    def test_prices_are_the_digits_that_were_sent(self, sent: str, taken: str) -> None:
        quote = read_rows(f"[{row(sent, sent, at=3.167)}]", None, BASE + 4)
        assert quote == Quote("BTCUSD", taken, taken, BASE + 3.167, BASE + 4)

    @given(st.integers(1, 2**20 * 100 - 1), st.integers(0, 3))
    def test_every_price_with_two_places_is_taken_exactly(self, cents: int, zeros: int) -> None:
        text = f"{cents // 100}.{cents % 100:02}" + "0" * zeros
        quote = read_rows(f"[{row(text, text)}]", None, BASE)
        assert parse_price(quote.bid) == Fraction(cents, 100)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (row("54000.5", "54000"), "bidPrice is 54000.5, allowed is at most the askPrice, 54000"),
            (row("-1"), "bidPrice is '-1'"),
            (row("0"), "bidPrice is '0'"),
            (row(ask="1048576"), "askPrice is '1048576'"),
            (row(ask="54000.123"), "askPrice is '54000.123'"),
            (row(ask="1e5"), "askPrice is '1E+5'"),
            (row(ask="1e999999999"), "askPrice is '1E+999999999'"),
            (row(ask="9" * 5000), "askPrice is '9999"),
            (row(ask='"54000"'), "askPrice is '54000', allowed is a number"),
            (row(bid="null"), "bidPrice is None"),
            (row(bid="true"), "bidPrice is True"),
            (row(symbol='"ETHUSD"'), "symbol is 'ETHUSD', allowed is XBTUSD"),
            (row(timestamp='"yesterday"'), "timestamp is 'yesterday'"),
            (row(timestamp='"2026-09-02T07:48:59.167"'), "timestamp is '2026-09-02T07:48:59.167'"),
            (row(timestamp="1790000000"), "timestamp is Decimal('1790000000')"),
            (row(at=CLOCK_SLACK + 1), "61 s ahead of this node's clock"),
            (row(at=-10.001), "older than that of the quote before"),
            ("{}", "symbol is None"),
            ("7", "data is [Decimal('7')], allowed are rows"),
            ("[]", "data is [[]], allowed are rows"),
        ],
    )
    def test_what_is_no_quote_is_named(self, data: str, said: str) -> None:
        before = Quote("BTCUSD", "1", "2", BASE - 10, BASE - 10)
        with pytest.raises(BadQuote) as refused:
            read_rows(f"[{data}]", before, BASE)
        assert said in str(refused.value)
        assert len(str(refused.value)) < 300

    def test_rows_that_are_no_list(self) -> None:
        others: list[object] = [None, {"0": {}}, "rows"]
        for data in others:
            with pytest.raises(BadQuote, match="allowed are rows"):
                last_rows(data, INSTRUMENTS)

    def test_a_quote_is_no_younger_because_it_came_late_or_from_a_clock_ahead(self) -> None:
        late = Quote("BTCUSD", "1", "2", at=BASE, received_at=BASE + 50)
        ahead = Quote("BTCUSD", "1", "2", at=BASE + 50, received_at=BASE)
        assert late.since == ahead.since == BASE


class TestConnection:
    async def test_the_last_of_several_rows_counts(self, autojump_clock: trio.testing.MockClock) -> None:
        lines = Lines()
        async with lines.up(rows(row("50000", "50000.5"), action="partial")) as exchange:
            assert prices(lines.feed) == ("50000", "50000.5")
            assert lines.feeds["ETHUSD"].problem() == "no price feed is configured"  # it is not asked for
            await exchange.send_message(rows(row("1", "2"), row("3", "4"), row("50001.5", "50002", at=0.5)))
            quote = await lines.feed.after(lines.feed.quote)
            assert (quote.bid, quote.ask, quote.at) == ("50001.5", "50002", BASE + 0.5)
            assert lines.feed.problem() is None
            # neither an empty table nor other tables and notices are quotes
            for message in (rows(), '{"table":"trade","action":"insert","data":[{"price":1}]}', '{"info":"soon"}'):
                await exchange.send_message(message)
            await trio.testing.wait_all_tasks_blocked()
            assert lines.feed.quote is quote
        assert lines.told.said == ["BTCUSD: no quote has come yet", ""]
        assert len(lines.told.fresh_at) == 2

    async def test_quotes_of_both_symbols_come_by_one_connection(
        self, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        told, market = Told(), {"BTCUSD": "54000", "ETHUSD": "2500.75"}
        exchange, dialled = Exchange(lambda symbol: market[symbol], wall), 0

        async def dial() -> trio.abc.Stream:
            nonlocal dialled
            dialled += 1
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(exchange.talk, theirs)
            return ours

        feeds = Feeds(URL, Clock(wall=wall), dial=dial)
        assert list(feeds) == ["BTCUSD", "ETHUSD"]
        await nursery.start(partial(feeds.run, report=told))
        bitcoin, ether = [await feed.after(None) for feed in feeds.values()]
        assert (bitcoin.symbol, bitcoin.bid, bitcoin.ask) == ("BTCUSD", "54000", "54000.5")
        assert (ether.symbol, ether.bid, ether.ask) == ("ETHUSD", "2500.75", "2500.8")
        market["ETHUSD"] = "2499.99"
        while prices(feeds["ETHUSD"]) != ("2499.95", "2500"):
            await feeds["ETHUSD"].after(feeds["ETHUSD"].quote)
        assert prices(feeds["BTCUSD"]) == ("54000", "54000.5")
        assert (dialled, told.said[-1]) == (1, "")
        nursery.cancel_scope.cancel()

    async def test_a_symbol_without_good_quotes_is_named_and_leaves_the_other_as_it_is(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        lines = Lines([*SERVED, "ETHUSD"])
        async with lines.up(rows(row()), rows(row("2500", "2501", symbol='"ETHUSD"'))) as exchange:
            for seconds in range(4, 121, 4):
                await trio.sleep(4)
                await exchange.send_message(rows(row(at=seconds)))
            await exchange.send_message(rows(row("2502", "2501", at=120, symbol='"ETHUSD"'), row(at=121)))
            await trio.testing.wait_all_tasks_blocked()
            assert [feed.problem() is None for feed in lines.feeds.values()] == [True, True]
            assert lines.told.said[-1].startswith("ETHUSD: the exchange's quote is refused: bidPrice is 2502")
            await trio.sleep(1)
            await exchange.send_message(rows(row(at=122)))
            await trio.testing.wait_all_tasks_blocked()
            assert [feed.problem() is None for feed in lines.feeds.values()] == [True, False]
            assert lines.feed.quote is not None
            assert lines.feed.quote.at == BASE + 122

    async def test_a_line_that_brings_one_symbol_only_is_given_up(
        self, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines([*SERVED, "ETHUSD"])

        async def bitcoin() -> None:
            exchange = await lines.answer(nursery, rows(row()))
            while True:
                await trio.sleep(1)
                await exchange.send_message(rows(row(at=trio.current_time())))

        nursery.start_soon(_until_closed, bitcoin)
        assert await lines.lost() == "did not send what it should in time"
        assert trio.current_time() == pytest.approx(2 * STALE_AFTER, abs=1)
        nursery.cancel_scope.cancel()

    async def test_a_refused_quote_is_told_once_and_the_last_good_one_stays(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        lines = Lines()
        async with lines.up(rows(row())) as exchange:
            for bid in ("-5", "0"):
                await exchange.send_message(rows(row(bid)))
            await trio.testing.wait_all_tasks_blocked()
            assert prices(lines.feed) == ("54000", "54000.5")
            assert lines.feed.problem() is None
            await exchange.send_message(rows(row("54001", "54002")))
            await trio.testing.wait_all_tasks_blocked()
        assert [said.partition(": bid")[0] for said in lines.told.said[2:]] == [
            "BTCUSD: the exchange's quote is refused",
            "",
        ]

    async def test_silence_is_asked_about_and_an_answer_keeps_the_line(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        lines = Lines()
        async with lines.up(rows(row())) as exchange:
            for asked_at in (SILENCE, 2 * SILENCE + 3, 3 * SILENCE + 6):
                assert await exchange.get_message() == "ping"
                assert trio.current_time() == asked_at
                await trio.sleep(3)
                await exchange.send_message("pong")  # and from here on silence counts anew

    async def test_a_line_that_stays_silent_is_given_up(
        self, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines()
        nursery.start_soon(lines.answer, nursery, rows(row()))
        assert await lines.lost() == "is silent"
        assert trio.current_time() == 2 * SILENCE

    async def test_a_quote_grows_stale_and_a_line_without_good_ones_is_given_up(
        self, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines()

        async def pings() -> None:
            exchange = await lines.answer(nursery, rows(row()))
            while True:
                await exchange.get_message()
                await exchange.send_message("pong")
                assert (lines.feed.problem() is None) == (trio.current_time() <= STALE_AFTER)

        nursery.start_soon(_until_closed, pings)
        assert await lines.lost() == "did not send what it should in time"
        assert trio.current_time() == 2 * STALE_AFTER
        stale = "the last quote is older than 120 s"
        assert lines.told.said == ["BTCUSD: no quote has come yet", "", f"BTCUSD: {stale}"]
        assert lines.feed.problem() == stale
        assert prices(lines.feed) == ("54000", "54000.5")

    async def test_quotes_that_all_come_old_are_told_of_once(self, autojump_clock: trio.testing.MockClock) -> None:
        """As they do where this machine's clock is years ahead."""
        lines = Lines()
        rates = [row(str(54_000 + n), str(54_001 + n), at=n - 1_000.0) for n in range(5)]
        async with lines.up(*(rows(each, action="partial") for each in rates)):
            assert prices(lines.feed) == ("54004", "54005")
        assert lines.told.said[-1] == "BTCUSD: the last quote is older than 120 s"
        assert len(set(lines.told.said)) == len(lines.told.said) == 2

    async def test_the_last_good_quote_outlives_its_connection(self, autojump_clock: trio.testing.MockClock) -> None:
        lines = Lines()
        async with lines.up(rows(row(at=0.0))):
            pass
        await trio.sleep(60)
        view = quote_view(lines.feed, wall())
        assert (view["bid"], view["age"], view["stale"], view["reason"]) == ("54000", 60.0, False, None)
        # an exchange that comes back with what it had before makes nothing fresh
        async with lines.up(rows(row("1", "2", at=-1), action="partial")):
            assert prices(lines.feed) == ("54000", "54000.5")
        assert "older than that of the quote before" in lines.told.said[-1]
        await trio.sleep(61)
        view = quote_view(lines.feed, wall())
        assert (view["bid"], view["age"], view["stale"], view["stale_at"]) == ("54000", 121.0, True, BASE + STALE_AFTER)
        async with lines.up(rows(row("54100", "54101", at=121), action="partial")):
            assert lines.feed.problem() is None

    @pytest.mark.parametrize(
        ("messages", "said"),
        [
            (["<html>"], "sent what is no JSON: '<html>'"),
            (["[" * 100_000], "sent what is no JSON: '[[["),
            (["[1]"], "sent no object: '[1]'"),
            (['{"a":NaN}'], "sent what is no JSON"),
            (
                [WELCOME, '{"status":400,"error":"Unknown table: quote","request":{}}'],
                "refused the subscription: 'Unkn",
            ),
            ([WELCOME, CONFIRMED, "x" * (MAX_MESSAGE + 1)], "ended the connection: code 1009"),
        ],
    )
    async def test_what_no_exchange_says_ends_the_connection(
        self, messages: list[str], said: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines()

        async def exchange() -> None:
            connection = await (await wrap_server_stream(nursery, await lines.next_stream())).accept()
            for message in messages:
                await connection.send_message(message)

        nursery.start_soon(_until_closed, exchange)
        assert said in await lines.lost()
        with pytest.raises(trio.ClosedResourceError):
            await lines.streams[0].send_all(b"x")

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"", "did not send what it should in time"),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "refused the connection: HTTP status 403"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak WebSocket"),
            (b"\0" * 100_000, "does not speak WebSocket"),
            (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "does not speak WebSocket"),
            (None, "cannot be reached: the line broke: MemoryReceiveStream was closed"),
        ],
    )
    async def test_what_does_not_speak_websocket(
        self, answer: bytes | None, said: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines()

        async def exchange() -> None:
            stream = await lines.next_stream()
            if answer is None:
                await stream.aclose()
            else:
                await stream.send_all(answer)

        nursery.start_soon(exchange)
        assert said in await lines.lost()
        assert trio.current_time() == (0 if answer != b"" else CONNECT_WITHIN)
        with pytest.raises(trio.ClosedResourceError):
            await lines.streams[0].send_all(b"x")

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("politely", "code 1001, 'going away for maintenance'"),
            ("cut", "code 1006"),
            ("nonsense", "code 1002, 'Invalid opcode 0xf'"),
        ],
    )
    async def test_an_ended_connection(
        self, how: str, said: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        lines = Lines()

        async def exchange() -> None:
            connection = await lines.answer(nursery, rows(row()))
            match how:
                case "politely":
                    await connection.aclose(1001, "going away for maintenance")
                case "cut":
                    await connection._stream.aclose()
                case "nonsense":
                    await connection._stream.send_all(b"\xff" * 100)

        nursery.start_soon(exchange)
        assert await lines.lost() == f"ended the connection: {said}"
        assert trio.current_time() < 1
        with pytest.raises(trio.ClosedResourceError):
            await lines.streams[0].send_all(b"x")

    async def test_an_address_where_nobody_listens(self) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await listeners[0].aclose()
        url = f"ws://127.0.0.1:{port}/realtime"
        assert f"the exchange at {url} cannot be reached: " in await end_of(Feeds(url, Clock()))

    async def test_tls_is_checked(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate(tmp_path, "localhost"))
        trusting = ssl.create_default_context(cafile=tmp_path / "localhost.pem")
        listeners = await trio.open_ssl_over_tcp_listeners(0, server, host="127.0.0.1", https_compatible=True)
        (listener,) = listeners
        assert isinstance(listener.transport_listener, trio.SocketListener)
        port = listener.transport_listener.socket.getsockname()[1]
        exchange = Exchange(lambda _: "54000.2", Clock().now)

        async def talk(stream: Any) -> None:
            await exchange.talk(stream)

        nursery.start_soon(trio.serve_listeners, talk, listeners)
        feeds = Feeds(f"wss://localhost:{port}/realtime", Clock(), tls=trusting)
        feed = feeds["BTCUSD"]
        nursery.start_soon(feeds.run)
        with trio.fail_after(10):
            quote = await feed.after(None)
        assert (quote.bid, quote.ask) == ("54000", "54000.5")
        for url, tls in ((f"wss://localhost:{port}/realtime", None), (f"wss://127.0.0.1:{port}/realtime", trusting)):
            ended = await end_of(Feeds(url, Clock(), tls=tls))
            assert "cannot be reached: the line broke: [SSL: CERTIFICATE_VERIFY_FAILED]" in ended
        nursery.cancel_scope.cancel()


async def test_without_an_exchange_there_is_a_reason(autojump_clock: trio.testing.MockClock) -> None:
    view = quote_view(Feeds(None, Clock(wall=wall))["ETHUSD"], wall())
    assert view["stale"] is True
    assert view["reason"] == "no price feed is configured"
    assert {view[name] for name in ("bid", "ask", "at", "age", "stale_at")} == {None}


async def test_a_supervised_feed_comes_back_by_itself(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    exchange = Exchange(lambda _: "60000", wall)

    async def dial() -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(exchange.talk, theirs)
        return ours

    feeds = Feeds(URL, Clock(wall=wall), SERVED, dial=dial)
    feed = feeds["BTCUSD"]
    supervisor = Supervisor(clock=Clock(wall=wall), raise_bugs=True)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await feeds.run(report=service, task_status=task_status)

    service = supervisor.service("prices", run)
    nursery.start_soon(supervisor.run)

    async def expect(state: State, reason: str, *, within: float) -> None:
        with trio.fail_after(within):
            changes = supervisor.changes()
            assert isinstance(changes, AsyncGenerator)
            async with aclosing(changes):
                async for (health,) in changes:
                    if health.state is state and reason in health.reason:
                        break

    await expect(State.HEALTHY, "", within=2)
    exchange.mode = Mode.DROP
    await expect(State.RESTARTING, "ended the connection", within=1)
    last = feed.quote
    await trio.sleep(30)
    assert service.health.bugs == 0
    exchange.mode = Mode.NORMAL
    await feed.after(last)
    assert trio.current_time() < 32 + 60
    exchange.mode = Mode.CROSSED
    await expect(State.DEGRADED, "bidPrice is 60000.5", within=1)
    exchange.mode = Mode.NORMAL
    await expect(State.HEALTHY, "", within=1)
    exchange.mode = Mode.STALL
    await expect(State.DEGRADED, "older than 120 s", within=STALE_AFTER + 2 * SILENCE)
    exchange.mode = Mode.SILENT
    await expect(State.RESTARTING, "is silent", within=3 * SILENCE)
    exchange.mode = Mode.ABSURD
    await expect(State.DEGRADED, "is refused: bidPrice is '-60000'", within=20)
    exchange.mode = Mode.NORMAL
    await expect(State.HEALTHY, "", within=1)
    assert service.health.bugs == 0
    nursery.cancel_scope.cancel()


async def _until_closed(work: Callable[[], Any]) -> None:
    with suppress(ConnectionClosed):
        await work()


def certificate(folder: Path, name: str) -> Path:
    """A certificate for a host, signed by itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path
