"""A price feed that a test feeds by hand; whether a quote is stale is judged as always."""

from __future__ import annotations

from node.clock import Clock
from node.prices import Feed, Quote
from protocols.contract.terms import SYMBOL


class HandFed(Feed):
    def __init__(self, clock: Clock, symbol: str = SYMBOL) -> None:
        super().__init__("ws://exchange.example/realtime", clock, symbol=symbol)

    def tell(self, bid: str, ask: str | None = None) -> None:
        """Prices in USD, of this moment; the ask is the bid unless it is said."""
        now = self._clock.now()
        self.take(Quote(self.symbol, bid, ask or bid, now, now))
