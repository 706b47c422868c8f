"""From the payout curve to CETs: which prices share one transaction, and what it pays (contract.md).

The oracle attests a price in binary digits, so a set of prices that begin with the same digits is what one signature
can cover. Both peers generate the same list for themselves; it is never sent.
"""

from collections.abc import Iterable, Iterator
from math import ceil, floor

from attrs import frozen

from .numbers import DIGITS, PRICE_LIMIT, parse_tolerance
from .payout import Payout
from .symbols import SYMBOLS
from .terms import Side, Terms

SIGNATURE_BYTES = 65
"""An adaptor signature on the wire."""


@frozen
class Outcome:
    """The prices of one event that begin with the same digits, and what their CET pays."""

    event: int
    """Which of the contract's events, from 0; the last one settles."""
    digits: str
    """One to twenty binary digits, highest first."""
    low: int
    high: int
    """The lowest and the highest price that begin with `digits`."""
    long: int
    """Satoshis that the CET pays to the long; the rest of the pool is the short's."""
    settlement: bool
    """Of the last event: the CET carries the settlement lock, else the liquidation lock."""

    def of(self, event: int) -> "Outcome":
        """The same of another event."""
        return Outcome(event, self.digits, self.low, self.high, self.long, self.settlement)

    def timelock(self, terms: Terms) -> int:
        """Blocks after the commit's confirmation before which the CET is not valid."""
        return terms.timelocks.settlement if self.settlement else terms.timelocks.liquidation


@frozen
class ContractSize:
    """What a contract costs to set up, and how far its CETs stray from the exact payout."""

    settlement_cets: int
    liquidation_cets: int
    wire_bytes: int
    """Adaptor signatures that each side sends for all CETs of all events."""
    worst_error: int
    """Satoshis: the most by which a settlement CET differs from the exact payout at any price it covers."""


def outcomes(terms: Terms, events: int) -> list[Outcome]:
    """All outcomes of a contract's events, one CET each, by event and then by lowest price.

    The last event settles at every price. The earlier ones carry the liquidation regions alone.
    """
    if events < 1:
        raise ValueError(f"a contract has at least one event, not {events}")
    regions = liquidation_regions(terms)
    early = [region.of(event) for event in range(events - 1) for region in regions]
    return early + [outcome.of(events - 1) for outcome in settlement_outcomes(terms)]


def settlement_outcomes(terms: Terms) -> list[Outcome]:
    """The whole price range, split until the payouts at a piece's two ends differ by at most the tolerance.

    Pieces are in order of price, of event 0. Each pays the mean of its ends, so its error is half the tolerance
    at most.
    """
    payout = Payout(terms)
    reference = terms.reference_price
    near = int(payout.pool * parse_tolerance(terms.tolerance_near, "tolerance_near"))
    far = int(payout.pool * parse_tolerance(terms.tolerance_far, "tolerance_far"))

    near_from, near_to = ceil(reference * 4 / 5), floor(reference * 6 / 5)
    pieces = []
    waiting = [("", 0, PRICE_LIMIT - 1, payout.long(0), payout.long(PRICE_LIMIT - 1))]
    while waiting:
        digits, low, high, at_low, at_high = waiting.pop()
        tolerance = near if high >= near_from and low <= near_to else far
        if digits and at_high - at_low <= tolerance:
            pieces.append(Outcome(0, digits, low, high, (at_low + at_high + 1) // 2, settlement=True))
        else:
            middle = (low + high + 1) // 2
            waiting.append((digits + "1", middle, high, payout.long(middle), at_high))
            waiting.append((digits + "0", low, middle - 1, at_low, payout.long(middle - 1)))
    return pieces


def liquidation_regions(terms: Terms) -> list[Outcome]:
    """The prices at which one side has nothing left, as few digit prefixes as cover them, by price; of event 0."""
    payout = Payout(terms)
    below, above = _edges(payout)
    return [
        Outcome(0, digits, *_bounds(digits), long=long, settlement=False)
        for low, high, long in ((0, below, 0), (above, PRICE_LIMIT, payout.pool))
        for digits in prefixes(low, high)
    ]


def liquidation_price(terms: Terms, side: Side) -> int | None:
    """The price that liquidates this side, of all such prices the nearest to the market; None: no price does.

    It is what the contract enforces, fees included: the long is liquidated at this price or below, the short at
    this price or above.
    """
    below, above = _edges(Payout(terms))
    if side is Side.LONG:
        return below - 1 if below > 0 else None
    return above if above < PRICE_LIMIT else None


def covering(cets: Iterable[Outcome], event: int, price: int) -> Outcome | None:
    """The outcome of this event that covers `price` (at or above 2²⁰: the oracle's highest); None if none does."""
    price = min(price, PRICE_LIMIT - 1)
    return next((cet for cet in cets if cet.event == event and cet.low <= price <= cet.high), None)


def measure(terms: Terms, events: int) -> ContractSize:
    """The size of a contract with these terms and this many events, and its worst rounding."""
    payout, cets = Payout(terms), outcomes(terms, events)
    settlement = [cet for cet in cets if cet.settlement]
    return ContractSize(
        settlement_cets=len(settlement),
        liquidation_cets=len(cets) - len(settlement),
        wire_bytes=SIGNATURE_BYTES * len(cets),
        # the payout is monotone, so it strays furthest at a piece's ends
        worst_error=max(abs(payout.long(price) - cet.long) for cet in settlement for price in (cet.low, cet.high)),
    )


def _edges(payout: Payout) -> tuple[int, int]:
    """Liquidation below the first and from the second price on: the exact edges, moved inward to the symbol's step."""
    step = SYMBOLS[payout.terms.symbol].region_step
    below = 0 if payout.bankrupt is None else (payout.bankrupt + 1) // step * step
    above = PRICE_LIMIT if payout.saturated is None else -(-payout.saturated // step) * step
    return below, above


def _bounds(digits: str) -> tuple[int, int]:
    size = 1 << (DIGITS - len(digits))
    low = int(digits, 2) * size
    return low, low + size - 1


def prefixes(low: int, high: int) -> Iterator[str]:
    """The fewest digit prefixes, at least one digit each, that cover the prices low ≤ price < high, ascending."""
    while low < high:
        # the largest aligned block that starts at `low` and still ends within `high`; one digit is the least
        size = min(low & -low or PRICE_LIMIT // 2, 1 << (high - low).bit_length() - 1, PRICE_LIMIT // 2)
        length = DIGITS + 1 - size.bit_length()
        yield f"{low // size:0{length}b}"
        low += size
