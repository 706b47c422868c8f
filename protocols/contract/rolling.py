"""What a rollover changes in the terms of a contract, and the bounds within which a peer's word is taken.

Source: domain.md, "Constants" and "Fees between the peers". Times are the oracle's calendar, seconds since 1970;
amounts are satoshis.
"""

from fractions import Fraction
from math import ceil, floor

from attrs import evolve

from ..errors import Declined, LocalError
from .numbers import PRICE_PLACES, RATE_PLACES, format_decimal, parse_rate
from .outcomes import liquidation_price
from .schedule import HOUR
from .terms import Side, Terms, funding_to_maker

START_FROM, START_UNTIL = 23 * HOUR, HOUR
"""A rollover begins within these seconds before expiry. Later, its price would be a free option."""
PRICE_BAND = Fraction(2, 100)
"""How far the price of the terms may lie from the taker's own feed."""
RATE_LEAST_BOUND, RATE_MOST = Fraction("0.001"), Fraction("0.005")


def check_start(expiry: int, now: int, refusal: type[LocalError] | type[Declined]) -> None:
    """Raises `refusal` ("too_early", "too_late") unless a contract of this expiry may be rolled over now."""
    if now < expiry - START_FROM:
        raise refusal("too_early", f"the contract expires in {expiry - now} s, a rollover starts at {START_FROM} s")
    if now > expiry - START_UNTIL:
        left = f"in {expiry - now} s" if now < expiry else f"{now - expiry} s ago"
        raise refusal("too_late", f"the contract expires {left}, a rollover starts up to {START_UNTIL} s before")


def default_rate_bound(opening_rate: str) -> str:
    """The largest |rate| per 24 h that a taker accepts by default: max(10 × |opening rate|, 0.1 %), at most 0.5 %."""
    bound = min(max(10 * abs(parse_rate(opening_rate, "funding_rate")), RATE_LEAST_BOUND), RATE_MOST)
    return format_decimal(bound, RATE_PLACES)


def price_bounds(feed: Fraction) -> tuple[Fraction, Fraction]:
    """The lowest and the highest price in whole cents that lie within 2 % of our own feed's."""
    scale = 10**PRICE_PLACES
    low, high = feed * (1 - PRICE_BAND) * scale, feed * (1 + PRICE_BAND) * scale
    return Fraction(ceil(low), scale), Fraction(floor(high), scale)


def funding_for(terms: Terms, rate: str, hours: int) -> int:
    """Satoshis of funding that the maker receives (negative: pays) for so many more hours. Raises `BadNumber`."""
    margins = {side: terms.margin_of(side) for side in Side}
    return funding_to_maker(terms.maker_side, margins, parse_rate(rate, "funding_rate"), hours)


def rolled_terms(terms: Terms, *, rate: str, price: str, hours: int) -> Terms:
    """The terms of the next contract: its expiry is `hours` > 0 later, `price` is the present one.

    The opening price, the margins and the pool stay; the funding goes into the fee account. Raises `BadNumber`.
    """
    return evolve(terms, reference=price, maker_account=terms.maker_account + funding_for(terms, rate, hours))


def liquidated_at(terms: Terms, price: Fraction) -> Side | None:
    """The side that a contract with these terms would liquidate if this price were attested; None: neither."""
    attested = floor(price)
    long, short = (liquidation_price(terms, side) for side in (Side.LONG, Side.SHORT))
    if long is not None and attested <= long:
        return Side.LONG
    if short is not None and attested >= short:
        return Side.SHORT
    return None
