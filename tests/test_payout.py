"""The payout curve: contract.md, "Numbers that both peers compute"."""

from fractions import Fraction

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract.numbers import PRICE_LIMIT, SATS, hu
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Side, Terms

from .contracts import WORKED, any_terms

whole_prices = st.integers(0, PRICE_LIMIT - 1)
exact_prices = st.builds(Fraction, st.integers(1, PRICE_LIMIT * 100 - 1), st.just(100))


@pytest.mark.parametrize(
    ("price", "long"), [(0, 0), (45_000, 0), (54_000, 1_296_296), (60_000, 1_944_444), (108_000, 4_537_037)]
)
def test_the_worked_contract(price: int, long: int) -> None:
    payout = Payout(WORKED)
    assert payout.long(price) == long
    assert payout.short(price) == 7_777_777 - long
    assert (payout.of(Role.TAKER, price), payout.of(Role.MAKER, price)) == (long, 7_777_777 - long)


@given(any_terms(), whole_prices | exact_prices)
def test_it_is_the_formula_of_the_specification(terms: Terms, price: int | Fraction) -> None:
    opening = terms.opening_price
    if terms.symbol == "ETHUSD":
        gain = hu(100 * terms.quantity * (price - opening))
    else:
        gain = hu(SATS * terms.quantity * (price - opening) / (opening * price)) if price else -terms.pool * 100
    exact = terms.margin_of(Side.LONG) + terms.account_of(Side.LONG) + gain
    assert Payout(terms).long(price) == max(0, min(terms.pool, exact))


@given(any_terms(), whole_prices)
def test_both_sides_together_get_the_pool(terms: Terms, price: int) -> None:
    payout = Payout(terms)
    assert payout.long(price) + payout.short(price) == payout.pool == terms.pool
    assert min(payout.long(price), payout.short(price)) >= 0
    assert payout.of(Role.MAKER, price) + payout.of(Role.TAKER, price) == payout.pool
    assert list(payout.split(payout.long(price))) == [Role.MAKER, Role.TAKER]


@given(any_terms(), whole_prices, whole_prices)
def test_the_long_never_loses_by_a_higher_price(terms: Terms, a: int, b: int) -> None:
    payout = Payout(terms)
    assert payout.long(min(a, b)) <= payout.long(max(a, b))


@given(any_terms(), whole_prices)
def test_bankrupt_and_saturated_are_exact(terms: Terms, price: int) -> None:
    payout = Payout(terms)
    bankrupt = -1 if payout.bankrupt is None else payout.bankrupt
    assert (payout.long(price) == 0) == (price <= bankrupt)
    assert (payout.long(price) == payout.pool) == (payout.saturated is not None and price >= payout.saturated)
    for edge in (max(bankrupt, 0), bankrupt + 1):
        assert (payout.long(edge) == 0) == (edge <= bankrupt)
    if payout.saturated:
        assert payout.long(payout.saturated - 1) < payout.pool == payout.long(payout.saturated)


@pytest.mark.parametrize(
    ("price", "leverage", "bankrupt"),
    [("46125", 5, 38_437), ("60000", 2, 40_000)],  # domain.md: P₀·L/(L+1), for large enough a position
)
def test_the_long_is_bankrupt_where_the_domain_says(price: str, leverage: int, bankrupt: int) -> None:
    terms = evolve(WORKED, quantity=10**7, price=price, reference=price, taker_leverage=leverage)
    assert Payout(terms).bankrupt == bankrupt


def test_the_short_is_bankrupt_where_the_domain_says() -> None:
    terms = evolve(WORKED, quantity=10**7, maker_leverage=10)
    assert Payout(terms).saturated == 60_000  # P₀·L/(L−1)
    assert Payout(WORKED).saturated is None  # never for leverage 1


def test_fees_owed_move_the_bankruptcy() -> None:
    prices = [Payout(evolve(WORKED, maker_account=account)).bankrupt for account in (-100_000, 0, 100_000)]
    assert prices == [44_428, 45_000, 45_586]


def test_the_refund_is_margins_and_accounts() -> None:
    assert Payout(evolve(WORKED, maker_account=482)).refund() == {Role.MAKER: 6_481_963, Role.TAKER: 1_295_814}


@given(any_terms())
def test_a_refund_is_never_negative(terms: Terms) -> None:
    refund = Payout(terms).refund()
    assert sum(refund.values()) == terms.pool
    for role, satoshis in refund.items():
        assert satoshis == max(0, min(terms.pool, terms.margin(role) + terms.account(role)))
