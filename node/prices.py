"""The market's prices: bid and ask of each contract symbol from BitMEX's realtime feed, which is not trusted.

A `Feed` outlives connections. `Feeds.run` is the life of all of them on one; while there is none, the last good quotes
stay, each with its age, and `problem` says why no price may be made from it.

The protocol (WebSocket, JSON texts): the exchange welcomes, confirms subscriptions, sends the present row as `partial`
and each change as `insert`, often several rows at once, of which the last counts. After five seconds of
silence the text ``ping`` must bring ``pong``.
"""

import json
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import urlsplit

import h11
import structlog
import trio
import wsproto.utilities
from attrs import frozen
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from node.clock import Clock
from node.health import UNREPORTED, Report
from protocols.contract.numbers import BadNumber, parse_price
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import SYMBOL
from protocols.errors import WorldError

INSTRUMENTS = {"BTCUSD": "XBTUSD", "ETHUSD": "ETHUSD"}
"""The exchange's name of what each symbol is priced by."""
STALE_AFTER = 120.0
"""Seconds: no offer is priced from an older quote, nothing is closed at it."""
CLOCK_SLACK = 60.0
"""Seconds by which the exchange's clock may be ahead of ours."""
SILENCE = 5.0
"""Seconds after which the exchange is asked for a sign of life, and that it then has to give one."""
CONNECT_WITHIN = 15.0
"""Seconds from dialling to the confirmed subscription."""
PATIENCE = 60.0
"""Seconds in which a connection brings a message, or ends."""
REMEDY = "check the network, the exchange's address and this machine's clock; quotes come back by themselves"
MAX_MESSAGE = 256 * 1024
"""Bytes; two thousand rows."""

Dial = Callable[[], Awaitable[trio.abc.Stream]]

_log = structlog.get_logger(__name__)


@frozen
class Quote:
    """The best prices at one moment, USD, canonical decimal strings with at most two places; bid ≤ ask."""

    symbol: str
    """The contract's, such as BTCUSD."""
    bid: str
    ask: str
    at: float
    """The exchange's time of it, seconds since 1970."""
    received_at: float
    """Our time of its arrival."""

    @property
    def since(self) -> float:
        """What its age counts from: a quote is no younger because it came late, or from a clock that is ahead."""
        return min(self.at, self.received_at)


class BadQuote(ValueError):
    """A row that no price may be made from; the text names what, its value and what is allowed."""


class Feed:
    """The last good quote of one symbol. Without a `url` there never is one."""

    def __init__(
        self, url: str | None, clock: Clock, *, symbol: str = SYMBOL, stale_after: float = STALE_AFTER
    ) -> None:
        self.url = url
        self.symbol = symbol
        self.stale_after = stale_after
        self._clock = clock
        self._quote: Quote | None = None
        self._changed = trio.Event()

    @property
    def quote(self) -> Quote | None:
        """The last good one, however old."""
        return self._quote

    @property
    def stale_at(self) -> float:
        """When the quote that there is becomes too old, seconds since 1970; in the past if there is none."""
        return self._quote.since + self.stale_after if self._quote is not None else 0.0

    def problem(self) -> str | None:
        """Why no price may be made from the quote now; None if one may. The same words for as long as it lasts."""
        if self.url is None:
            return "no price feed is configured"
        if self._quote is None:
            return "no quote has come yet"
        if self._clock.now() <= self.stale_at:
            return None
        return f"the last quote is older than {self.stale_after:g} s"

    def fresh(self) -> Quote:
        """The quote, if a price may be made from it. Raises WorldError (no_quote) saying why not."""
        quote, problem = self.quote, self.problem()
        if quote is None or problem is not None:
            raise WorldError("no_quote", f"there is no fresh quote of {self.symbol}: {problem}")
        return quote

    def take(self, quote: Quote) -> None:
        """This is the present quote."""
        self._quote = quote
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def after(self, quote: Quote | None) -> Quote:
        """The present quote, as soon as it is another than `quote`."""
        while self._quote is None or self._quote is quote:
            await self._changed.wait()
        return self._quote


class Feeds(Mapping[str, Feed]):
    """The feed of each contract symbol, and one connection to the exchange that serves those in `symbols`.

    The others never have a quote, nor has any without a `url`. `dial` and `tls` take the place of a TCP connection to
    the URL's host, and of the system's trust, in tests.
    """

    def __init__(
        self,
        url: str | None,
        clock: Clock,
        symbols: Collection[str] = tuple(SYMBOLS),
        *,
        stale_after: float = STALE_AFTER,
        dial: Dial | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url
        self._clock = clock
        self._stale_after = stale_after
        self._dial = dial or self._dial_url
        self._tls = tls
        self._feeds = {
            symbol: Feed(url if symbol in symbols else None, clock, symbol=symbol, stale_after=stale_after)
            for symbol in SYMBOLS
        }
        self._served = {symbol: INSTRUMENTS[symbol] for symbol in SYMBOLS if symbol in symbols}
        self._refusals: dict[str, str] = {}
        """Why the last rows of a symbol, or rows of none (""), gave no quote."""
        self._told: str | None = None
        self._tell_time: Callable[[float], object] = lambda _: None

    def __getitem__(self, symbol: str) -> Feed:
        return self._feeds[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    async def run(
        self,
        *,
        report: Report = UNREPORTED,
        heard: Callable[[float], object] = lambda _: None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Take quotes from one connection until it ends: `WorldError`, maybe in a group. Started once subscribed.

        A connection that for twice the time in which a quote grows stale does not bring a good one of every symbol is
        given up, too: a new one may. `heard` is told the exchange's time of each quote that is new.
        """
        self._tell_time = heard
        assert self.url is not None
        parts = urlsplit(self.url)
        self._told, self._refusals = None, {}
        try:
            with trio.fail_after(CONNECT_WITHIN) as patience:
                stream = await self._dial()
                # the stream is ours: the library leaves it open when a connection ends abnormally
                async with stream, trio.open_nursery() as nursery:
                    line: Any = _Line(stream)  # the library's types know sockets alone
                    connection = await wrap_client_stream(
                        nursery, line, parts.netloc, parts.path or "/", max_message_size=MAX_MESSAGE
                    )
                    line.open = True
                    topics = {f"quote:{instrument}" for instrument in self._served.values()}
                    await connection.send_message(json.dumps({"op": "subscribe", "args": sorted(topics)}))
                    while topics:
                        topics.discard(self._heard(await connection.get_message(), report))
                    task_status.started()
                    while True:
                        patience.deadline = trio.current_time() + 2 * self._stale_after
                        before = {symbol: self[symbol].quote for symbol in self._served}
                        while any(self[symbol].quote is quote for symbol, quote in before.items()):
                            self._judge(report)
                            self._heard(await self._next_message(connection), report)
        except* ConnectionRejected as group:
            raise self._lost(f"refused the connection: {_reason(group)}") from None
        except* ConnectionClosed as group:
            raise self._lost(f"ended the connection: {_reason(group)}") from None
        except* (wsproto.utilities.ProtocolError, h11.ProtocolError):  # what the library makes of nonsense
            raise self._lost("does not speak WebSocket") from None
        except* trio.TooSlowError:
            raise self._lost("did not send what it should in time") from None
        except* (HandshakeError, OSError, trio.BrokenResourceError) as group:
            raise self._lost(f"cannot be reached: {_reason(group)}") from None
        raise AssertionError("a connection ends by an error only")

    async def _dial_url(self) -> trio.abc.Stream:
        parts = urlsplit(self.url or "")
        host, secure = parts.hostname or "", parts.scheme == "wss"
        stream: trio.abc.Stream
        if secure:
            context = self._tls or ssl.create_default_context()
            stream = await trio.open_ssl_over_tcp_stream(
                host, parts.port or 443, ssl_context=context, https_compatible=True
            )
        else:
            stream = await trio.open_tcp_stream(host, parts.port or 80)
        return stream

    async def _next_message(self, connection: WebSocketConnection) -> str | bytes:
        """The next message. Raises WorldError if the exchange is silent even when asked."""
        with trio.move_on_after(SILENCE):
            return await connection.get_message()
        with trio.move_on_after(SILENCE):
            await connection.send_message("ping")
            return await connection.get_message()
        raise self._lost("is silent")

    def _heard(self, message: str | bytes, report: Report) -> str:
        """Take in one message; returns the topic whose subscription it confirms, or "". Raises WorldError if it is
        none."""
        report.beat()
        if message == "pong":
            return ""
        try:
            said = json.loads(message, parse_int=Decimal, parse_float=Decimal, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self._lost(f"sent what is no JSON: {_shown(message)}") from None
        if not isinstance(said, dict):
            raise self._lost(f"sent no object: {_shown(message)}")
        if "error" in said:
            raise self._lost(f"refused the subscription: {_shown(said['error'])}")
        if said.get("table") == "quote" and said.get("action") in ("partial", "insert"):
            self._take(said.get("data"), report, new=said["action"] == "insert")
        return str(said.get("subscribe", "")) if said.get("success") is True else ""

    def _take(self, rows: object, report: Report, *, new: bool) -> None:
        """The last row of a symbol becomes its quote, or the reason why there is no new one."""
        try:
            last = last_rows(rows, self._served)
        except BadQuote as error:
            self._refusals.setdefault("", f"the exchange's quote is refused: {error}")
            return
        self._refusals.pop("", None)
        for symbol, row in last.items():
            feed = self[symbol]
            try:
                if new:  # also of a quote that is refused because of its time
                    self._tell_time(_timestamp(row))
                feed.take(read_quote(row, symbol, feed.quote, self._clock.now()))
            except BadQuote as error:
                self._refusals.setdefault(symbol, f"the exchange's quote is refused: {error}")
            else:
                self._refusals.pop(symbol, None)
                report.fresh()

    def _judge(self, report: Report) -> None:
        """Tell of a change between good and bad. Comes after every message, of which there is one every 5 s."""
        reasons = [self._refusals.get("")]
        for symbol in self._served:
            reason = "; ".join(filter(None, (self._refusals.get(symbol), self[symbol].problem())))
            reasons.append(reason and f"{symbol}: {reason}")
        told = "; ".join(filter(None, reasons))
        if told != self._told:
            self._told = told
            if told:
                _log.info("price_feed", reason=told)
                report.degraded(told, REMEDY)
            else:
                report.recovered()

    def _lost(self, what: str) -> WorldError:
        return WorldError("no_exchange", f"the exchange at {self.url} {what}")


class _Line(trio.abc.Stream):
    """A stream that fails loudly until it is `open`: the library waits for the end of a handshake that failed."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.open = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._loudly():
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with self._loudly():
            data = await self._stream.receive_some(max_bytes)
        if not (data or self.open):
            raise HandshakeError("the line was cut")
        return bytes(data)

    async def aclose(self) -> None:
        await self._stream.aclose()

    @contextmanager
    def _loudly(self) -> Iterator[None]:
        try:
            yield
        except trio.BrokenResourceError as error:
            if self.open:
                raise
            raise HandshakeError(f"the line broke: {error.__cause__ or error}") from error


def last_rows(rows: object, instruments: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The last row of each symbol, whose `instruments` the exchange knows by those names. Raises `BadQuote`."""
    symbols = {instrument: symbol for symbol, instrument in instruments.items()}
    last: dict[str, dict[str, object]] = {}
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict):
            raise BadQuote(f"data is {_shown(rows)}, allowed are rows")
        if (symbol := symbols.get(str(row.get("symbol")))) is None:
            raise BadQuote(f"symbol is {_shown(row.get('symbol'))}, allowed is {' or '.join(symbols)}")
        last[symbol] = row
    return last


def read_quote(row: dict[str, object], symbol: str, before: Quote | None, now: float) -> Quote:
    """The quote of this symbol that its row says, received at `now`. Raises `BadQuote`."""
    bid, ask, at = _price(row, "bidPrice"), _price(row, "askPrice"), _timestamp(row)
    if parse_price(bid) > parse_price(ask):
        raise BadQuote(f"bidPrice is {bid}, allowed is at most the askPrice, {ask}")
    if at > now + CLOCK_SLACK:
        raise BadQuote(f"timestamp is {row['timestamp']}, {at - now:.0f} s ahead of this node's clock")
    if before is not None and at < before.at:
        raise BadQuote(f"timestamp is {row['timestamp']}, older than that of the quote before")
    return Quote(symbol, bid, ask, at, now)


def _price(row: dict[str, object], name: str) -> str:
    """The canonical form of the digits as they were sent: whole prices come as integers, others maybe as 27778.0."""
    number = row.get(name)
    if not isinstance(number, Decimal):
        raise BadQuote(f"{name} is {_shown(number)}, allowed is a number")
    text = str(number)
    text = text.rstrip("0").removesuffix(".") if "." in text and "E" not in text else text
    try:
        parse_price(text, name)
    except BadNumber as error:
        raise BadQuote(str(error)) from None
    return text


def _timestamp(row: dict[str, object]) -> float:
    text = row.get("timestamp")
    try:
        moment = datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007  the Z is read here
    except ValueError:
        raise BadQuote(f"timestamp is {_shown(text)}, allowed is a time such as 2026-09-02T07:48:59.167Z") from None
    return moment.replace(tzinfo=UTC).timestamp()


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _shown(value: object) -> str:
    """What the exchange sent, cut and on one line, for a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _reason(group: BaseException) -> str:
    """What the first error of a group says."""
    error = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case ConnectionRejected():
            return f"HTTP status {error.status_code}"
        case ConnectionClosed(reason=CloseReason() as reason):
            return f"code {reason.code}{f', {_shown(reason.reason)}' if reason.reason else ''}"
    return str(error) or repr(error)
