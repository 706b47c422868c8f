"""What an order would come to: the same numbers as the contract's own code gives, with the reader's signs."""

from fractions import Fraction
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from node.preview import break_even, chain_fees, curve, order_view
from node.price_history import KEPT, PriceHistory
from node.prices import Quote
from protocols.contract.funding import FundingInput, change_value, funding_needed
from protocols.contract.numbers import parse_price
from protocols.contract.outcomes import liquidation_price
from protocols.contract.payout import Payout
from protocols.contract.scripts import p2tr
from protocols.contract.terms import Role, Side, Terms
from tests.contracts import any_terms
from tests.setups import OFFER, order

SCRIPT = p2tr(bytes(32))


def coin(value: int, index: int = 0) -> FundingInput:
    return FundingInput(bytes([index]) * 32, index, value, SCRIPT)


def view(free: list[FundingInput], **changes: Any) -> dict[str, Any]:
    placed = order(offer=evolve(OFFER, **changes))
    return order_view(placed.offer, placed.offer.check_order(placed.quantity, placed.leverage), free)


def test_a_preview_adds_up_to_what_the_lock_takes() -> None:
    coins = [coin(10**9, index) for index in range(3)]
    placed = order()
    terms = placed.offer.check_order(placed.quantity, placed.leverage)
    found = view(coins)
    needed = funding_needed(Role.TAKER, terms, SCRIPT)
    spent = 10**9 - change_value(coins[:1], needed, terms.fee_rate, SCRIPT)
    assert found["total"] == spent
    assert found["margin"] + found["maker_margin"] == found["pool"]
    assert found["fees"]["total"] == spent - found["margin"]
    assert found["account"] == found["opening_fee"] + found["funding"]["per_day"]
    assert found["liquidation_price"] == str(liquidation_price(terms, terms.side(Role.TAKER)))
    assert found["problem"] is None


def test_without_coins_it_is_shown_all_the_same_and_says_what_is_missing() -> None:
    found = view([])
    assert found["problem"]["code"] == "insufficient_funds"
    assert found["fees"]["coins"] == 0
    assert found["total"] == view([coin(10**9)])["total"]


@pytest.mark.parametrize(("rate", "side", "sign"), [("0.001", Side.LONG, 1), ("0.001", Side.SHORT, -1)])
def test_funding_has_the_sign_of_who_reads_it(rate: str, side: Side, sign: int) -> None:
    """A positive rate: long pays short; the maker's side is given, so a taker opposite a long maker is paid."""
    assert view([], funding_rate=rate, side=side)["funding"]["per_day"] * sign > 0


@settings(max_examples=25)
@given(any_terms(), st.sampled_from(Role), st.integers(-100, 100))
def test_a_break_even_price_is_where_the_payout_first_reaches_it(terms: Terms, role: Role, percent: int) -> None:
    wanted = terms.margin(role) * (100 + percent) // 100
    payout, found = Payout(terms), break_even(terms, role, wanted)
    if found is None:
        assert max(payout.of(role, Fraction(1, 100)), payout.of(role, 2**20 - 1)) < wanted
        return
    price = parse_price(found)
    assert payout.of(role, price) >= wanted
    worse = price + Fraction(-1 if terms.side(role) is Side.LONG else 1, 100)
    if 0 < worse < 2**20:
        assert payout.of(role, worse) < wanted


@settings(max_examples=25)
@given(any_terms(), st.sampled_from(Role))
def test_a_curve_is_the_contracts_own_payout(terms: Terms, role: Role) -> None:
    points = curve(terms, role, [terms.price])
    prices = [parse_price(price) for price, _ in points]
    assert prices == sorted(set(prices))
    assert terms.opening_price in prices
    assert [paid for _, paid in points] == [Payout(terms).of(role, price) for price in prices]


@settings(max_examples=25)
@given(any_terms(), st.sampled_from(Role))
def test_both_sides_pay_the_later_fees_whole(terms: Terms, role: Role) -> None:
    ours, theirs = (chain_fees(terms, each, [])[0] for each in (role, role.other))
    needed = sum(funding_needed(each, terms, SCRIPT, SCRIPT) for each in Role)
    assert ours.commit + ours.cet + theirs.commit + theirs.cet == needed - terms.pool


# The price's history


def quote(at: float, bid: str, ask: str) -> Quote:
    return Quote("BTCUSD", bid, ask, at, at)


def test_candles_hold_the_middle_of_the_quotes() -> None:
    history = PriceHistory()
    for at, price in ((60.0, "100"), (65.0, "9"), (119.0, "101.5"), (125.0, "99")):
        history.take(quote(at, price, price))
    first, second = history.candles("1m")
    assert (first.time, first.open, first.high, first.low, first.close) == (60, "100", "101.5", "9", "101.5")
    assert (second.time, second.open, second.close) == (120, "99", "99")
    assert [candle.time for candle in history.candles("10s")] == [60, 110, 120]
    assert len(history.candles("1h")) == 1


def test_a_history_is_bounded_and_a_late_quote_opens_nothing_in_the_past() -> None:
    history = PriceHistory()
    for minute in range(KEPT + 10):
        history.take(quote(60.0 * minute, "1", "3"))
    history.take(quote(0.0, "5", "5"))
    candles = history.candles("1m")
    assert len(candles) == KEPT
    assert (candles[-1].time, candles[-1].close, candles[0].time) == (60 * (KEPT + 9), "5", 600)
