"""The numbers both peers compute, to the bit: integers and exact fractions, never float, never Decimal.

On the wire a price or a rate is a decimal string in canonical form (one string per value: no sign but a
leading minus, no needless zeros), in computation a `fractions.Fraction`. Money is integer satoshi.
"""

import hashlib
import re
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

SATS = 10**8
"""Satoshis in a bitcoin."""
DUST = 330
"""An output below this many satoshis is left out."""
MIN_MARGIN = 5_000
"""The smallest margin of a side, in satoshis."""
MAX_MONEY = 21_000_000 * SATS
"""No amount in Bitcoin is larger than this many satoshis."""
DIGITS = 20
"""Binary digits of the oracle's price."""
PRICE_LIMIT = 2**DIGITS
"""The oracle's prices are the whole numbers below this."""
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
"""Of secp256k1: scalars are numbers modulo this."""
PRICE_PLACES = 2
RATE_PLACES = 8

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", re.ASCII)


class BadNumber(ValueError):
    """A value that is not allowed: which field, what it is, and what would be allowed.

    The caller knows whose value it was and raises a `LocalError` or a `RemoteProtocolError` from it.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(field, value, allowed)
        self.field = field
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.field} is {shown if len(shown) <= 60 else shown[:57] + '...'}, allowed is {self.allowed}"


def hu(x: Fraction | int) -> int:
    """Round half up: floor(x + 1/2)."""
    return half_up(x.numerator, x.denominator)


def half_up(numerator: int, denominator: int) -> int:
    """`hu` of a quotient that need not be in lowest terms; the denominator is above 0."""
    return (2 * numerator + denominator) // (2 * denominator)


def parse_decimal(text: str, field: str, *, places: int, low: Fraction, high: Fraction, allowed: str) -> Fraction:
    """The value of a canonical decimal string with at most `places` decimals and low ≤ value ≤ high."""
    # the length is bounded before anything reads the digits: int() of a long string takes quadratic time
    if len(text) <= 32 and _DECIMAL.fullmatch(text) and text != "-0":
        value = Fraction(text)
        if low <= value <= high and len(text.partition(".")[2]) <= places:
            return value
    raise BadNumber(field, text, allowed)


def parse_price(text: str, field: str = "price") -> Fraction:
    """A price in USD, above 0 and below 2²⁰, with at most 2 decimals. Raises `BadNumber`."""
    cent = Fraction(1, 10**PRICE_PLACES)
    return parse_decimal(
        text,
        field,
        places=PRICE_PLACES,
        low=cent,
        high=PRICE_LIMIT - cent,
        allowed=f"a decimal string above 0 and below {PRICE_LIMIT} with at most {PRICE_PLACES} places and "
        "no needless zeros, such as 54000.5",
    )


def parse_rate(text: str, field: str = "rate") -> Fraction:
    """A funding rate per 24 hours, between -1 and 1, with at most 8 decimals. Raises `BadNumber`."""
    return parse_decimal(
        text,
        field,
        places=RATE_PLACES,
        low=Fraction(-1),
        high=Fraction(1),
        allowed=f"a decimal string from -1 to 1 with at most {RATE_PLACES} places and no needless zeros, "
        "such as 0.0001",
    )


def parse_tolerance(text: str, field: str) -> Fraction:
    """The largest payout step inside one CET, as a part of the pool. Raises `BadNumber`.

    Bounded below, because the number of CETs grows as its inverse.
    """
    return parse_decimal(
        text,
        field,
        places=RATE_PLACES,
        low=Fraction("0.0005"),
        high=Fraction("0.1"),
        allowed=f"a decimal string from 0.0005 to 0.1 with at most {RATE_PLACES} places and no needless zeros, "
        "such as 0.002",
    )


def parse_part(text: str, field: str, high: str) -> Fraction:
    """A part of a price from 0 to `high`, with at most 8 decimals, such as a spread. Raises `BadNumber`."""
    return parse_decimal(
        text,
        field,
        places=RATE_PLACES,
        low=Fraction(0),
        high=Fraction(high),
        allowed=f"a decimal string from 0 to {high} with at most {RATE_PLACES} places and no needless zeros, "
        "such as 0.0025",
    )


def format_decimal(value: Fraction, places: int) -> str:
    """The canonical decimal string of a value that has at most `places` decimals.

    Raises `ValueError` for a value that needs more: rounding is the caller's decision, not ours.
    """
    scaled = value * 10**places
    if scaled.denominator != 1:
        raise ValueError(f"{value} has more than {places} decimal places")
    whole, part = divmod(abs(scaled.numerator), 10**places)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{whole}.{part:0{places}d}".rstrip("0").rstrip(".") if places else f"{sign}{whole}"


@lru_cache(maxsize=64)
def _tagged(tag: str) -> "_Hash":
    digest = hashlib.sha256(tag.encode()).digest()
    return hashlib.sha256(digest + digest)


def tagged_hash(tag: str, data: bytes) -> bytes:
    """BIP340's tagged hash: SHA256(SHA256(tag) ‖ SHA256(tag) ‖ data)."""
    state = _tagged(tag).copy()
    state.update(data)
    return state.digest()
