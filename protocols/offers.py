"""``/cfd/offers/1``: the maker's offers, as a whole set now and again on every change."""

from __future__ import annotations

from fractions import Fraction
from itertools import count

from attrs import field, frozen
from attrs.validators import matches_re, max_len

from protocols.codec import Codec, Message, Protocol, exactly
from protocols.contract.numbers import MAX_MONEY, BadNumber, parse_price, parse_rate
from protocols.contract.symbols import ALLOWED, SYMBOLS
from protocols.contract.terms import CONTRACT_HOURS, SYMBOL, Role, Side, Terms, Timelocks, funding_to_maker, margin
from protocols.dialogue import Ask, Send, receive
from protocols.errors import RemoteProtocolError

ID_LENGTH = 16
MAX_OFFERS = 64
STALE_AFTER = 600
"""Seconds after the maker's timestamp; an older offer is not taken."""
CLOCK_SLACK = 120
"""Seconds by which the peers' clocks may differ."""


class BadOffer(BadNumber):
    """An offer that nobody could take: the field, its value and what is allowed."""


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadOffer(name, value, f"a whole number from {low} to {high}")


@frozen
class OracleKeys:
    """Which oracle settles: the scheme of its attestations and its x-only keys."""

    scheme: str = field(validator=matches_re(r"[a-z0-9-]{1,40}"))
    announcement_key: bytes = field(validator=exactly(32))
    attestation_key: bytes = field(validator=exactly(32))


@frozen(kw_only=True)
class Offer:
    """What a maker publishes. An id stands for one set of values for ever; a changed offer has a new id."""

    id: bytes = field(validator=exactly(ID_LENGTH))
    symbol: str = SYMBOL
    side: Side
    """The maker's side."""
    price: str
    min_quantity: int
    max_quantity: int
    lot: int
    """Quantities are whole multiples of this many contracts."""
    leverages: tuple[int, ...]
    """The taker's choices."""
    maker_leverage: int
    opening_fee: int
    """Satoshis, taker to maker."""
    funding_rate: str
    """Per 24 h; positive: long pays short."""
    fee_rate: int
    """sat/vB of the contract's transactions."""
    timelocks: Timelocks
    oracle: OracleKeys
    tolerance_near: str
    tolerance_far: str
    created: int
    """The maker's clock, seconds since 1970."""

    def __attrs_post_init__(self) -> None:
        if self.symbol not in SYMBOLS:
            raise BadOffer("symbol", self.symbol, ALLOWED)
        parse_price(self.price, "price")
        parse_rate(self.funding_rate, "funding_rate")
        _whole("lot", self.lot, 1, 10**9)
        _whole("min_quantity", self.min_quantity, self.lot, 10**12)
        _whole("max_quantity", self.max_quantity, self.min_quantity, 10**12)
        for name in ("min_quantity", "max_quantity"):
            if getattr(self, name) % self.lot:
                raise BadOffer(name, getattr(self, name), f"a multiple of the lot, {self.lot}")
        if not self.leverages or len(self.leverages) > 32 or list(self.leverages) != sorted(set(self.leverages)):
            raise BadOffer("leverages", self.leverages, "1 to 32 different whole numbers in rising order")
        for leverage in self.leverages:
            _whole("leverages", leverage, 1, 1_000)
        _whole("maker_leverage", self.maker_leverage, 1, 1_000)
        _whole("opening_fee", self.opening_fee, 0, MAX_MONEY)
        _whole("created", self.created, 0, 2**40)
        # What no order could make into a contract is no offer: the smallest order with the highest leverage must do.
        try:
            self.terms(self.min_quantity, self.leverages[-1])
        except BadNumber as error:
            if hasattr(self, error.field):
                raise
            allowed = f"one that makes a contract at leverage {self.leverages[-1]}, but {error}"
            raise BadOffer("min_quantity", self.min_quantity, allowed) from None

    def margins(self, quantity: int, leverage: int) -> dict[Side, int]:
        """Both sides' margins in satoshis for an order of this size."""
        price = parse_price(self.price)
        return {
            self.side: margin(self.symbol, quantity, price, self.maker_leverage),
            self.side.other: margin(self.symbol, quantity, price, leverage),
        }

    def maker_account(self, quantity: int, leverage: int) -> int:
        """Satoshis owed to the maker when such an order opens: the opening fee and 24 h of funding."""
        rate: Fraction = parse_rate(self.funding_rate)
        return self.opening_fee + funding_to_maker(self.side, self.margins(quantity, leverage), rate, CONTRACT_HOURS)

    def terms(self, quantity: int, leverage: int) -> Terms:
        """The contract that such an order makes. Raises `BadNumber` naming what cannot be."""
        terms = Terms(
            symbol=self.symbol,
            quantity=quantity,
            price=self.price,
            maker_side=self.side,
            maker_leverage=self.maker_leverage,
            taker_leverage=leverage,
            maker_account=self.maker_account(quantity, leverage),
            fee_rate=self.fee_rate,
            timelocks=self.timelocks,
            reference=self.price,
            tolerance_near=self.tolerance_near,
            tolerance_far=self.tolerance_far,
        )
        for role in Role:
            if -terms.account(role) >= terms.margin(role):
                raise BadOffer(
                    f"the {role.value}'s opening costs (satoshis)",
                    -terms.account(role),
                    f"less than its margin, {terms.margin(role)}",
                )
        return terms

    def check_order(self, quantity: int, leverage: int) -> Terms:
        """The terms of an order within this offer's limits. Raises `BadNumber` naming the field and what is allowed."""
        if quantity % self.lot or not self.min_quantity <= quantity <= self.max_quantity:
            allowed = f"a multiple of {self.lot} from {self.min_quantity} to {self.max_quantity}"
            raise BadOffer("quantity", quantity, allowed)
        if leverage not in self.leverages:
            raise BadOffer("leverage", leverage, "one of " + ", ".join(map(str, self.leverages)))
        return self.terms(quantity, leverage)

    def stale(self, now: float) -> bool:
        """Whether it is too old to be taken, by a clock that reads `now`."""
        return not self.created - CLOCK_SLACK <= now <= self.created + STALE_AFTER


@frozen
class Offers(Message):
    """The whole set that stands now."""

    number: int
    """Rises with every change on one stream."""
    offers: tuple[Offer, ...] = field(validator=max_len(MAX_OFFERS))

    def __attrs_post_init__(self) -> None:
        if len({offer.id for offer in self.offers}) != len(self.offers):
            raise ValueError("offers: an id is repeated")


PROTOCOL = Protocol("/cfd/offers/1", Codec(Offers, limit=65_536))


@frozen
class NextOffers(Ask[tuple[Offer, ...]]):
    """The maker's present set, as soon as it differs from the `last` one; None: at once."""

    last: tuple[Offer, ...] | None


@frozen
class OffersArrived(Ask[None]):
    """Hands a set to whoever runs the dialogue."""

    offers: tuple[Offer, ...]


async def maker() -> None:
    """Publish the set now and on every change, until the stream ends."""
    last: tuple[Offer, ...] | None = None
    for number in count(1):
        last = await NextOffers(last)
        await Send(Offers(number, last))


async def taker() -> None:
    """Hand on each set. Raises RemoteProtocolError when the numbers do not rise."""
    number = 0
    while True:
        arrived = await receive(Offers, within=float("inf"))
        if arrived.number <= number:
            raise RemoteProtocolError("stale_offers", f"set {arrived.number} came after set {number}")
        number = arrived.number
        await OffersArrived(arrived.offers)
