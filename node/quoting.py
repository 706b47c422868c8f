"""Offers that follow the market: a spread in the place of a price.

Such an offer is priced from the feed's quote, and priced anew, under a new id, when the quote moved away from it or it
grew old. While there is no fresh quote, or the node cannot serve an order, it is withdrawn; it comes back by itself.
So are, and do, those that were given a price.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from fractions import Fraction
from typing import NoReturn

import trio
from attrs import define, evolve

from node.clock import Clock
from node.errors import Conflict
from node.health import UNREPORTED, Report
from node.offers import OfferBoard
from node.prices import Feed, Quote
from protocols.contract.numbers import PRICE_PLACES, BadNumber, format_decimal, parse_part, parse_price
from protocols.contract.terms import Side
from protocols.errors import LocalError, WorldError
from protocols.offers import ID_LENGTH, Offer

LOOK_EVERY = 0.5
"""Seconds between two looks at the quote, and so between two prices of one offer at least."""
REFRESH_AFTER = 60.0
"""Seconds after which an offer gets a new time, at whatever price."""
FEE_RATE_EVERY = REFRESH_AFTER / 2
NOT_RUNNING = "quoting is not running"


def quoted_price(quote: Quote, side: Side, spread: str) -> Fraction:
    """The maker's price for its side: a spread away from the quote, rounded to whole cents in the maker's favour.

    Raises `BadNumber` for a bad spread. The price may be none that an offer can have, such as 0.
    """
    part = parse_part(spread, "spread", high="0.5")
    cent = 10**PRICE_PLACES
    if side is Side.LONG:
        cents = math.floor(parse_price(quote.bid) * (1 - part) * cent)
    else:
        cents = math.ceil(parse_price(quote.ask) * (1 + part) * cent)
    return Fraction(cents, cent)


@define(eq=False)
class Quoted:
    """One offer that follows the market."""

    pattern: Offer
    """The offer but for its id, price, fee rate and time."""
    spread: str
    """Part of the price: the distance from the quote's bid or ask."""
    offer: Offer | None = None
    """The one that stands."""
    reason: str | None = None
    """Why none stands."""


class Quoting:
    """The offers that follow the market, at most one of a symbol and side. A service keeps them on the board."""

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        board: OfferBoard,
        clock: Clock,
        *,
        step: str,
        check_ready: Callable[[], None],
        fee_rate: Callable[[], Awaitable[int]],
        entropy: Callable[[int], bytes],
    ) -> None:
        """`step` is the part of its price by which a price may lag; `check_ready` raises WorldError or LocalError
        while orders cannot be served; `fee_rate` says what new positions pay, sat/vB."""
        self._feeds = feeds
        self._board = board
        self._clock = clock
        self._step = parse_part(step, "step", high="0.1")
        self._check_ready = check_ready
        self._ask_fee_rate = fee_rate
        self._entropy = entropy
        self._fee_rate = 0
        self._quoted: dict[tuple[str, Side], Quoted] = {}
        self._running = False

    def all(self) -> tuple[Quoted, ...]:
        return tuple(self._quoted.values())

    def price(self, symbol: str, side: Side, spread: str) -> str:
        """By the last good quote, even if it is stale: what an offer can be checked with before it is followed.

        Raises `BadNumber` for a bad spread, `Conflict` if there never was a quote.
        """
        feed = self._feeds[symbol]
        if feed.quote is None:
            raise Conflict("no_quote", f"an offer with a spread needs a quote: {feed.problem()}")
        return format_decimal(quoted_price(feed.quote, side, spread), PRICE_PLACES)

    def follow(self, offer: Offer, spread: str) -> Quoted:
        """From now on an offer like this one follows the market, in the place of what stood for its symbol and side."""
        self._fee_rate = offer.fee_rate
        quoted = self._quoted[offer.symbol, offer.side] = Quoted(offer, spread)
        self._board.clear(offer.symbol, offer.side)
        self._board.hold(self._obstacles())
        self._look(quoted)
        return quoted

    def forget(self, symbol: str, side: Side) -> None:
        """Nothing of this symbol and side follows the market any more, and what did is withdrawn."""
        if (quoted := self._quoted.pop((symbol, side), None)) is not None:
            self._withdraw(quoted, "no longer quoted")

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep the offers in step with the market. When this ends, they are withdrawn: nobody would."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_fee_rate)
                task_status.started()
                while True:
                    self._board.hold(self._obstacles())
                    for quoted in self.all():
                        self._look(quoted)
                    report.beat()
                    await trio.sleep(LOOK_EVERY)
        finally:
            self._running = False
            self._board.hold({})
            for quoted in self.all():
                self._withdraw(quoted, NOT_RUNNING)
        raise AssertionError("the loop above has no end")

    async def _keep_fee_rate(self) -> None:
        while True:
            self._fee_rate = await self._ask_fee_rate()
            await trio.sleep(FEE_RATE_EVERY)

    def _look(self, quoted: Quoted) -> None:
        """Put one offer, make it anew or withdraw it, as the quote demands."""
        feed = self._feeds[quoted.pattern.symbol]
        quote, obstacle = feed.quote, self._obstacle(feed)
        if quote is None or obstacle is not None:
            self._withdraw(quoted, obstacle or "there is no quote")
            return
        now, stands = self._clock.now(), quoted.offer
        price = quoted_price(quote, quoted.pattern.side, quoted.spread)
        if stands is not None and self._board.find(stands.id) and not self._due(stands, price, now):
            return
        try:
            offer = evolve(
                quoted.pattern,
                id=self._entropy(ID_LENGTH),
                price=format_decimal(price, PRICE_PLACES),
                fee_rate=self._fee_rate,
                created=int(now),
            )
        except BadNumber as error:
            self._withdraw(quoted, str(error))
            return
        self._board.put(offer)
        quoted.offer, quoted.reason = offer, None

    def _obstacle(self, feed: Feed) -> str | None:
        """Why nothing may be offered by this feed now."""
        return self._unready() or feed.problem() if self._running else NOT_RUNNING

    def _obstacles(self) -> dict[str, str]:
        """By symbol why no order could be served now, whatever the offer's price is from."""
        if not self._running:
            return {}
        unready = self._unready()
        found = {symbol: unready or (feed.problem() if feed.url else None) for symbol, feed in self._feeds.items()}
        return {symbol: reason for symbol, reason in found.items() if reason}

    def _unready(self) -> str | None:
        try:
            self._check_ready()
        except (WorldError, LocalError) as refusal:
            return refusal.sentence
        return None

    def _due(self, offer: Offer, price: Fraction, now: float) -> bool:
        stands = parse_price(offer.price)
        return now - offer.created >= REFRESH_AFTER or abs(price - stands) > self._step * stands

    def _withdraw(self, quoted: Quoted, reason: str) -> None:
        quoted.reason = reason
        if quoted.offer is not None:
            self._board.clear(quoted.offer.symbol, quoted.offer.side)
            quoted.offer = None
