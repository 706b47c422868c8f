"""What an order would come to before it is placed: by the code that the setup itself uses, on the coins there are now.

Pure: amounts in satoshis, prices USD. Signs are the reader's own: what is positive is paid to us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from attrs import frozen

from node.wallet.selection import select
from protocols.contract.funding import (
    FundingInput,
    change_value,
    commit_fee,
    funding_needed,
    later_fees,
    side_fee,
    spend_fee,
)
from protocols.contract.numbers import PRICE_LIMIT, PRICE_PLACES, format_decimal, parse_tolerance
from protocols.contract.outcomes import liquidation_price
from protocols.contract.payout import Payout
from protocols.contract.rolling import funding_for
from protocols.contract.schedule import HOUR
from protocols.contract.scripts import ANCHOR_VALUE, p2tr
from protocols.contract.terms import CONTRACT_HOURS, Role, Side, Terms
from protocols.errors import LocalError
from protocols.offers import Offer

CENTS = 10**PRICE_PLACES
CURVE_STEPS = 120
"""Between the lowest and the highest price of a curve, beside the prices that matter by themselves."""
_SCRIPT = p2tr(bytes(32))
"""As long as those that both wallets give."""


@frozen
class ChainFees:
    """What our side pays ahead for the contract's transactions, in satoshis, at `rate` sat/vB."""

    rate: int
    lock: int
    """Our part of the lock's fee: our inputs, our change, half of the rest."""
    commit: int
    """With the anchor, half of it."""
    cet: int
    """Half of it; a close instead gives part of these two back."""
    coins: int
    """That the lock would spend of ours; 0 while there are too few, and then one is reckoned with."""

    @property
    def total(self) -> int:
        return self.lock + self.commit + self.cet


def chain_fees(terms: Terms, role: Role, free: Iterable[FundingInput]) -> tuple[ChainFees, LocalError | None]:
    """For a lock out of the `free` coins; and why they do not suffice, if they do not."""
    needed = funding_needed(role, terms, _SCRIPT)
    shortage: LocalError | None = None
    try:
        chosen = select(free, needed, terms.fee_rate)
        change = change_value(chosen, needed, terms.fee_rate, _SCRIPT)
        lock = sum(coin.value for coin in chosen) - needed - change
    except LocalError as error:
        chosen, shortage, lock = (), error, side_fee(terms.fee_rate, [_SCRIPT], _SCRIPT)
    later = later_fees(terms.fee_rate, _SCRIPT, _SCRIPT)
    ours = later - later // 2 if role is Role.MAKER else later // 2
    cet = spend_fee(terms.fee_rate, _SCRIPT, _SCRIPT) // 2
    assert ours - cet >= (commit_fee(terms.fee_rate) + ANCHOR_VALUE) // 2
    return ChainFees(terms.fee_rate, lock, ours - cet, cet, len(chosen)), shortage


def break_even(terms: Terms, role: Role, wanted: int) -> str | None:
    """The price nearest to the opening price, in whole cents, from which on this role is paid `wanted` satoshis or
    more; None: no price pays so much."""
    payout = Payout(terms)

    def enough(cents: int) -> bool:
        return payout.of(role, Fraction(cents, CENTS)) >= wanted

    lowest, highest = 1, PRICE_LIMIT * CENTS - 1
    if terms.side(role) is Side.LONG:
        found = _first(enough, lowest, highest)
    else:
        found = _first(lambda cents: not enough(cents), lowest, highest + 1) - 1
    return cents_text(found) if lowest <= found <= highest and enough(found) else None


def curve(terms: Terms, role: Role, marked: Iterable[str | int | None] = ()) -> list[tuple[str, int]]:
    """What this role is paid, from a quarter below the nearer liquidation to as much above the farther one, by price.

    The `marked` prices are among the points. The payout of a CET lies within half a step of this (`payout_steps`).
    """
    opening = terms.opening_price
    edges = [Fraction(edge) for side in (role, role.other) if (edge := liquidation_price(terms, terms.side(side)))]
    low = max(min([*edges, opening]) - opening / 4, opening / 4, Fraction(1, CENTS))
    high = min(max([*edges, opening]) + opening / 4, opening * 3, Fraction(PRICE_LIMIT - 1))
    prices = {int((low + (high - low) * step / CURVE_STEPS) * CENTS) for step in range(CURVE_STEPS + 1)}
    kept = [Fraction(price) for price in marked if price is not None]
    prices |= {int(price * CENTS) for price in [*edges, *kept] if low <= price <= high} | {int(opening * CENTS)}
    payout = Payout(terms)
    return [(cents_text(cents), payout.of(role, Fraction(cents, CENTS))) for cents in sorted(prices)]


def payout_steps(terms: Terms) -> dict[str, int]:
    """The largest difference between the payouts at the two ends of one CET's prices, near the opening and away."""
    return {
        name: int(terms.pool * parse_tolerance(getattr(terms, f"tolerance_{name}"), f"tolerance_{name}"))
        for name in ("near", "far")
    }


def order_view(offer: Offer, terms: Terms, free: Iterable[FundingInput]) -> dict[str, Any]:
    """A taker's order from this offer with these terms, in full."""
    role = Role.TAKER
    fees, shortage = chain_fees(terms, role, free)
    margin, account = terms.margin(role), terms.account(role)
    even, after_fees = (break_even(terms, role, wanted) for wanted in (margin, margin + fees.total))
    per_day = -funding_for(terms, offer.funding_rate, CONTRACT_HOURS)
    return {
        "symbol": terms.symbol,
        "side": terms.side(role).value,
        "quantity": terms.quantity,
        "leverage": terms.taker_leverage,
        "price": terms.price,
        "margin": margin,
        "maker_margin": terms.margin(role.other),
        "pool": terms.pool,
        "opening_fee": -offer.opening_fee,
        "funding": {"rate": offer.funding_rate, "per_day": per_day, "hours": CONTRACT_HOURS},
        "account": account,
        "fees": {
            "rate": fees.rate,
            "lock": fees.lock,
            "commit": fees.commit,
            "cet": fees.cet,
            "total": fees.total,
            "coins": fees.coins,
        },
        "total": margin + fees.total,
        "liquidation_price": _text(liquidation_price(terms, terms.side(role))),
        "maker_liquidation_price": _text(liquidation_price(terms, terms.side(role.other))),
        "break_even": even,
        "break_even_after_fees": after_fees,
        "curve": [list(point) for point in curve(terms, role, (even, after_fees))],
        "payout_steps": payout_steps(terms),
        "expires_in": CONTRACT_HOURS * HOUR,
        "problem": None if shortage is None else {"code": shortage.code, "sentence": shortage.sentence},
    }


def cents_text(cents: int) -> str:
    """USD as a decimal string."""
    return format_decimal(Fraction(cents, CENTS), PRICE_PLACES)


def _text(price: int | None) -> str | None:
    return None if price is None else str(price)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number from `low` to `high` from which `holds` is true, which once true stays true; else `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
