"""The maker's desk: orders, rollovers and closes are decided here, by the policy's rules, and then by a word through
the API for each kind that the policy leaves to a person or a bot.

A refusal reaches the taker as `Rejected`, in the words of the rule that does not allow what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Generic, TypeVar

import structlog
import trio
from attrs import Factory, define, field, frozen

from node.clock import Clock
from node.errors import Conflict, FieldError, NotFound
from node.policy import Policy
from node.position.state import Position
from node.prices import Feed, Quote
from node.rules import (
    Stake,
    check_close_price,
    check_order_price,
    check_size,
    check_stake,
    middle,
    stake_of_order,
    stakes_of,
)
from protocols import contract_setup, rollover, settlement
from protocols.codec import Rejected
from protocols.contract.numbers import BadNumber
from protocols.contract.terms import Side
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import Order
from protocols.errors import Declined, WorldError
from protocols.rollover import Conditions

FOR_THE_ANSWER = 5.0
"""Seconds of a decision's time that are left for the answer to arrive."""
ID_LENGTH = 16

log = structlog.get_logger("desk")
Answer = TypeVar("Answer")


class Kind(Enum):
    """What a taker asks for; the value is its name in the API."""

    ORDER = "order"
    ROLLOVER = "rollover"
    CLOSE = "close"


ANSWER_WITHIN = {
    Kind.ORDER: contract_setup.DECISION_WITHIN - FOR_THE_ANSWER,
    Kind.ROLLOVER: rollover.DECISION_WITHIN - FOR_THE_ANSWER,
    Kind.CLOSE: settlement.DECISION_WITHIN - FOR_THE_ANSWER,
}
"""Seconds that a person or a bot has."""


@frozen
class Said:
    """What whoever accepts a rollover may say of it; the rules say the rest."""

    funding_rate: str | None = None
    price: str | None = None


@frozen(eq=False)
class Request(Generic[Answer]):
    """What waits for a word."""

    id: bytes
    """Drawn for this request: under one order id a taker may ask again, for something else."""
    kind: Kind
    order: Order
    """What is ordered, or what the position was opened by."""
    peer: bytes
    price: str | None
    """USD: the order's or the close's, of a rollover the present one; None if the rules know none."""
    funding_rate: str | None
    """Per 24 h: the order's, or by the rules the rollover's."""
    since: float
    """Seconds since 1970."""
    answer_by: float
    accept: Callable[[Said], Answer] = field(repr=False)
    """The answer by the rules as they are then. Raises `Declined` if they no longer allow it."""
    answers: trio.MemorySendChannel[Answer | Rejected] = field(repr=False)

    @property
    def side(self) -> Side:
        """The maker's."""
        return self.order.offer.side


@frozen
class SetRate:
    """A funding rate as it was said through the API."""

    funding_rate: str
    since: float
    """Seconds since 1970."""


@define(eq=False)
class Desk:
    policy: Policy
    feeds: Mapping[str, Feed]
    """By symbol."""
    clock: Clock
    entropy: Callable[[int], bytes]
    waiting: dict[bytes, Request[Any]] = field(factory=dict)
    """By the request's id."""
    number: int = 0
    """Another one whenever a request comes or goes."""
    rates: dict[str, SetRate] = field(factory=dict)
    """By symbol. They go before those of the policy, and grow old."""
    _under_way: dict[bytes, Stake | None] = field(factory=dict)
    """By order id; None until the rules allow the order."""
    _unchecked: set[str] = field(factory=set)
    """Symbols without a feed, of which the operator was told."""
    _changed: trio.Event = Factory(trio.Event)

    # --- orders -------------------------------------------------------------------------------------------------------

    def begin(self, order_id: bytes) -> bool:
        """False if a setup of this order is under way already; else it is, until `forget`."""
        if order_id in self._under_way:
            return False
        self._under_way[order_id] = None
        return True

    async def decide_order(self, order: Order, peer: bytes, positions: tuple[Position, ...]) -> Rejected | None:
        """None: accepted, within `contract_setup.DECISION_WITHIN`. Comes after `begin`.

        From the moment that the rules allow it until `forget`, an order counts like a position.
        """

        def accept(_: Said) -> None:
            self._check_order_price(order)

        try:
            check_size(self.policy, order)
            accept(Said())
            self._reserve(order, peer, positions)
        except Declined as no:
            return _told(no)
        if self.policy.accept_orders == "auto":
            return None
        return await self._by_hand(
            Kind.ORDER, order, peer, accept, price=order.offer.price, funding_rate=order.offer.funding_rate
        )

    def forget(self, order_id: bytes) -> None:
        """The setup is over; from now on only events count."""
        self._under_way.pop(order_id, None)

    def _reserve(self, order: Order, peer: bytes, positions: tuple[Position, ...]) -> None:
        under_way = {order_id: stake for order_id, stake in self._under_way.items() if stake is not None}
        orders = sum(stake.peer == peer for stake in under_way.values())
        if orders >= self.policy.max_orders_per_peer:
            allowed = self.policy.max_orders_per_peer
            raise Declined("max_orders", f"{orders} orders of yours are under way, allowed is {allowed}")
        stake, recorded = stake_of_order(order, peer), {position.id for position in positions}
        pending = [each for order_id, each in under_way.items() if order_id not in recorded]
        check_stake(self.policy, stake, pending + stakes_of(positions))
        self._under_way[order.order_id] = stake

    def _check_order_price(self, order: Order) -> None:
        symbol = order.offer.symbol
        self.rate(symbol, order.offer.funding_rate)  # nothing is opened either while the rates are stale
        if (feed := self.feeds.get(symbol)) is not None and feed.url is not None:
            check_order_price(self.policy, order.offer, self._quote(symbol))
        elif symbol not in self._unchecked:
            self._unchecked.add(symbol)
            log.warning("no price feed is configured: the prices of orders are not checked", symbol=symbol)

    # --- rollovers ----------------------------------------------------------------------------------------------------

    async def decide_rollover(self, position: Position, plan: ContractPlan) -> Conditions | Rejected:
        """At what the contract of `plan` is rolled over, within `rollover.DECISION_WITHIN`.

        By hand, conditions may be said that the rules do not know: without a quote, or while the rates are stale.
        """
        order = _order(position)

        def accept(said: Said) -> Conditions:
            symbol = plan.terms.symbol
            rate, price = said.funding_rate, said.price
            return Conditions(
                self.rate(symbol, order.offer.funding_rate) if rate is None else rate,
                middle(self._quote(symbol)) if price is None else price,
            )

        if self.policy.accept_rollovers == "auto":
            try:
                return accept(Said())
            except Declined as no:
                return _told(no)
        known = None
        with suppress(Declined):
            known = accept(Said())
        return await self._by_hand(
            Kind.ROLLOVER,
            order,
            position.peer,
            accept,
            price=known.price if known is not None else None,
            funding_rate=known.funding_rate if known is not None else None,
        )

    def rate(self, symbol: str, otherwise: str) -> str:
        """The funding rate in force. Raises `Declined` (stale_rate) when the one that was set has grown too old."""
        said = self.rates.get(symbol)
        if said is None:
            return self.policy.funding_rate.get(symbol, otherwise)
        if self.clock.now() - said.since > self.policy.rate_max_age:
            raise Declined("stale_rate", f"the maker's funding rate of {symbol} is older than it allows")
        return said.funding_rate

    # --- closes -------------------------------------------------------------------------------------------------------

    async def decide_close(self, position: Position, price: str) -> Rejected | None:
        """Whether the position is closed at this price (USD), within `settlement.DECISION_WITHIN`."""

        def accept(_: Said) -> None:
            self.check_close(position, price)

        try:
            accept(Said())
        except Declined as no:
            return _told(no)
        if self.policy.accept_closes == "auto":
            return None
        return await self._by_hand(Kind.CLOSE, _order(position), position.peer, accept, price=price, funding_rate=None)

    def check_close(self, position: Position, price: str) -> None:
        """Raises `Declined` (price_moved, no_quote) unless the price is within the band by a fresh quote."""
        try:
            quote = self._quote(_order(position).offer.symbol)
        except Declined as no:
            raise Declined(no.code, f"{no.sentence}; closing is paused") from None
        check_close_price(self.policy, position.side, price, quote)

    # --- by hand ------------------------------------------------------------------------------------------------------

    async def news(self, after: int | None, within: float) -> None:
        """Until requests came or went since `number` was `after`, or any waits if that is None; `within` seconds."""
        with trio.move_on_after(within):
            while self.number == after or (after is None and not self.waiting):
                await self._changed.wait()

    def accept(self, request_id: bytes, said: Said) -> Request[Any]:
        """Yes. Raises `Conflict` if the rules do not allow it any more: then the request waits on."""
        request = self._find(request_id)
        if said != Said() and request.kind is not Kind.ROLLOVER:
            name = "price" if said.funding_rate is None else "funding_rate"
            raise FieldError(
                name, f"{name} is said of rollovers only, and this request is of kind {request.kind.value}"
            )
        try:
            answer = request.accept(said)
        except Declined as no:
            raise Conflict(no.code, no.sentence) from no
        except BadNumber as error:
            raise FieldError(error.field, str(error)) from error
        return self._answer(request, answer)

    def reject(self, request_id: bytes, sentence: str) -> Request[Any]:
        return self._answer(self._find(request_id), Rejected("declined_by_hand", sentence))

    def waiting_orders(self) -> list[Request[Any]]:
        return [request for request in self.waiting.values() if request.kind is Kind.ORDER]

    def waiting_order(self, order_id: bytes) -> Request[Any]:
        """The order of this id that waits; there is at most one, see `begin`."""
        for request in self.waiting_orders():
            if request.order.order_id == order_id:
                return request
        raise NotFound("no_such_order", f"no order {order_id.hex()} waits for an answer")

    async def _by_hand(
        self,
        kind: Kind,
        order: Order,
        peer: bytes,
        accept: Callable[[Said], Answer],
        *,
        price: str | None,
        funding_rate: str | None,
    ) -> Answer | Rejected:
        within, now = ANSWER_WITHIN[kind], self.clock.now()
        answers, answer = trio.open_memory_channel[Answer | Rejected](1)
        request_id = self.entropy(ID_LENGTH)
        self.waiting[request_id] = Request(
            request_id, kind, order, peer, price, funding_rate, now, now + within, accept, answers
        )
        self._ring()
        try:
            with trio.move_on_after(within):
                return await answer.receive()
            return Rejected("no_decision", f"the maker did not decide within {within:g} s")
        finally:
            if self.waiting.pop(request_id, None) is not None:
                self._ring()

    def _find(self, request_id: bytes) -> Request[Any]:
        if (request := self.waiting.get(request_id)) is None:
            raise NotFound("no_such_request", f"no request {request_id.hex()} waits for an answer")
        return request

    def _answer(self, request: Request[Any], answer: object) -> Request[Any]:
        """The first word stands: nothing waits here any more."""
        del self.waiting[request.id]
        request.answers.send_nowait(answer)
        self._ring()
        return request

    def _ring(self) -> None:
        self.number += 1
        self._changed.set()
        self._changed = trio.Event()

    def _quote(self, symbol: str) -> Quote:
        """The present one. Raises `Declined` (no_quote) if it is stale, or there is none."""
        try:
            return self.feeds[symbol].fresh()
        except WorldError as error:
            raise Declined(error.code, f"at the maker {error.sentence}") from None


def _order(position: Position) -> Order:
    """By which the position was opened."""
    assert position.offer is not None
    return Order(position.id, position.offer, position.quantity, position.leverage)


def _told(no: Declined) -> Rejected:
    return Rejected(no.code, no.sentence)
