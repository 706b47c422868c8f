"""At what price a taker closes: a fresh quote's, no worse than its user allows; and what that price brings."""

from __future__ import annotations

from fractions import Fraction

from attrs import frozen

from node.errors import Conflict
from node.prices import Feed, Quote
from protocols.contract.closing import close_outputs
from protocols.contract.funding import later_fees
from protocols.contract.numbers import PRICE_LIMIT, PRICE_PLACES, format_decimal, hu, parse_price
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Side
from protocols.contract.transactions import ContractPlan
from protocols.errors import WorldError

_CENTS = 10**PRICE_PLACES


def closing_quote(feed: Feed) -> Quote:
    """The present one. Raises `Conflict` (no_quote) if it is stale, or there is none."""
    try:
        return feed.fresh()
    except WorldError as error:
        raise Conflict(error.code, f"{error.sentence}; closing is paused, force close still works") from None


def closing_price(side: Side, quote: Quote) -> str:
    """USD: the side of the quote that favours the maker of a taker on `side` (domain.md, "Closing price")."""
    return quote.bid if side is Side.LONG else quote.ask


def worst_price(side: Side, price: str, band: str) -> str:
    """USD, in whole cents: by the part `band` worse than `price` for who closes a position on `side`."""
    part = Fraction(band) if side is Side.SHORT else -Fraction(band)
    cents = hu(parse_price(price) * (1 + part) * _CENTS)
    return format_decimal(Fraction(min(max(cents, 1), PRICE_LIMIT * _CENTS - 1), _CENTS), PRICE_PLACES)


def is_worse(side: Side, price: str, limit: str) -> bool:
    """Whether `price` is worse than `limit` for who closes a position on `side`. Raises `BadNumber`."""
    found, allowed = parse_price(price), parse_price(limit, "limit")
    return found < allowed if side is Side.LONG else found > allowed


@frozen
class Brings:
    """What a close at some price brings one side, in satoshis: `paid` = margin + account + pnl + fees_back."""

    margin: int
    account: int
    """The fees between the peers that are owed to this side."""
    pnl: int
    """What the price moved to this side; no more than its payout can show."""
    payout: int
    """By the contract."""
    fees_back: int
    """What is left of the on-chain fees that this side paid ahead."""
    fee: int
    """This side's share of the close's own on-chain fee, paid ahead, too."""

    @property
    def paid(self) -> int:
        """What the close's output holds."""
        return self.payout + self.fees_back


def brings(plan: ContractPlan, role: Role, price: str) -> Brings:
    """Raises `BadNumber` for what is no price."""
    terms = plan.terms
    payouts = Payout(terms).split(Payout(terms).long(parse_price(price)))
    output = close_outputs(plan, price)[0 if role is Role.MAKER else 1]
    later = later_fees(terms.fee_rate, plan.maker.payout_script, plan.taker.payout_script)
    ahead = later - later // 2 if role is Role.MAKER else later // 2
    margin, account, payout = terms.margin(role), terms.account(role), payouts[role]
    back = output.value - payout
    return Brings(margin, account, payout - margin - account, payout, back, ahead - back)
