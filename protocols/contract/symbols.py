"""What differs from one contract symbol to the next; everything else is the same code for all (domain.md).

A symbol says what one contract is worth to the long at a price. From that alone follow profits and margins:
PnL(long) = N·(worth(P) − worth(P₀)), margin = N·|worth(P₀)| / L.
"""

from collections.abc import Callable, Mapping

from attrs import field, frozen

from .numbers import SATS

MULTIPLIER = 100
"""Satoshis that a quanto contract gains with each USD: m = 0.000001 BTC."""


def _inverse(p: int, q: int) -> tuple[int, int]:
    return -SATS * q, p


def _quanto(p: int, q: int) -> tuple[int, int]:
    return MULTIPLIER * p, q


@frozen
class Symbol:
    """One contract symbol."""

    name: str
    worth: Callable[[int, int], tuple[int, int]] = field(repr=False)
    """Satoshis that one contract is worth to the long at the price p/q USD, as numerator and denominator.

    It rises with the price. A denominator of 0, at price 0, means that the long has lost more than anyone can have.
    """
    index: str
    """The price index that oracles attest, as BitMEX calls it."""
    unit: str
    """Of its price, in the words of the DLC specification."""
    lot: int
    """Contracts that quantities are multiples of, unless the maker sets another number."""
    region_step: int
    """Liquidation regions end at multiples of this many USD, a power of two: few prefixes, near enough to the edge."""


BTCUSD = Symbol("BTCUSD", _inverse, index="BXBT", unit="usd/btc", lot=100, region_step=256)
"""The inverse contract: 1 contract is 1 USD."""
ETHUSD = Symbol("ETHUSD", _quanto, index="BETH", unit="usd/eth", lot=1, region_step=8)
"""The quanto contract: 1 contract is `MULTIPLIER` satoshis for each USD that one ether costs."""

SYMBOLS: Mapping[str, Symbol] = {symbol.name: symbol for symbol in (BTCUSD, ETHUSD)}
ALLOWED = " or ".join(SYMBOLS)
"""What a field that names a symbol may say."""
