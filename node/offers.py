"""The maker's side of offers: what stands now, and who is told."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from node.clock import Clock
from protocols.contract.terms import Side
from protocols.offers import STALE_AFTER, Offer


class OfferBoard:
    """One offer for each symbol and side. A new one replaces the old, and each stands for ten minutes at most; none of
    a symbol that is held does, until it is held no longer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offers: dict[tuple[str, Side], Offer] = {}
        self._held: Mapping[str, str] = {}
        self._changed = trio.Event()

    def put(self, offer: Offer) -> None:
        self._offers[offer.symbol, offer.side] = offer
        self._ring()

    def clear(self, symbol: str, side: Side) -> None:
        """Withdraw what there is of this symbol and side, if anything."""
        if self._offers.pop((symbol, side), None) is not None:
            self._ring()

    def clear_all(self) -> None:
        """Withdraw everything that stands."""
        self._offers.clear()
        self._ring()

    @property
    def held(self) -> Mapping[str, str]:
        """By symbol why nothing of it stands at present."""
        return self._held

    def hold(self, reasons: Mapping[str, str]) -> None:
        """From now on no offer of these symbols stands, and every one of the others does."""
        if reasons != self._held:
            self._held = dict(reasons)
            self._ring()

    def find(self, offer_id: bytes) -> Offer | None:
        return next((offer for offer in self.standing() if offer.id == offer_id), None)

    def standing(self) -> tuple[Offer, ...]:
        """Those that can be taken now."""
        now, held = self._clock.now(), self._held
        return tuple(offer for offer in self._offers.values() if offer.symbol not in held and not offer.stale(now))

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
