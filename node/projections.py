"""What people see of a node: the last known state of each of its parts, kept while the part itself is down.

A `Kept` asks a part and remembers its last answer, with the moment that it is of. A `Board` holds what the live feed
shows, as small JSON values under (topic, key), each numbered with its last change: whoever read up to number n gets
what changed since, and nothing queues up for a slow reader. Both are in memory only, and outlive the service
`projections`, which keeps the board in step with its sources.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import trio
from attrs import evolve, frozen

from node.clock import Clock
from node.core import Core
from node.health import UNREPORTED, UP, Report, State
from node.position.state import Position
from node.price_history import PriceHistory
from node.supervision import Supervisor
from node.wallet.interface import Balance, Coin, Statement, Wallet
from node.web.views import quote_view
from protocols.errors import WorldError

T = TypeVar("T")
View = dict[str, Any]
Topics = Mapping[str, Mapping[str, Any]]
"""What is shown, by topic and key."""

ANSWER_WITHIN = 5.0
"""Seconds that a part has to answer before what was last known of it is shown."""
LOOK_EVERY = 5.0
"""Seconds between looks at sources that do not tell when they change, and at ages that go stale."""
PATIENCE = 60.0
LOOK_OFTEN = 0.5
"""The same, at what is in memory and cheap to look at."""
WALLET_EVERY = 2.0
SHOWN_ANEW = 20
"""Positions at each look."""
GONE_KEPT = 500
"""Of values that are gone, so many at least are remembered, for readers who may not know yet."""
BREATH = 0.1
"""Seconds from one change of a busy source to the next look at it."""


@frozen
class Known(Generic[T]):
    """What a part said, and when (seconds since 1970); with a `reason` it does not answer any more."""

    value: T
    as_of: float
    reason: str | None = None

    def age(self, now: float) -> View:
        """The members that whatever is shown carries."""
        return {
            "as_of": self.as_of,
            "age": max(0.0, now - self.as_of),
            "stale": self.reason is not None,
            "reason": self.reason,
        }


class Kept(Generic[T]):
    """A part's last answer."""

    def __init__(
        self,
        clock: Clock,
        ask: Callable[[], Awaitable[T]],
        as_of: Callable[[T], float | None] = lambda _: None,
        doubt: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`as_of` says of which moment an answer is; of when it is given, if it does not tell. `doubt`: why an answer
        that is given is stale all the same."""
        self.last: Known[T] | None = None
        self._clock = clock
        self._ask = ask
        self._as_of = as_of
        self._doubt = doubt

    async def read(self) -> Known[T]:
        """The answer now, or the last known one with the reason. Raises WorldError if nothing was ever known."""
        try:
            with trio.fail_after(ANSWER_WITHIN):
                value = await self._ask()
        except (WorldError, trio.TooSlowError) as error:
            reason = error.sentence if isinstance(error, WorldError) else f"no answer within {ANSWER_WITHIN:.0f} s"
            if self.last is None:
                raise error if isinstance(error, WorldError) else WorldError("no_answer", reason) from error
            return evolve(self.last, reason=reason)
        as_of = self._as_of(value)
        self.last = Known(value, self._clock.now() if as_of is None else as_of, self._doubt())
        return self.last


@frozen
class Entry:
    number: int
    topic: str
    key: str
    value: Any
    """None when there is nothing any more."""


class Board:
    """What the feed shows."""

    def __init__(self) -> None:
        self.number = 0
        """Of the newest change."""
        self.forgotten = 0
        """Who read up to an earlier number may have missed that something is gone."""
        self._gone = 0  # entries that are kept to tell so
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()  # the newest change last
        self._changed = trio.Event()

    def put(self, topic: str, values: Mapping[str, Any]) -> None:
        """These are all the values of a topic now."""
        before = self.topic(topic)
        for key in [*values, *(before.keys() - values.keys())]:
            value = values.get(key)
            if key not in before or before[key] != value:
                self._set(topic, key, value)

    def put_one(self, topic: str, key: str, value: Any) -> None:
        entry = self._entries.get((topic, key))
        if entry is None or entry.value != value:
            self._set(topic, key, value)

    def topic(self, topic: str) -> dict[str, Any]:
        return {
            entry.key: entry.value
            for entry in self._entries.values()
            if entry.topic == topic and entry.value is not None
        }

    def topics(self) -> dict[str, dict[str, Any]]:
        """Everything, by topic and key."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self._entries.values():
            if entry.value is not None:
                found.setdefault(entry.topic, {})[entry.key] = entry.value
        return found

    def since(self, number: int) -> list[Entry]:
        """What changed after that number, the oldest change first."""
        found = []
        for entry in reversed(self._entries.values()):
            if entry.number <= number:
                break
            found.append(entry)
        return found[::-1]

    async def beyond(self, number: int) -> None:
        """Wait until there is a change after that number."""
        await trio.lowlevel.checkpoint()
        while self.number <= number:
            await self._changed.wait()

    def _set(self, topic: str, key: str, value: Any) -> None:
        before = self._entries.get((topic, key))
        self._gone += (value is None) - (before is not None and before.value is None)
        if self._gone > 2 * GONE_KEPT:
            self._forget()
        self.number += 1
        self._entries[topic, key] = Entry(self.number, topic, key, value)
        self._entries.move_to_end((topic, key))
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _forget(self) -> None:
        """Of what is gone, all but the newest."""
        gone = [entry for entry in self._entries.values() if entry.value is None][:-GONE_KEPT]
        for entry in gone:
            del self._entries[entry.topic, entry.key]
            self._gone -= 1
        self.forgotten = max(self.forgotten, *(entry.number for entry in gone))


@frozen
class Money:
    """The wallet, with what positions hold of it."""

    balance: Balance
    coins: tuple[Coin, ...]
    reserved: int
    margin_locked: int


class Projections:
    """The read models of one node. `topics` gives what is in memory and cheap to look at; `show` a position as the API
    does."""

    def __init__(self, core: Core, topics: Callable[[], Topics], show: Callable[[Position], View]) -> None:
        self._core = core
        self._topics = topics
        self._show = show
        self._seen: dict[bytes, Position] = {}
        self._turn = 0
        self.board = Board()
        self.history = {symbol: PriceHistory() for symbol in core.feeds}
        """By symbol, since the node's start."""
        self.positions = Kept(core.clock, self._ask_positions)
        self.money = Kept(core.clock, self._ask_money, lambda money: money.balance.as_of, self._wallet_doubt)
        self.statement = Kept(core.clock, self._ask_statement, lambda statement: statement.as_of, self._wallet_doubt)
        """Read when somebody asks for it, and at no other time: it may be long."""
        self.tip = Kept(core.clock, self._ask_tip)
        self._tip_seen: tuple[bytes, float] | None = None

    @property
    def _sources(self) -> tuple[Kept[tuple[Position, ...]], Kept[Money], Kept[View]]:
        return self.positions, self.money, self.tip

    # Asking

    async def _ask_positions(self) -> tuple[Position, ...]:
        with self._core.positions.lent() as positions:
            return positions.all()
        raise AssertionError("a recalled loan raises")

    async def _ask_money(self) -> Money:
        balance = await self._core.wallet.call(Wallet.balance)
        coins = tuple(await self._core.wallet.call(Wallet.coins))
        known = (await self.positions.read()).value
        held = frozenset(outpoint for position in known for outpoint in position.inputs_held)
        return Money(
            balance,
            coins,
            sum(coin.value for coin in coins if coin.outpoint in held),
            sum(position.own_margin_at_risk for position in known if position.lock is not None),
        )

    async def _ask_statement(self) -> Statement:
        return await self._core.wallet.call(Wallet.statement)

    def _wallet_doubt(self) -> str | None:
        """A wallet that cannot reach the chain answers with what it knew."""
        health = self._core.wallet.health
        return health.reason if health.state is State.DEGRADED else None

    async def _ask_tip(self) -> View:
        """With the moment at which this node saw it first."""
        with self._core.chain.lent() as client:
            tip = client.tip
        if self._tip_seen is None or self._tip_seen[0] != tip.hash:
            self._tip_seen = tip.hash, self._core.clock.now()
        return {"height": tip.height, "since": self._tip_seen[1]}

    # Showing

    def wallet_view(self, known: Known[Money]) -> View:
        """Satoshis, with the moment that they are of."""
        money, now = known.value, self._core.clock.now()
        return {
            "confirmed": money.balance.confirmed,
            "pending": money.balance.pending,
            "reserved": money.reserved,
            "margin_locked": money.margin_locked,
            "kept_for_fees": self._core.setup.kept_for_fees() if self._core.positions.health.up else None,
            "height": money.balance.height,
            "coins": len(money.coins),
            **known.age(now),
        }

    def serve(self) -> None:
        """Add the service that keeps the board in step."""
        core = self._core

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await self.run(report=service, task_status=task_status)

        service = core.supervisor.service("projections", run, patience=PATIENCE)

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep the board in step, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_health, self._core.supervisor, self._core.clock, self.board)
            nursery.start_soon(self._follow, self._position_changes, self._put_positions)
            nursery.start_soon(self._follow, self._tips, self._put_tip)
            nursery.start_soon(self._look_often)
            nursery.start_soon(self._look_at_wallet)
            for symbol in self._core.feeds:
                nursery.start_soon(self._follow, partial(self._quotes, symbol), self._put_prices)
            task_status.started()
            while True:
                await self._put_positions()
                await self._put_tip()
                await self._put_prices()
                self.board.put("clock", self._clock_view())
                if all(each.last is not None and each.last.reason is None for each in self._sources):
                    report.fresh()
                report.beat()
                await trio.sleep(LOOK_EVERY)
        raise AssertionError("the loop above has no end")

    async def _look_at_wallet(self) -> NoReturn:
        while True:
            await self._put_wallet()
            await trio.sleep(WALLET_EVERY if self.money.last is not None else LOOK_OFTEN)

    async def _look_often(self) -> NoReturn:
        while True:
            for topic, values in self._topics().items():
                self.board.put(topic, values)
            await trio.sleep(LOOK_OFTEN)

    async def _follow(
        self, changes: Callable[[], AsyncGenerator[object, None]], put: Callable[[], Awaitable[None]]
    ) -> NoReturn:
        """Look at a source whenever it says that it changed, in whichever of its lives."""
        while True:
            try:
                async with aclosing(changes()) as each:
                    async for _ in each:
                        await put()
                        await trio.sleep(BREATH)
            except WorldError:
                await put()  # it went down: what was known is stale now
            await trio.sleep(1)

    async def _position_changes(self) -> AsyncGenerator[object, None]:
        await self._core.positions.until(*UP)
        with self._core.positions.lent() as positions:
            changes = positions.changed.changes()
        while True:
            yield await self._core.positions.call(_next, changes)

    async def _tips(self) -> AsyncGenerator[object, None]:
        await self._core.chain.until(*UP)
        with self._core.chain.lent() as client:
            tips = client.tips()
        while True:
            yield await self._core.chain.call(_next, tips)

    async def _quotes(self, symbol: str) -> AsyncGenerator[object, None]:
        quote = None
        while True:
            quote = await self._core.feeds[symbol].after(quote)
            self.history[symbol].take(quote)
            yield quote

    async def _put_positions(self) -> None:
        try:
            known = await self.positions.read()
        except WorldError:
            return
        for position in known.value:
            if self._seen.get(position.id) is not position:
                self._seen[position.id] = position
                self.board.put_one("positions", position.id.hex(), self._show(position))
                await trio.lowlevel.checkpoint()  # they may be many, and others have something to do
        for position in self._in_turn(known.value):
            self.board.put_one("positions", position.id.hex(), self._show(position))
        for gone in self._seen.keys() - {position.id for position in known.value}:  # archived
            del self._seen[gone]
            self.board.put_one("positions", gone.hex(), None)
        self._put_age("positions", known)

    def _in_turn(self, positions: tuple[Position, ...]) -> list[Position]:
        """Some of those that go on, to be shown anew: part of what is shown depends on the time and the peer."""
        live = [position for position in positions if not position.ended]
        start = self._turn % len(live) if live else 0
        self._turn += SHOWN_ANEW
        return (live[start:] + live[:start])[:SHOWN_ANEW]

    async def _put_wallet(self) -> None:
        try:
            known = await self.money.read()
        except WorldError:
            return
        self.board.put_one("wallet", "balance", _lasting(self.wallet_view(known)))

    async def _put_tip(self) -> None:
        try:
            known = await self.tip.read()
        except WorldError:
            return
        self.board.put_one("tip", "tip", known.value)
        self._put_age("tip", known)

    async def _put_prices(self) -> None:
        now = self._core.clock.now()
        self.board.put("prices", {symbol: _lasting(quote_view(feed, now)) for symbol, feed in self._core.feeds.items()})

    def _put_age(self, topic: str, known: Known[Any]) -> None:
        """As of when a topic is, told once it no longer answers and once it does again."""
        since = None if known.reason is None else known.as_of
        self.board.put_one("stale", topic, {"as_of": since, "stale": since is not None, "reason": known.reason})

    def _clock_view(self) -> View:
        return {"clock": {"offset": self._core.clocks.offset(), "problem": self._core.clocks.problem() or None}}


async def follow_health(supervisor: Supervisor, clock: Clock, board: Board) -> None:
    """Keep the services' records on the board; each reader of the feed does, so that it needs no service for it."""
    async with aclosing(supervisor.changes()) as changes:
        async for records in changes:
            now = clock.now()
            board.put("health", {record.name: _lasting(record.as_json(now)) for record in records})
            await trio.sleep(BREATH)


async def _next(_: object, changes: AsyncIterator[T]) -> T:
    return await anext(changes)


def _lasting(view: View) -> View:
    """Without its ages, which change by themselves: a reader counts from `as_of`, `data_at` and `at`."""
    return {name: value for name, value in view.items() if name not in ("age", "data_age")}
