"""Who gets how much of the pool at which price: the inverse contract of 1 USD (contract.md, "Numbers")."""

from collections.abc import Callable
from fractions import Fraction
from functools import cached_property

from attrs import frozen

from .numbers import PRICE_LIMIT, SATS
from .terms import Role, Side, Terms


@frozen
class Payout:
    """The payouts of a contract as functions of the price in USD; the two sides' always add up to the pool.

    The long's payout never falls when the price rises. At price 0 it is 0, whatever is owed to it.
    """

    terms: Terms

    @cached_property
    def pool(self) -> int:
        return self.terms.pool

    @cached_property
    def _unmoved(self) -> int:
        return self.terms.margin_of(Side.LONG) + self.terms.account_of(Side.LONG)

    @cached_property
    def _opening(self) -> tuple[int, int]:
        price = self.terms.opening_price
        return price.numerator, price.denominator

    def long(self, price: int | Fraction) -> int:
        """Satoshis of the long at `price` ≥ 0: clamp(margin + account + hu(10⁸·Q·(P − P₀)/(P₀·P)), 0, pool)."""
        if price <= 0:
            return 0
        p, q = price.numerator, price.denominator
        p0, q0 = self._opening
        # (P − P₀)/(P₀·P) = (p·q₀ − p₀·q)/(p₀·p) for P = p/q and P₀ = p₀/q₀; then rounded half up
        twice = 2 * SATS * self.terms.quantity * (p * q0 - p0 * q)
        below = p0 * p
        return max(0, min(self.pool, self._unmoved + (twice + below) // (2 * below)))

    def short(self, price: int | Fraction) -> int:
        return self.pool - self.long(price)

    def of(self, role: Role, price: int | Fraction) -> int:
        return self.split(self.long(price))[role]

    def split(self, long: int) -> dict[Role, int]:
        """Both payouts when the long's is `long`, maker first."""
        by_side = {Side.LONG: long, Side.SHORT: self.pool - long}
        return {role: by_side[self.terms.side(role)] for role in Role}

    def refund(self) -> dict[Role, int]:
        """Both payouts if the oracle never speaks: margins and accounts, no profit or loss."""
        return self.split(self.long(self.terms.opening_price))

    @cached_property
    def bankrupt(self) -> int:
        """The largest price of the oracle's range at which the long gets nothing."""
        return _first(lambda price: self.long(price) > 0) - 1

    @cached_property
    def saturated(self) -> int | None:
        """The smallest price of the oracle's range at which the long gets the whole pool; None if there is none."""
        price = _first(lambda price: self.long(price) == self.pool)
        return price if price < PRICE_LIMIT else None


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest price from which `holds` is true, which once true stays true; PRICE_LIMIT if never."""
    low, high = 0, PRICE_LIMIT
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
