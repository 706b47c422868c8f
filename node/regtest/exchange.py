"""An exchange that speaks BitMEX's realtime protocol, with quotes from the world's market.

WebSocket on path ``/realtime``, JSON texts: a welcome, subscriptions confirmed, the present row as `partial`, then
`insert`s of several rows, whole prices as integers, ``pong`` for ``ping``. The tables are `quote` of XBTUSD and ETHUSD
and, as rows of `trade` with size 0, the ticks of the indices .BXBT and .BETH (without the rows' `side`, which a tick
does not have).

It can be told to misbehave, see `Mode`.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
import trio
import trio_websocket
import wsproto.utilities
from attrs import Factory, define
from trio_websocket import WebSocketConnection, wrap_server_stream

from protocols.contract.numbers import parse_price

PATH = "/realtime"
QUOTES = {"quote:XBTUSD": "BTCUSD", "quote:ETHUSD": "ETHUSD"}
"""Topics of best prices, with the symbol."""
TICKS = {"trade:.BXBT": "BTCUSD", "trade:.BETH": "ETHUSD"}
"""Topics of indices, with the symbol."""
EVERY = 0.5
"""Seconds between two inserts."""
TICK = {"BTCUSD": Fraction(1, 2), "ETHUSD": Fraction(1, 20)}
"""Between two prices of an instrument, USD; the bid is the market's price or the tick below, the ask one tick up."""
MAX_REQUEST = 4096
"""Bytes."""
MAX_CLIENTS = 100
WITHIN = 10.0
"""Seconds that a client may take to connect, or to let a message through."""

_TYPES = {"timestamp": "timestamp", "symbol": "symbol", "bidSize": "long", "askSize": "long", "trdMatchID": "guid"}

Row = dict[str, object]


class Mode(StrEnum):
    """How the exchange behaves."""

    NORMAL = "normal"
    STALL = "stall"
    """Lines stay open and pings are answered, but no quote comes."""
    SILENT = "silent"
    """Lines stay open, and nothing is answered."""
    ABSURD = "absurd"
    """Prices that no market has."""
    CROSSED = "crossed"
    """The bid is above the ask."""
    DROP = "drop"
    """Lines are cut, and new ones not taken."""


class Exchange:
    """Any number of clients; what they get depends on `mode` at that moment."""

    def __init__(self, price: Callable[[str], str], wall: Callable[[], float]) -> None:
        """`price` says a symbol's, a decimal string; `wall` tells the time of the rows."""
        self._price = price
        self._wall = wall
        self._mode = Mode.NORMAL
        self._lines: set[trio.CancelScope] = set()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.DROP:
            for line in self._lines:
                line.cancel()

    @property
    def clients(self) -> int:
        return len(self._lines)

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve on these until cancelled."""
        await trio.serve_listeners(self.talk, list(listeners))

    async def talk(self, stream: trio.abc.Stream) -> None:
        """One client, from its handshake to its end; whatever it does, it ends its own line only."""
        async with stream:
            if self.mode is Mode.DROP or len(self._lines) >= MAX_CLIENTS:
                return
            with trio.CancelScope() as line:
                self._lines.add(line)
                try:
                    async with trio.open_nursery() as nursery:
                        await self._talk(stream, nursery)
                        nursery.cancel_scope.cancel()
                except* _GONE:
                    pass
                finally:
                    self._lines.discard(line)

    async def _talk(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        with trio.fail_after(WITHIN):
            request = await wrap_server_stream(nursery, stream, max_message_size=MAX_REQUEST)
            asked = urlsplit(request.path)
            if asked.path != PATH:
                await request.reject(404)
                return
            client = _Client(self, await request.accept())
        nursery.start_soon(client.tell)
        await client.listen(parse_qs(asked.query).get("subscribe", []))

    def row(self, topic: str) -> Row:
        """The present row of a topic."""
        return self._quote(topic) if topic in QUOTES else self._tick(topic)

    def _quote(self, topic: str) -> Row:
        symbol = QUOTES[topic]
        tick = TICK[symbol]
        bid = max(parse_price(self._price(symbol)) // tick, 1) * tick
        ask = bid + tick
        if self.mode is Mode.CROSSED:
            bid, ask = ask, bid
        if self.mode is Mode.ABSURD:
            bid, ask = -bid, ask * 10**6
        return {
            "timestamp": self.now(),
            "symbol": _named(topic),
            "bidSize": 1000,
            "bidPrice": _number(bid),
            "askPrice": _number(ask),
            "askSize": 1000,
        }

    def _tick(self, topic: str) -> Row:
        """The index at this moment, as a trade that nobody made."""
        price = _number(parse_price(self._price(TICKS[topic])))
        nothing = dict.fromkeys(("trdMatchID", "grossValue", "homeNotional", "foreignNotional"))
        return {"timestamp": self.now(), "symbol": _named(topic), "size": 0, "price": price, **nothing}

    def now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_GONE = (
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    wsproto.utilities.ProtocolError,
    h11.ProtocolError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


@define(eq=False)
class _Client:
    """One line: its requests in order, and rows of what it subscribed to."""

    exchange: Exchange
    connection: WebSocketConnection
    topics: dict[str, Row | None] = Factory(dict)
    """What it subscribed to, with the last row that it was sent."""
    subscribed: trio.Event = Factory(trio.Event)

    async def listen(self, topics: Sequence[str]) -> None:
        """Welcome and then answer, until the client is gone; `topics` it asked for in its address."""
        await self._send(
            {
                "info": "Welcome to the BitMEX Realtime API.",
                "version": "regtest",
                "timestamp": self.exchange.now(),
                "docs": "https://www.bitmex.com/app/wsAPI",
                "heartbeatEnabled": False,
                "limit": {"remaining": 39},
            }
        )
        if topics:
            await self._answer({"op": "subscribe", "args": [topic for each in topics for topic in each.split(",")]})
        while True:
            message = await self.connection.get_message()
            if message == "ping":
                await self._send("pong")
                continue
            try:
                request = json.loads(message)
            except (ValueError, RecursionError):
                request = None
            await self._answer(request)

    async def tell(self) -> None:
        """Rows, as time passes: of a new topic at once, `partial`; then `insert`s."""
        while True:
            with trio.move_on_after(EVERY):
                await self.subscribed.wait()
            self.subscribed = trio.Event()
            if self.exchange.mode in (Mode.STALL, Mode.SILENT):
                continue
            for topic, before in list(self.topics.items()):
                row = self.topics[topic] = self.exchange.row(topic)
                await self._send(_partial(topic, row) if before is None else _insert(topic, before, row))

    async def _answer(self, request: Any) -> None:
        match request:
            case {"op": "subscribe", "args": str() | list() as args}:
                for topic in args if isinstance(args, list) else [args]:
                    if topic not in (*QUOTES, *TICKS):
                        await self._refuse("Unknown or expired symbol, or unknown table.", request)
                    elif topic in self.topics:
                        await self._refuse(f"You are already subscribed to this topic: {topic}", request)
                    else:
                        await self._send({"success": True, "subscribe": topic, "request": request})
                        self.topics[topic] = None
                        self.subscribed.set()
            case {"op": "unsubscribe", "args": str() | list() as args}:
                for topic in args if isinstance(args, list) else [args]:
                    self.topics.pop(str(topic), None)
                    await self._send({"success": True, "unsubscribe": topic, "request": request})
            case _:
                await self._refuse("Unrecognized request.", request)

    async def _refuse(self, sentence: str, request: object) -> None:
        await self._send({"status": 400, "error": sentence, "meta": {}, "request": request})

    async def _send(self, message: object) -> None:
        if self.exchange.mode is not Mode.SILENT:
            with trio.fail_after(WITHIN):
                text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"))
                await self.connection.send_message(text)


def _partial(topic: str, row: Row) -> object:
    return {
        "table": _table(topic),
        "action": "partial",
        "keys": [],
        "types": {name: _TYPES.get(name, "float") for name in row},
        "filter": {"symbol": _named(topic)},
        "data": [row],
    }


def _insert(topic: str, before: Row, row: Row) -> object:
    """A tick, or three quotes: the former once more, and the present one in two sizes; only the last one counts."""
    rows = [row] if topic in TICKS else [{**before, "timestamp": row["timestamp"]}, {**row, "bidSize": 900}, row]
    return {"table": _table(topic), "action": "insert", "data": rows}


def _table(topic: str) -> str:
    return topic.partition(":")[0]


def _named(topic: str) -> str:
    """The exchange's name of the instrument or index."""
    return topic.partition(":")[2]


def _number(value: Fraction) -> int | float:
    """As JSON writes it there: whole ones without a point. Two decimals of a float are exact when written."""
    return int(value) if value.denominator == 1 else float(value)
