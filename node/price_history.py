"""What the quotes were, for a chart: the middle of bid and ask as candles. In memory only, since the node's start, and
bounded; nothing is decided by it."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

from attrs import evolve, frozen

from node.prices import Quote
from node.rules import middle

RESOLUTIONS = {"10s": 10, "1m": 60, "5m": 300, "15m": 900, "1h": 3600}
"""Seconds of one candle."""
KEPT = 500
"""Candles of each resolution."""


@frozen
class Candle:
    """Prices in USD as decimal strings; `time` is when it begins, seconds since 1970."""

    time: int
    open: str
    high: str
    low: str
    close: str

    def with_price(self, price: str) -> Candle:
        high, low = (choose(self.high, price, self.low, key=Fraction) for choose in (max, min))
        return evolve(self, high=high, low=low, close=price)


class PriceHistory:
    """Of one symbol."""

    def __init__(self) -> None:
        self._candles: dict[str, deque[Candle]] = {name: deque(maxlen=KEPT) for name in RESOLUTIONS}

    def take(self, quote: Quote) -> None:
        """A quote that came: it counts at the moment that it is of."""
        price = middle(quote)
        for name, seconds in RESOLUTIONS.items():
            candles, begins = self._candles[name], int(quote.since // seconds * seconds)
            if not candles or candles[-1].time < begins:
                candles.append(Candle(begins, price, price, price, price))
            else:
                candles[-1] = candles[-1].with_price(price)

    def candles(self, resolution: str) -> tuple[Candle, ...]:
        """The oldest first; none for seconds without a quote. `resolution` is one of `RESOLUTIONS`."""
        return tuple(self._candles[resolution])
