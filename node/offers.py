"""The maker's side of offers: what stands now, who is told, and which orders wait for a word."""

from __future__ import annotations

import trio
from attrs import Factory, define, field, frozen

from node.clock import Clock
from node.errors import NotFound
from node.position.state import Position
from protocols.codec import Rejected
from protocols.contract.terms import Side
from protocols.contract_setup import DECISION_WITHIN, Order
from protocols.offers import STALE_AFTER, Offer

ANSWER_WITHIN = DECISION_WITHIN - 5.0
"""Seconds that a person has to answer an order; the rest is for the answer to arrive."""


class OfferBoard:
    """One offer for each symbol and side. A new one replaces the old, and each stands for ten minutes at most."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offers: dict[tuple[str, Side], Offer] = {}
        self._changed = trio.Event()

    def put(self, offer: Offer) -> None:
        self._offers[offer.symbol, offer.side] = offer
        self._ring()

    def withdraw(self, offer_id: bytes) -> Offer:
        """LocalError if no such offer stands."""
        offer = self.find(offer_id)
        if offer is None:
            raise NotFound("no_such_offer", f"no offer {offer_id.hex()} stands")
        del self._offers[offer.symbol, offer.side]
        self._ring()
        return offer

    def clear(self, symbol: str, side: Side) -> None:
        """Withdraw what there is of this symbol and side, if anything."""
        if self._offers.pop((symbol, side), None) is not None:
            self._ring()

    def clear_all(self) -> None:
        """Withdraw everything that stands."""
        self._offers.clear()
        self._ring()

    def find(self, offer_id: bytes) -> Offer | None:
        return next((offer for offer in self.standing() if offer.id == offer_id), None)

    def standing(self) -> tuple[Offer, ...]:
        """Those that can be taken now."""
        now = self._clock.now()
        return tuple(offer for offer in self._offers.values() if not offer.stale(now))

    async def next_set(self, last: tuple[Offer, ...] | None) -> tuple[Offer, ...]:
        """The set that stands, as soon as it differs from `last`."""
        while (standing := self.standing()) == last:
            oldest = min((offer.created for offer in standing), default=None)
            within = float("inf") if oldest is None else max(0.1, oldest + STALE_AFTER - self._clock.now())
            with trio.move_on_after(within):
                await self._changed.wait()
        return standing

    def _ring(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@define(eq=False)
class WaitingOrder:
    """An order that a person has to answer."""

    order: Order
    peer: bytes
    since: float
    answer: Rejected | None = None
    answered: trio.Event = Factory(trio.Event)


@frozen
class Policy:
    """What the operator allows."""

    max_quantity: int
    """Contracts of one order."""
    max_exposure: int
    """Contracts of one side less those of the other, over all positions."""
    manual: bool


def exposure(positions: tuple[Position, ...]) -> int:
    """Contracts that this node is long (positive) or short over all positions that have begun and not ended."""
    return sum(
        position.quantity if position.side is Side.LONG else -position.quantity
        for position in positions
        if position.version and not position.ended
    )


@define(eq=False)
class OrderDesk:
    """Decides on orders: first the limits, then a person if the policy says so."""

    policy: Policy
    clock: Clock
    waiting: dict[bytes, WaitingOrder] = field(factory=dict)
    _under_way: dict[bytes, int] = field(factory=dict)
    """By order id the quantity, signed; 0 until the order is accepted."""

    def begin(self, order_id: bytes) -> bool:
        """False if a setup of this order is under way already; else it is, until `forget`."""
        if order_id in self._under_way:
            return False
        self._under_way[order_id] = 0
        return True

    async def decide(self, order: Order, peer: bytes, positions: tuple[Position, ...]) -> Rejected | None:
        """None: accepted, and the order counts towards the exposure until `forget`. Comes after `begin`."""
        signed = order.quantity if order.offer.side is Side.LONG else -order.quantity
        if order.quantity > self.policy.max_quantity:
            return Rejected(
                "bad_quantity", f"quantity is {order.quantity}, allowed is at most {self.policy.max_quantity}"
            )
        recorded = {position.id for position in positions}
        pending = sum(quantity for order_id, quantity in self._under_way.items() if order_id not in recorded)
        before = exposure(positions) + pending
        if abs(before + signed) > self.policy.max_exposure and abs(before + signed) > abs(before):
            return Rejected("max_exposure", "the maker takes no more on this side at present")
        self._under_way[order.order_id] = signed
        return await self._by_hand(order, peer) if self.policy.manual else None

    async def _by_hand(self, order: Order, peer: bytes) -> Rejected | None:
        waiting = self.waiting[order.order_id] = WaitingOrder(order, peer, self.clock.now())
        try:
            with trio.move_on_after(ANSWER_WITHIN):
                await waiting.answered.wait()
                return waiting.answer
            return Rejected("no_decision", f"the maker did not decide within {ANSWER_WITHIN:g} s")
        finally:
            del self.waiting[order.order_id]

    def answer(self, order_id: bytes, refusal: Rejected | None) -> WaitingOrder:
        """A person's word on a waiting order."""
        waiting = self.waiting.get(order_id)
        if waiting is None or waiting.answered.is_set():
            raise NotFound("no_such_order", f"no order {order_id.hex()} waits for an answer")
        waiting.answer = refusal
        waiting.answered.set()
        return waiting

    def forget(self, order_id: bytes) -> None:
        """The setup is over; from now on only events count."""
        self._under_way.pop(order_id, None)
