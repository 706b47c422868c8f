"""The small protocols, both roles against each other in memory, and each role against a peer that lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from protocols import identify, offers, ping
from protocols.codec import Message
from protocols.contract.numbers import BadNumber
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Side, Timelocks
from protocols.dialogue import Dialogue, Send, receive
from protocols.errors import PeerGone, RemoteProtocolError
from protocols.identify import Identity, PeerRole
from protocols.offers import CLOCK_SLACK, MAX_OFFERS, STALE_AFTER, NextOffers, Offer, Offers, OffersArrived
from protocols.ping import Answered, NextNonce, Ping, Pong
from protocols.testing import End, Pair
from tests.setups import NOW, OFFER


async def sends(*messages: Message) -> None:
    """A peer that follows no protocol."""
    for message in messages:
        await Send(message)


# --- ping -------------------------------------------------------------------------------------------------------------


def nonces(count: int) -> tuple[dict[Any, Callable[[Any], Any]], list[str]]:
    """Answers for so many pings, and what happened."""
    left = [bytes([number]) * 32 for number in range(count)]
    happened: list[str] = []

    def next_nonce(_: NextNonce) -> bytes | None:
        happened.append("next")
        return left.pop() if left else None

    return {NextNonce: next_nonce, Answered: lambda _: happened.append("answered")}, happened


def test_pings_go_on_until_the_host_has_no_more() -> None:
    answers, happened = nonces(3)
    opener, listener = Pair(
        ping.PROTOCOL.codec, End("opener", ping.opener(), answers=answers), End("listener", ping.listener())
    ).run()
    assert opener.error is listener.error is None
    assert happened == ["next", "answered"] * 3 + ["next"]
    assert listener.sent == [Pong(bytes([number]) * 32) for number in (2, 1, 0)]


def test_a_pong_of_other_bytes_is_refused() -> None:
    async def liar() -> None:
        await receive(Ping, within=5)
        await Send(Pong(b"?" * 32))
        await receive(Ping, within=5)

    answers, happened = nonces(1)
    opener, listener = Pair(
        ping.PROTOCOL.codec, End("opener", ping.opener(), answers=answers), End("listener", liar())
    ).run()
    assert isinstance(opener.error, RemoteProtocolError)
    assert opener.error.code == "wrong_pong"
    assert getattr(listener.error, "code", None) == "wrong_pong"
    assert "answered" not in happened


def test_a_listener_that_gets_a_pong_says_what_it_expects() -> None:
    _, listener = Pair(
        ping.PROTOCOL.codec, End("opener", sends(Pong(bytes(32)))), End("listener", ping.listener())
    ).run()
    assert isinstance(listener.error, RemoteProtocolError)
    assert listener.error.code == "unexpected_message"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_has_32_bytes(size: int) -> None:
    for kind in (Ping, Pong):
        with pytest.raises(ValueError, match="nonce must be 32 bytes"):
            kind(bytes(size))


# --- identify ---------------------------------------------------------------------------------------------------------

WHO = Identity("cfdnode", "0.1.0", ("/cfd/identify/1", "/cfd/ping/1"), "regtest", PeerRole.MAKER)


def identified(network: str, listener: Dialogue[Any]) -> End:
    opener, _ = Pair(identify.PROTOCOL.codec, End("opener", identify.opener(network)), End("listener", listener)).run()
    return opener


def test_the_opener_learns_who_is_there() -> None:
    assert identified("regtest", identify.listener(WHO)).result == WHO


def test_another_network_is_named() -> None:
    error = identified("signet", identify.listener(WHO)).error
    assert isinstance(error, RemoteProtocolError)
    assert str(error) == "the peer is on regtest, this node on signet [wrong_network]"


def test_a_peer_that_says_nothing_is_gone() -> None:
    assert isinstance(identified("regtest", sends()).error, PeerGone)


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": ""},
        {"agent": "a b"},
        {"agent": "\x1b[31m"},
        {"agent": "a" * 41},
        {"version": "1\n"},
        {"network": "mars"},
        {"protocols": ("cfd/ping/1",)},
        {"protocols": ("/cfd/Ping/1",)},
        {"protocols": ("/cfd/ping/1\n",)},
        {"protocols": ("/cfd/ping/1",) * 65},
    ],
)
def test_what_a_peer_says_of_itself_is_bounded_and_printable(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        evolve(WHO, **changes)


# --- offers -----------------------------------------------------------------------------------------------------------

OTHER = evolve(OFFER, id=bytes(16), side=Side.LONG, price="53990")


Set = tuple[Offer, ...]


def published(sets: list[Set]) -> tuple[End, End, list[Set], list[Set | None]]:
    """The sets are published one after another; then the taker leaves."""
    arrived: list[Set] = []
    asked_after: list[Set | None] = []
    left = list(sets)

    def next_offers(ask: NextOffers) -> Set:
        asked_after.append(ask.last)
        return left.pop(0) if left else ()

    def take(ask: OffersArrived) -> None:
        arrived.append(ask.offers)
        if len(arrived) == len(sets):
            raise PeerGone("enough")

    taker, maker = Pair(
        offers.PROTOCOL.codec,
        End("taker", offers.taker(), answers={OffersArrived: take}),
        End("maker", offers.maker(), answers={NextOffers: next_offers}),
    ).run()
    return taker, maker, arrived, asked_after


def test_the_whole_set_is_published_now_and_on_every_change() -> None:
    sets = [(OFFER,), (OFFER, OTHER), (), (OTHER,)]
    _, maker, arrived, asked_after = published(sets)
    assert arrived == sets
    assert asked_after[:4] == [None, *sets[:3]]
    assert [message.number for message in maker.sent[:4] if isinstance(message, Offers)] == [1, 2, 3, 4]
    assert isinstance(maker.error, PeerGone)


@pytest.mark.parametrize("second", [1, 0, -5])
def test_a_set_that_is_no_newer_is_refused(second: int) -> None:
    taker, _ = Pair(
        offers.PROTOCOL.codec,
        End("taker", offers.taker(), answers={OffersArrived: lambda _: None}),
        End("maker", sends(Offers(1, (OFFER,)), Offers(second, ()))),
    ).run()
    assert isinstance(taker.error, RemoteProtocolError)
    assert taker.error.code == "stale_offers"


def test_an_id_stands_for_one_offer() -> None:
    with pytest.raises(ValueError, match="an id is repeated"):
        Offers(1, (OFFER, evolve(OFFER, price="54001")))


def test_a_set_is_bounded() -> None:
    many = tuple(evolve(OFFER, id=number.to_bytes(16, "big")) for number in range(MAX_OFFERS + 1))
    offers.PROTOCOL.codec.encode(Offers(1, many[:-1]))
    with pytest.raises(ValueError, match="64"):
        Offers(1, many)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"symbol": "XRPUSD"}, "symbol"),
        ({"price": "54000.0"}, "price"),
        ({"price": "0"}, "price"),
        ({"price": "-1"}, "price"),
        ({"price": "1048576"}, "price"),
        ({"price": "NaN"}, "price"),
        ({"funding_rate": "1.1"}, "funding_rate"),
        ({"funding_rate": "0.000000001"}, "funding_rate"),
        ({"lot": 0}, "lot"),
        ({"lot": -100}, "lot"),
        ({"min_quantity": 0}, "min_quantity"),
        ({"min_quantity": 150}, "min_quantity"),
        ({"max_quantity": 50}, "max_quantity"),
        ({"max_quantity": 10_050}, "max_quantity"),
        ({"leverages": ()}, "leverages"),
        ({"leverages": (2, 1)}, "leverages"),
        ({"leverages": (1, 1)}, "leverages"),
        ({"leverages": (0, 1)}, "leverages"),
        ({"leverages": tuple(range(1, 34))}, "leverages"),
        ({"leverages": (1001,)}, "leverages"),
        ({"maker_leverage": 0}, "maker_leverage"),
        ({"opening_fee": -1}, "opening_fee"),
        ({"fee_rate": 1}, "fee_rate"),
        ({"tolerance_near": "0.0001"}, "tolerance_near"),
        ({"tolerance_near": "0.1", "tolerance_far": "0.05"}, "tolerance_near"),
        ({"created": -1}, "created"),
        # the smallest order with the highest leverage must make a contract
        ({"opening_fee": 100_000_000}, "min_quantity"),
        ({"maker_leverage": 100}, "min_quantity"),
        ({"leverages": (1, 100)}, "min_quantity"),
    ],
)
def test_an_offer_that_nobody_could_take_is_none(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadNumber) as refused:
        evolve(OFFER, **changes)
    assert refused.value.field == field


@pytest.mark.parametrize("scheme", ["", "Olivia", "olivia v1", "x\n", "x" * 41])
def test_an_oracles_scheme_is_a_word(scheme: str) -> None:
    with pytest.raises(ValueError, match="scheme"):
        evolve(OFFER.oracle, scheme=scheme)


@pytest.mark.parametrize(
    "locks", [(0, 18, 216), (18, 18, 216), (12, 216, 216), (12, 18, 0x10000), (-1, 18, 216)], ids=str
)
def test_timelocks_rise(locks: tuple[int, int, int]) -> None:
    with pytest.raises(BadNumber):
        Timelocks(*locks)


def test_an_order_within_the_offer_makes_terms() -> None:
    terms = OFFER.check_order(3_500, 5)
    assert terms.margin(Role.MAKER) == 6_481_481
    assert terms.margin(Role.TAKER) == 1_296_296
    assert terms.maker_account == 500 + 6_482  # long pays short, and the maker is short
    assert terms.timelocks == REGTEST_TIMELOCKS
    assert terms.reference == terms.price == OFFER.price
    assert evolve(OFFER, side=Side.LONG).check_order(3_500, 5).maker_account == 500 - 1_297


@pytest.mark.parametrize(
    ("quantity", "leverage", "field"),
    [
        (0, 5, "quantity"),
        (-100, 5, "quantity"),
        (150, 5, "quantity"),
        (10_100, 5, "quantity"),
        (2**63, 5, "quantity"),
        (3_500, 3, "leverage"),
        (3_500, 0, "leverage"),
        (3_500, -1, "leverage"),
    ],
)
def test_an_order_beyond_the_offer_is_refused_by_its_field(quantity: int, leverage: int, field: str) -> None:
    with pytest.raises(BadNumber) as refused:
        OFFER.check_order(quantity, leverage)
    assert refused.value.field == field
    assert str(refused.value.allowed) in str(refused.value)


def test_an_offer_is_stale_after_ten_minutes_and_before_its_time() -> None:
    assert not OFFER.stale(NOW)
    assert not OFFER.stale(NOW - CLOCK_SLACK)
    assert OFFER.stale(NOW - CLOCK_SLACK - 1)
    assert not OFFER.stale(NOW + STALE_AFTER)
    assert OFFER.stale(NOW + STALE_AFTER + 1)
