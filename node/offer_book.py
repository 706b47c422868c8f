"""What the operator wants offered at a spread from the market. It is on record, and comes back after a restart.

An offer with a price of its own is not on record: it stands for ten minutes at most, and a price that somebody gave
before the node was away must not come back by itself.
"""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio
from attrs import define, field, frozen

from node.config import MakerConfig
from node.core import Core
from node.desk import Desk
from node.errors import Conflict, FieldError, NotFound
from node.eventstore.codec import EventCodec
from node.eventstore.interface import EventStore
from node.health import UNREPORTED, Report
from node.offers import OfferBoard
from node.quoting import Quoted, Quoting
from node.supervision import Service
from protocols.contract.numbers import BadNumber
from protocols.contract.terms import Side
from protocols.errors import LocalError
from protocols.offers import ID_LENGTH, Offer

CODEC = EventCodec()
STREAM = "offers"
LOOK_EVERY = 1.0
"""Seconds between two looks for the first quote."""

_log = structlog.get_logger(__name__)


@frozen
class Wish:
    """What the operator said; what is None is as the configuration and the policy say at the time."""

    symbol: str
    side: Side
    """The maker's."""
    min_quantity: int | None
    max_quantity: int | None
    leverages: tuple[int, ...] | None
    opening_fee: int
    funding_rate: str
    tolerance_near: str
    tolerance_far: str


@CODEC.event("OfferFollowed")
@frozen
class OfferFollowed:
    """From now on an offer like this stays that part of its price away from the market's quote."""

    wish: Wish
    spread: str


@CODEC.event("OfferDropped")
@frozen
class OfferDropped:
    """Nothing of this symbol and maker's side follows the market any more."""

    symbol: str
    side: Side


@define(eq=False)
class OfferBook:
    """Sets and withdraws offers; what is to outlive the node is on disk before it stands."""

    core: Core
    config: MakerConfig
    desk: Desk
    board: OfferBoard
    quoting: Quoting
    store: Service[EventStore]
    _turn: trio.Lock = field(init=False, factory=trio.Lock)

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[OfferBook] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """The service: follows again what is on record, as soon as there are quotes."""
        with self.store.lent():
            recorded = await self.store.call(EventStore.load, STREAM)
            wanted: dict[tuple[str, Side], OfferFollowed] = {}
            for each in recorded:
                match CODEC.decode(each):
                    case OfferFollowed() as followed:
                        wanted[followed.wish.symbol, followed.wish.side] = followed
                    case OfferDropped(symbol, side):
                        wanted.pop((symbol, side), None)
            followed_now = {(quoted.pattern.symbol, quoted.pattern.side) for quoted in self.quoting.all()}
            waiting = [each for key, each in wanted.items() if key not in followed_now]
            task_status.started(self)
            refused: list[str] = []
            while True:
                waiting = [each for each in waiting if not await self._again(each, refused)]
                if refused:
                    report.degraded("; ".join(refused), "set these offers anew")
                report.beat()
                await trio.sleep(LOOK_EVERY if waiting else report.beat_every)
        raise AssertionError("the loop above has no end")

    async def _again(self, followed: OfferFollowed, refused: list[str]) -> bool:
        """Whether an offer that is on record is dealt with."""
        wish = followed.wish
        if any((each.pattern.symbol, each.pattern.side) == (wish.symbol, wish.side) for each in self.quoting.all()):
            return True  # set anew meanwhile
        try:
            self.quoting.follow(await self.offer(wish, spread=followed.spread), followed.spread)
        except Conflict:
            return False  # there was no quote yet
        except (LocalError, BadNumber) as error:
            told = error.sentence if isinstance(error, LocalError) else str(error)
            refused.append(f"the offer of {wish.symbol}, maker {wish.side.value}, does not come back: {told}")
            _log.warning("an offer does not come back", symbol=wish.symbol, side=wish.side.value, reason=told)
        return True

    async def follow(self, wish: Wish, spread: str) -> Quoted:
        """Raises `FieldError`, `BadNumber`, `Conflict` without a quote, or WorldError when it cannot be recorded."""
        async with self._turn:
            offer = await self.offer(wish, spread=spread)
            await self._record(OfferFollowed(wish, spread))
            return self.quoting.follow(offer, spread)

    async def put(self, wish: Wish, price: str) -> Offer:
        """An offer with a price of its own, in the place of what stood for its symbol and side."""
        async with self._turn:
            offer = await self.offer(wish, price=price)
            await self._end(offer.symbol, offer.side)
            self.board.put(offer)
            return offer

    async def withdraw(self, offer_id: bytes) -> Offer:
        """One that follows the market does not come back. Raises `NotFound`."""
        async with self._turn:
            offer = self.board.find(offer_id)
            if offer is None:
                raise NotFound("no_such_offer", f"no offer {offer_id.hex()} stands")
            await self._end(offer.symbol, offer.side)
            self.board.clear(offer.symbol, offer.side)
            return offer

    async def drop(self, symbol: str, side: Side) -> Quoted:
        """Raises `NotFound` when nothing of this symbol and side follows the market."""
        async with self._turn:
            quoted = self._followed(symbol, side)
            if quoted is None:
                raise NotFound("not_quoted", f"no offer of {symbol}, maker {side.value}, follows the market")
            await self._end(symbol, side)
            return quoted

    async def offer(self, wish: Wish, *, price: str | None = None, spread: str = "") -> Offer:
        """As it would stand now, with a new id; by the last quote if it has no price of its own."""
        if wish.symbol not in self.config.symbols:
            allowed = " or ".join(self.config.symbols)
            raise FieldError("symbol", f"symbol is {wish.symbol}, this maker's configuration allows {allowed}")
        ours, most = self.config.of(wish.symbol), self.desk.policy.max_quantity.get(wish.symbol, 0)
        offer = Offer(
            id=self.core.setup.entropy(ID_LENGTH),
            symbol=wish.symbol,
            side=wish.side,
            price=price if price is not None else self.quoting.price(wish.symbol, wish.side, spread),
            min_quantity=wish.min_quantity if wish.min_quantity is not None else ours.lot,
            max_quantity=wish.max_quantity if wish.max_quantity is not None else most // ours.lot * ours.lot,
            lot=ours.lot,
            leverages=wish.leverages if wish.leverages is not None else tuple(ours.leverages),
            maker_leverage=ours.own_leverage,
            opening_fee=wish.opening_fee,
            funding_rate=wish.funding_rate,
            fee_rate=await self.core.setup.fee_rate(),
            timelocks=self.config.timelocks,
            oracle=self.core.setup.oracle_keys,
            tolerance_near=wish.tolerance_near,
            tolerance_far=wish.tolerance_far,
            created=int(self.core.clock.now()),
        )
        if offer.max_quantity > most:
            raise FieldError("max_quantity", f"max_quantity is {offer.max_quantity}, allowed is {most}")
        return offer

    def _followed(self, symbol: str, side: Side) -> Quoted | None:
        return next(
            (each for each in self.quoting.all() if (each.pattern.symbol, each.pattern.side) == (symbol, side)), None
        )

    async def _end(self, symbol: str, side: Side) -> None:
        if self._followed(symbol, side) is not None:
            await self._record(OfferDropped(symbol, side))
            self.quoting.forget(symbol, side)

    async def _record(self, event: OfferFollowed | OfferDropped) -> None:
        version = len(await self.store.call(EventStore.load, STREAM))  # of an earlier one the outcome may be unknown
        await self.store.call(EventStore.append, STREAM, version, [CODEC.encode(event)])
