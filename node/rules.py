"""A maker's rules, on numbers and quotes alone: how much it takes (`node.policy`), and at what price.

A rule that does not allow something raises `Declined`, with the words that the taker is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from attrs import field, frozen

from node.policy import Policy
from node.position.state import Position
from node.prices import Quote
from protocols.contract.numbers import PRICE_PLACES, format_decimal, hu, parse_price
from protocols.contract.terms import Side
from protocols.contract_setup import Order
from protocols.errors import Declined
from protocols.offers import Offer

# --- how much ---------------------------------------------------------------------------------------------------------


@frozen
class Stake:
    """What the maker has in one position, or would have in an order."""

    peer: bytes
    quantity: int
    """Contracts that the maker is long, or short if negative."""
    leverage: int = field(repr=False)
    offer: Offer = field(repr=False)

    @property
    def margin(self) -> int:
        """The maker's, in satoshis."""
        return self.offer.margins(abs(self.quantity), self.leverage)[self.offer.side]


def stake_of_order(order: Order, peer: bytes) -> Stake:
    return _stake(peer, order.offer, order.quantity, order.leverage)


def stakes_of(positions: Iterable[Position]) -> list[Stake]:
    """What is in a maker's positions that have begun and not ended."""
    return [
        _stake(position.peer, position.offer, position.quantity, position.leverage)
        for position in positions
        if position.offer is not None and not position.ended
    ]


def _stake(peer: bytes, offer: Offer, quantity: int, leverage: int) -> Stake:
    return Stake(peer, quantity if offer.side is Side.LONG else -quantity, leverage, offer)


def exposure(stakes: Iterable[Stake]) -> Counter[str]:
    """By symbol the contracts that the maker is long (positive) or short."""
    total: Counter[str] = Counter()
    for stake in stakes:
        total[stake.offer.symbol] += stake.quantity
    return total


def check_size(policy: Policy, order: Order) -> None:
    """Raises `Declined` unless one order may be so large or small."""
    symbol = order.offer.symbol
    least, most = policy.min_quantity.get(symbol, 1), policy.max_quantity.get(symbol, 0)
    if order.quantity > most:
        raise Declined("bad_quantity", f"quantity is {order.quantity}, allowed is at most {most}")
    if order.quantity < least:
        raise Declined("bad_quantity", f"quantity is {order.quantity}, allowed is at least {least}")


def check_stake(policy: Policy, new: Stake, others: Sequence[Stake]) -> None:
    """Raises `Declined` unless the maker may take `new` beside all that it has already.

    What lessens an exposure beyond the limit is taken: the limit may have been lowered meanwhile.
    """
    symbol = new.offer.symbol
    before = exposure(others)[symbol]
    after = before + new.quantity
    if abs(after) > policy.max_exposure.get(symbol, 0) and abs(after) > abs(before):
        raise Declined("max_exposure", "the maker takes no more on this side at present")
    if policy.max_margin is not None and new.margin + sum(each.margin for each in others) > policy.max_margin:
        raise Declined("max_margin", "the maker has no more margin to give at present")
    of_peer = [each for each in others if each.peer == new.peer]
    if len(of_peer) >= policy.max_positions_per_peer:
        raise Declined(
            "max_positions", f"you have {len(of_peer)} positions, allowed is {policy.max_positions_per_peer}"
        )
    most = policy.max_quantity_per_peer.get(symbol)
    total = abs(new.quantity) + sum(abs(each.quantity) for each in of_peer if each.offer.symbol == symbol)
    if most is not None and total > most:
        raise Declined("max_quantity", f"with this order you would have {total} contracts, allowed is {most}")


# --- at what price ----------------------------------------------------------------------------------------------------


def check_order_price(policy: Policy, offer: Offer, quote: Quote) -> None:
    """Raises `Declined` unless the offer's price is still within the band of what the market gives for that side.

    To be long the maker pays at most a little more than the bid, at which it can get rid of it again; to be short it
    takes at most a little less than the ask.
    """
    side = quote.bid if offer.side is Side.LONG else quote.ask
    _check_price(offer.side, offer.price, side, policy.price_band)


def check_close_price(policy: Policy, side: Side, price: str, quote: Quote) -> None:
    """Raises `Declined` unless a maker of this side may close at this price (USD).

    It closes at the side of the quote that favours it: long at the ask, short at the bid (domain.md), or a band worse.
    """
    favoured = quote.ask if side is Side.LONG else quote.bid
    _check_price(side.other, price, favoured, policy.close_band)  # who closes takes the other side


def _check_price(side: Side, price: str, quoted: str, band: str) -> None:
    """Whoever goes long at `price` pays at most the band more than `quoted`; who goes short gets at most it less."""
    part = Fraction(band)
    if side is Side.LONG:
        limit, what = parse_price(quoted) * (1 + part), "at most"
        within = parse_price(price) <= limit
    else:
        limit, what = parse_price(quoted) * (1 - part), "at least"
        within = parse_price(price) >= limit
    if not within:
        raise Declined("price_moved", f"price is {price}, the maker takes {what} {_cents(limit)} now")


def middle(quote: Quote) -> str:
    """The price (USD) halfway between bid and ask, in whole cents."""
    return _cents((parse_price(quote.bid) + parse_price(quote.ask)) / 2)


def _cents(price: Fraction) -> str:
    scale = 10**PRICE_PLACES
    return format_decimal(Fraction(hu(price * scale), scale), PRICE_PLACES)
