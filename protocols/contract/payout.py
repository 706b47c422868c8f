"""Who gets how much of the pool at which price: a function of the symbol (contract.md, "Numbers")."""

from collections.abc import Callable
from fractions import Fraction
from functools import cached_property

from attrs import frozen

from .numbers import PRICE_LIMIT, half_up
from .symbols import SYMBOLS, Symbol
from .terms import Role, Side, Terms


@frozen
class Payout:
    """The payouts of a contract as functions of the price in USD; the two sides' always add up to the pool.

    The long's payout never falls when the price rises.
    """

    terms: Terms

    @cached_property
    def pool(self) -> int:
        return self.terms.pool

    @cached_property
    def _unmoved(self) -> int:
        return self.terms.margin_of(Side.LONG) + self.terms.account_of(Side.LONG)

    @cached_property
    def _symbol(self) -> Symbol:
        return SYMBOLS[self.terms.symbol]

    @cached_property
    def _opening(self) -> tuple[int, int]:
        price = self.terms.opening_price
        return self._symbol.worth(price.numerator, price.denominator)

    def long(self, price: int | Fraction) -> int:
        """Satoshis of the long at `price` ≥ 0: clamp(margin + account + hu(N·(worth(P) − worth(P₀))), 0, pool)."""
        worth, of = self._symbol.worth(price.numerator, price.denominator)
        if of == 0:
            return 0
        worth0, of0 = self._opening
        gained = half_up(self.terms.quantity * (worth * of0 - worth0 * of), of * of0)
        return max(0, min(self.pool, self._unmoved + gained))

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
    def bankrupt(self) -> int | None:
        """The largest price of the oracle's range at which the long gets nothing; None if there is none."""
        price = _first(lambda price: self.long(price) > 0)
        return price - 1 if price else None

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
