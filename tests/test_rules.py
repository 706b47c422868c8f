"""A maker's rules, one by one: how much it takes, and at what price."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from node.policy import Policy
from node.position.commands import fail_setup
from node.prices import Quote
from node.rules import (
    Stake,
    check_close_price,
    check_order_price,
    check_size,
    check_stake,
    exposure,
    middle,
    stake_of_order,
    stakes_of,
)
from protocols.contract.numbers import format_decimal
from protocols.contract.terms import SYMBOL, Role, Side
from protocols.errors import Declined
from tests.positions import PEER, history
from tests.setups import NOW, OFFER, order

ONE, OTHER = bytes([1]) * 32, bytes([2]) * 32


def policy(**changes: Any) -> Policy:
    return Policy(max_quantity={SYMBOL: 1_000}, max_exposure={SYMBOL: 2_500}).changed(Policy(**changes))


def stake(quantity: int, peer: bytes = ONE) -> Stake:
    side = Side.LONG if quantity > 0 else Side.SHORT
    return stake_of_order(order(offer=evolve(OFFER, side=side), quantity=abs(quantity), leverage=2), peer)


def refusal(rule: Any, *about: Any) -> str:
    """The code, or ``allowed``."""
    try:
        rule(*about)
    except Declined as no:
        return no.code
    return "allowed"


# --- how much ---------------------------------------------------------------------------------------------------------


def test_an_order_above_or_below_the_limits_names_the_quantity_and_what_is_allowed() -> None:
    sizes = policy(min_quantity={SYMBOL: 200})
    with pytest.raises(Declined, match=r"quantity is 1100, allowed is at most 1000 \[bad_quantity\]"):
        check_size(sizes, order(quantity=1_100))
    with pytest.raises(Declined, match="quantity is 100, allowed is at least 200"):
        check_size(sizes, order(quantity=100))
    for quantity in (200, 1_000):
        check_size(sizes, order(quantity=quantity))


def test_what_no_limit_is_given_for_is_not_taken() -> None:
    assert refusal(check_size, Policy(), order(quantity=100)) == "bad_quantity"
    assert refusal(check_stake, Policy(), stake(100), []) == "max_exposure"


def test_exposure_is_one_side_less_the_other() -> None:
    shorts = [stake(-1_000), stake(-1_000), stake(-500)]
    assert exposure(shorts) == {SYMBOL: -2_500}
    assert exposure([*shorts, stake(1_000)]) == {SYMBOL: -1_500}
    assert refusal(check_stake, policy(), stake(-1), shorts) == "max_exposure"
    assert refusal(check_stake, policy(), stake(-1_000), [*shorts, stake(1_000)]) == "allowed"
    assert refusal(check_stake, policy(), stake(-1_001), [*shorts, stake(1_000)]) == "max_exposure"


def test_what_lessens_an_exposure_beyond_the_limit_is_taken() -> None:
    """The operator lowered the limit meanwhile."""
    too_many = [stake(-1_000)] * 5
    assert refusal(check_stake, policy(), stake(1_000), too_many) == "allowed"
    assert refusal(check_stake, policy(), stake(-100), too_many) == "max_exposure"


@given(st.integers(-4_000, 4_000).filter(bool), st.lists(st.integers(-4_000, 4_000).filter(bool), max_size=5))
def test_no_order_takes_the_exposure_further_beyond_the_limit(new: int, before: list[int]) -> None:
    held = sum(before)
    allowed = refusal(check_stake, policy(), stake(new), [stake(each) for each in before]) == "allowed"
    assert allowed == (abs(held + new) <= max(2_500, abs(held)))


def test_margin_at_risk_is_the_makers_of_all_positions() -> None:
    one = stake(-1_000)
    assert one.margin == 1_851_852  # 1 000 / 54 000 BTC at the maker's own leverage, 1
    enough = policy(max_margin=3 * one.margin)
    assert refusal(check_stake, enough, one, [one, stake(1_000, OTHER)]) == "allowed"
    assert refusal(check_stake, policy(max_margin=3 * one.margin - 1), one, [one, stake(1_000, OTHER)]) == "max_margin"


def test_limits_of_one_peer_do_not_touch_the_others() -> None:
    few = policy(max_positions_per_peer=2, max_quantity_per_peer={SYMBOL: 700})
    held = [stake(-300), stake(300), stake(-700, OTHER)]
    with pytest.raises(Declined, match=r"you have 2 positions, allowed is 2"):
        check_stake(few, stake(-100), held)
    with pytest.raises(Declined, match=r"with this order you would have 800 contracts, allowed is 700"):
        check_stake(few, stake(100, OTHER), held)
    assert refusal(check_stake, policy(max_quantity_per_peer={SYMBOL: 700}), stake(-100), held) == "allowed"
    assert refusal(check_stake, few, stake(-100, bytes(32)), held) == "allowed"


def test_each_symbol_has_limits_of_its_own_and_margin_is_one() -> None:
    ether = evolve(OFFER, symbol="ETHUSD", price="3000", lot=1, min_quantity=1, max_quantity=500)
    one = stake_of_order(order(offer=ether, quantity=500, leverage=1), ONE)
    assert one.margin == 150_000_000  # 500 · 3 000 · 100 sat
    held = [stake(-2_500), stake(-700, OTHER)]
    assert exposure([*held, one]) == {SYMBOL: -3_200, "ETHUSD": -500}
    assert refusal(check_stake, policy(), one, held) == "max_exposure"
    both = policy(max_exposure={"ETHUSD": 500}, max_quantity_per_peer={"ETHUSD": 500}, max_quantity={"ETHUSD": 500})
    assert refusal(check_stake, both, one, held) == "allowed"
    assert refusal(check_size, both, order(offer=ether, quantity=500)) == "allowed"
    assert refusal(check_size, both, order(offer=ether, quantity=501)) == "bad_quantity"
    enough = one.margin + sum(each.margin for each in held)
    assert refusal(check_stake, both.changed(Policy(max_margin=enough)), one, held) == "allowed"
    assert refusal(check_stake, both.changed(Policy(max_margin=enough - 1)), one, held) == "max_margin"


def test_a_position_counts_until_it_has_ended() -> None:
    begun = history(Role.MAKER, 2)
    (held,) = stakes_of([begun.position])
    assert (held.quantity, held.peer, held.margin) == (-3_500, PEER[Role.MAKER], 6_481_481)
    begun.do(fail_setup("peer_gone", "the peer is gone"))
    assert stakes_of([begun.position]) == []


# --- at what price ----------------------------------------------------------------------------------------------------


def quote(bid: str, ask: str) -> Quote:
    return Quote(SYMBOL, bid, ask, NOW, NOW)


MARKET = quote("50000", "50000.5")


@pytest.mark.parametrize(
    ("side", "price", "said"),
    [
        (Side.LONG, "50500", "allowed"),  # the maker pays 1 % more than the bid
        (Side.LONG, "50500.01", "price_moved"),
        (Side.LONG, "1", "allowed"),
        (Side.SHORT, "49500.5", "allowed"),  # and gets 1 % less than the ask, 49500.495
        (Side.SHORT, "49500.49", "price_moved"),
        (Side.SHORT, "300000", "allowed"),
    ],
)
def test_an_offers_price_may_lie_a_band_off_the_quote_to_the_makers_disadvantage(
    side: Side, price: str, said: str
) -> None:
    assert refusal(check_order_price, policy(), evolve(OFFER, side=side, price=price), MARKET) == said


@pytest.mark.parametrize(
    ("side", "price", "said"),
    [
        (Side.LONG, "50000.5", "allowed"),  # a long maker closes at the ask
        (Side.LONG, "49950.5", "allowed"),  # 0.1 % less is 49950.4995
        (Side.LONG, "49950.49", "price_moved"),
        (Side.SHORT, "50000", "allowed"),  # a short one at the bid
        (Side.SHORT, "50050", "allowed"),
        (Side.SHORT, "50050.01", "price_moved"),
    ],
)
def test_a_close_is_at_the_side_of_the_quote_that_favours_the_maker_or_a_band_worse(
    side: Side, price: str, said: str
) -> None:
    assert refusal(check_close_price, policy(), side, price, MARKET) == said


def test_a_price_that_is_refused_is_named_with_what_is_taken() -> None:
    with pytest.raises(Declined, match=r"price is 50000, the maker takes at least 54945 now"):
        check_close_price(policy(), Side.LONG, "50000", quote("54999", "55000"))


@given(st.integers(1, 10**8), st.integers(0, 10**5), st.sampled_from(["0", "0.001", "0.5"]), st.sampled_from(Side))
def test_without_a_band_a_maker_never_closes_worse_than_the_quote(
    cents: int, width: int, band: str, side: Side
) -> None:
    market = quote(*(format_decimal(Fraction(each, 100), 2) for each in (cents, cents + width)))
    favoured = cents + width if side is Side.LONG else cents
    worse = -1 if side is Side.LONG else 1
    limits = policy(close_band=band)
    assert refusal(check_close_price, limits, side, format_decimal(Fraction(favoured, 100), 2), market) == "allowed"
    if favoured + worse > 0:
        price = format_decimal(Fraction(favoured + worse, 100), 2)
        allowed = Fraction(favoured) * Fraction(band) >= 1
        assert (refusal(check_close_price, limits, side, price, market) == "allowed") == allowed


def test_the_middle_is_in_whole_cents() -> None:
    assert middle(MARKET) == "50000.25"
    assert middle(quote("0.01", "0.02")) == "0.02"
    assert middle(quote("50000", "50000.01")) == "50000.01"


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_change_leaves_the_rest_and_other_symbols_as_they_were() -> None:
    before = Policy(max_exposure={SYMBOL: 5}, price_band="0.02", max_margin=7)
    assert before.changed(Policy()) == before
    after = before.changed(Policy(close_band="0", max_margin=None, max_quantity={SYMBOL: 3}))
    assert (after.price_band, after.close_band, after.max_margin) == ("0.02", "0", None)
    assert (after.max_exposure, after.max_quantity) == ({SYMBOL: 5}, {SYMBOL: 3})
