"""What two peers agree on before they sign anything: the terms of one contract, and what they amount to."""

from enum import Enum
from fractions import Fraction
from math import ceil

from attrs import frozen

from .numbers import MAX_MONEY, MIN_MARGIN, BadNumber, half_up, parse_price, parse_tolerance
from .symbols import ALLOWED, SYMBOLS

CONTRACT_HOURS = 24
"""From order or rollover to expiry; also the span that a funding rate is for."""
MAX_FEE_RATE = 10_000
"""sat/vB; beyond it lies a slip of the finger, not a market."""
SYMBOL = "BTCUSD"
"""Where none is named."""
TOLERANCE_NEAR, TOLERANCE_FAR = "0.002", "0.01"
"""Largest payout step inside one CET near the reference price and away from it, as parts of the pool."""


class Side(Enum):
    """Who gains when the price rises (long) or falls (short)."""

    LONG = "long"
    SHORT = "short"

    @property
    def other(self) -> "Side":
        return Side.SHORT if self is Side.LONG else Side.LONG


class Role(Enum):
    """Who published the offer (maker) and who took it (taker)."""

    MAKER = "maker"
    TAKER = "taker"

    @property
    def other(self) -> "Role":
        return Role.TAKER if self is Role.MAKER else Role.MAKER


class BadTerms(BadNumber):
    """Terms that no contract can have: `field`, `value` and what is `allowed`."""


def _whole(field: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise BadTerms(field, value, f"a whole number from {low} to {high}")


@frozen
class Timelocks:
    """Blocks after the commit's confirmation (BIP68) at which each kind of transaction may follow it.

    Liquidation comes first: when the price crossed the edge and came back, the liquidation is what counts.
    """

    liquidation: int = 144
    settlement: int = 156
    refund: int = 576

    def __attrs_post_init__(self) -> None:
        _whole("timelocks.liquidation", self.liquidation, 1, 0xFFFF)
        _whole("timelocks.settlement", self.settlement, self.liquidation + 1, 0xFFFF)
        _whole("timelocks.refund", self.refund, self.settlement + 1, 0xFFFF)


REGTEST_TIMELOCKS = Timelocks(liquidation=12, settlement=18, refund=216)


def margin(symbol: str, quantity: int, price: Fraction, leverage: int) -> int:
    """Satoshis that a side locks for `quantity` contracts at `price` USD > 0: hu(N·|worth(P₀)| / L)."""
    satoshis, of = SYMBOLS[symbol].worth(price.numerator, price.denominator)
    return half_up(quantity * abs(satoshis), of * leverage)


def funding_fee(receiving_margin: int, rate: Fraction, hours: int) -> int:
    """Satoshis paid to the side whose margin is `receiving_margin` for `hours`, at `rate` per 24 hours."""
    return ceil(receiving_margin * abs(rate) * hours / CONTRACT_HOURS)


def funding_to_maker(maker_side: Side, margins: dict[Side, int], rate: Fraction, hours: int) -> int:
    """Satoshis of funding that the maker receives (negative: pays). A positive rate: long pays short."""
    receiver = Side.SHORT if rate > 0 else Side.LONG
    fee = funding_fee(margins[receiver], rate, hours)
    return fee if maker_side is receiver else -fee


@frozen(kw_only=True)
class Terms:
    """One contract's terms, checked on construction (`BadTerms`); both peers hold equal ones.

    Decimal strings are canonical, so equal values are equal strings.
    """

    symbol: str = SYMBOL
    quantity: int
    """Contracts."""
    price: str
    """Opening price, USD."""
    maker_side: Side
    maker_leverage: int
    taker_leverage: int
    maker_account: int
    """Satoshis owed to the maker; the taker's account is the negative."""
    fee_rate: int
    """sat/vB of the contract's own transactions, for the position's life."""
    timelocks: Timelocks
    reference: str
    """The price (USD) near which payouts are split finely: the opening price, at rollover the present one."""
    tolerance_near: str = TOLERANCE_NEAR
    """Largest payout step inside one CET near the reference, as a part of the pool."""
    tolerance_far: str = TOLERANCE_FAR
    """The same away from the reference."""

    def __attrs_post_init__(self) -> None:
        if self.symbol not in SYMBOLS:
            raise BadTerms("symbol", self.symbol, ALLOWED)
        _whole("quantity", self.quantity, 1, MAX_MONEY)
        for field in ("maker_leverage", "taker_leverage"):
            _whole(field, getattr(self, field), 1, 1_000)
        _whole("maker_account", self.maker_account, -MAX_MONEY, MAX_MONEY)
        _whole("fee_rate", self.fee_rate, 2, MAX_FEE_RATE)
        try:
            parse_price(self.price, "price")
            parse_price(self.reference, "reference")
            if parse_tolerance(self.tolerance_near, "tolerance_near") > parse_tolerance(
                self.tolerance_far, "tolerance_far"
            ):
                raise BadTerms("tolerance_near", self.tolerance_near, f"at most tolerance_far, {self.tolerance_far}")
        except BadNumber as error:
            raise BadTerms(error.field, error.value, error.allowed) from None
        for role in Role:
            _whole(f"{role.value}'s margin (satoshis)", self.margin(role), MIN_MARGIN, MAX_MONEY // 2)

    def side(self, role: Role) -> Side:
        return self.maker_side if role is Role.MAKER else self.maker_side.other

    def role(self, side: Side) -> Role:
        return Role.MAKER if side is self.maker_side else Role.TAKER

    def leverage(self, side: Side) -> int:
        return self.maker_leverage if side is self.maker_side else self.taker_leverage

    def margin(self, role: Role) -> int:
        """Satoshis that this role locks, on-chain fees aside."""
        return self.margin_of(self.side(role))

    def margin_of(self, side: Side) -> int:
        return margin(self.symbol, self.quantity, self.opening_price, self.leverage(side))

    def account(self, role: Role) -> int:
        """Satoshis owed to this role out of the other's margin; negative: owed by it."""
        return self.maker_account if role is Role.MAKER else -self.maker_account

    def account_of(self, side: Side) -> int:
        return self.account(self.role(side))

    @property
    def pool(self) -> int:
        """Both margins, in satoshis: what every pair of payouts adds up to."""
        return self.margin(Role.MAKER) + self.margin(Role.TAKER)

    @property
    def opening_price(self) -> Fraction:
        return parse_price(self.price)

    @property
    def reference_price(self) -> Fraction:
        return parse_price(self.reference, "reference")
