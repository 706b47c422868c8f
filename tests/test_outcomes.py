"""From the payout curve to CETs: contract.md, "From payout curve to CETs"."""

import hashlib
from fractions import Fraction
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.contract.numbers import DIGITS, PRICE_LIMIT, parse_tolerance
from protocols.contract.outcomes import (
    ContractSize,
    Outcome,
    covering,
    liquidation_price,
    liquidation_regions,
    measure,
    outcomes,
    prefixes,
    settlement_outcomes,
)
from protocols.contract.payout import Payout
from protocols.contract.terms import Side, Terms

from .contracts import WORKED, any_terms, equal_steps


@pytest.mark.parametrize(
    ("price", "long", "short", "tolerance", "cets"),
    [
        # the table's worst steps are 0.69, 0.98 and 0.62 % of the pool, rounded
        ("54000", 5, 1, "0.0069", 203),
        ("40000", 2, 1, "0.00984", 143),
        ("100000", 10, 10, "0.00616", 252),
    ],
)
def test_the_table_of_the_specification(price: str, long: int, short: int, tolerance: str, cets: int) -> None:
    terms = evolve(WORKED, price=price, reference=price, taker_leverage=long, maker_leverage=short)
    assert measure(equal_steps(terms, tolerance), 1).settlement_cets == cets


def test_the_worked_contract_is_about_22_kilobytes() -> None:
    size = measure(equal_steps(WORKED, "0.0069"), 24)
    assert size == ContractSize(settlement_cets=203, liquidation_cets=23 * 6, wire_bytes=341 * 65, worst_error=26_757)
    assert size.worst_error <= int(7_777_777 * Fraction("0.0069") + 1) / 2


def test_the_worked_contract_at_the_default_tolerances() -> None:
    size = measure(WORKED, 24)
    assert (size.settlement_cets, size.liquidation_cets) == (318, 138)
    assert size.worst_error <= 77_777 / 2 + 1


def test_the_list_is_the_same_bit_for_bit_everywhere() -> None:
    # both peers generate it; whoever changes this changes the protocol
    terms = evolve(WORKED, maker_account=6_482, reference="54321.5")
    lines = [
        f"{cet.event} {cet.digits} {cet.low} {cet.high} {cet.long} {cet.timelock(terms)}" for cet in outcomes(terms, 24)
    ]
    assert len(lines) == 458
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == (
        "64959a3dd65829ba18a46fc7b8db35be7d780f6214b8f4c48d48f791ffa998db"
    )


def near(terms: Terms, low: int, high: int) -> bool:
    reference = Fraction(terms.reference)
    return high >= Fraction(4, 5) * reference and low <= Fraction(6, 5) * reference


def fits(terms: Terms, low: int, high: int) -> bool:
    payout = Payout(terms)
    text = terms.tolerance_near if near(terms, low, high) else terms.tolerance_far
    return payout.long(high) - payout.long(low) <= terms.pool * parse_tolerance(text, "tolerance") // 1


@settings(max_examples=40)
@given(any_terms())
def test_settlement_covers_every_price_once_in_the_fewest_pieces_that_fit(terms: Terms) -> None:
    cets = settlement_outcomes(terms)
    payout = Payout(terms)
    assert cets[0].low == 0
    assert cets[-1].high == PRICE_LIMIT - 1
    assert all(one.high + 1 == two.low for one, two in pairwise(cets))
    for cet in cets:
        check_prefix(cet)
        assert fits(terms, cet.low, cet.high)
        assert cet.long == (payout.long(cet.low) + payout.long(cet.high) + 1) // 2
        if len(cet.digits) > 1:  # the parent had to be split
            size = 2 * (cet.high - cet.low + 1)
            start = cet.low // size * size
            assert not fits(terms, start, start + size - 1)


def check_prefix(cet: Outcome) -> None:
    assert 1 <= len(cet.digits) <= DIGITS
    assert cet.digits == f"{cet.low:0{DIGITS}b}"[: len(cet.digits)] == f"{cet.high:0{DIGITS}b}"[: len(cet.digits)]
    assert cet.high - cet.low + 1 == 2 ** (DIGITS - len(cet.digits))


@settings(max_examples=40)
@given(any_terms(), st.integers(0, PRICE_LIMIT - 1))
def test_the_error_is_at_most_half_the_tolerance(terms: Terms, price: int) -> None:
    cet = covering(settlement_outcomes(terms), 0, price)
    assert cet is not None
    # tolerance_far is the larger; half of an odd step rounds up
    assert 2 * abs(cet.long - Payout(terms).long(price)) <= terms.pool * Fraction(terms.tolerance_far) + 1
    assert abs(cet.long - Payout(terms).long(price)) <= measure(terms, 1).worst_error


@given(any_terms(), st.integers(0, PRICE_LIMIT - 1))
def test_liquidation_regions_are_what_the_specification_says(terms: Terms, price: int) -> None:
    payout = Payout(terms)
    regions = liquidation_regions(terms)
    cet = covering(regions, 0, price)
    step = {"BTCUSD": 256, "ETHUSD": 8}[terms.symbol]
    end = -1 if payout.bankrupt is None else (payout.bankrupt + 1) // step * step - 1
    start = PRICE_LIMIT if payout.saturated is None else -(-payout.saturated // step) * step
    assert (cet is not None) == (price <= end or price >= start)
    for cet in regions:
        check_prefix(cet)
        assert cet.long == payout.long(cet.low) == payout.long(cet.high)
        assert cet.long in (0, payout.pool)
        assert not cet.settlement
    assert liquidation_price(terms, Side.LONG) == (end if end >= 0 else None)
    assert liquidation_price(terms, Side.SHORT) == (start if start < PRICE_LIMIT else None)


@given(st.integers(0, PRICE_LIMIT), st.integers(0, PRICE_LIMIT))
def test_prefixes_are_minimal(a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    digits = list(prefixes(low, high))
    ranges = [(int(d.ljust(DIGITS, "0"), 2), int(d.ljust(DIGITS, "1"), 2)) for d in digits]
    assert sum(end - start + 1 for start, end in ranges) == high - low
    if digits:
        assert (ranges[0][0], ranges[-1][1]) == (low, high - 1)
    assert all(one[1] + 1 == two[0] for one, two in pairwise(ranges))
    # no two of them could be one: siblings, unless their parent is the empty prefix
    assert not any(one[:-1] == two[:-1] and len(one) == len(two) > 1 for one, two in pairwise(digits))


def test_the_worked_contract_has_six_liquidation_prefixes() -> None:
    regions = liquidation_regions(WORKED)
    assert [(cet.low, cet.high) for cet in regions] == [
        (0, 32_767),
        (32_768, 40_959),
        (40_960, 43_007),
        (43_008, 44_031),
        (44_032, 44_543),
        (44_544, 44_799),
    ]
    assert [cet.digits for cet in regions[:2]] == ["00000", "0000100"]
    assert {cet.long for cet in regions} == {0}
    assert liquidation_price(WORKED, Side.LONG) == 44_799
    assert liquidation_price(WORKED, Side.SHORT) is None


def test_two_regions_when_both_sides_can_be_liquidated() -> None:
    terms = evolve(WORKED, price="100000", reference="100000", maker_leverage=10, taker_leverage=10)
    assert liquidation_price(terms, Side.LONG) == 90_879
    assert liquidation_price(terms, Side.SHORT) == 111_360
    assert {cet.long for cet in liquidation_regions(terms)} == {0, terms.pool}


def test_no_region_for_a_long_that_is_owed_more_than_it_can_lose() -> None:
    terms = evolve(WORKED, maker_account=-(10**15))
    assert Payout(terms).bankrupt == 0
    assert liquidation_price(terms, Side.LONG) is None
    assert liquidation_price(terms, Side.SHORT) == 256
    # and one side owed everything at every price still yields prefixes of at least one digit
    terms = evolve(WORKED, maker_account=10**15)
    assert [cet.digits for cet in liquidation_regions(terms)] == ["0", "1"]
    assert [cet.digits for cet in settlement_outcomes(terms)] == ["0", "1"]


@pytest.mark.parametrize("events", [1, 2, 24])
def test_events_but_the_last_carry_the_regions_alone(events: int) -> None:
    cets = outcomes(WORKED, events)
    assert [(cet.event, cet.low) for cet in cets] == sorted((cet.event, cet.low) for cet in cets)
    regions = liquidation_regions(WORKED)
    for event in range(events - 1):
        assert [evolve(cet, event=0) for cet in cets if cet.event == event] == regions
    last = [evolve(cet, event=0) for cet in cets if cet.event == events - 1]
    assert last == settlement_outcomes(WORKED)
    for cet in cets:
        assert cet.settlement == (cet.event == events - 1)
        assert cet.timelock(WORKED) == (18 if cet.settlement else 12)


def test_a_contract_without_events_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one event"):
        outcomes(WORKED, 0)


def test_covering() -> None:
    cets = outcomes(WORKED, 3)
    assert covering(cets, 0, 54_000) is None
    liquidation = covering(cets, 1, 44_799)
    assert liquidation is not None
    assert (liquidation.event, liquidation.high, liquidation.settlement) == (1, 44_799, False)
    assert covering(cets, 1, 44_800) is None
    settlement = covering(cets, 2, 54_000)
    assert settlement is not None
    assert settlement.low <= 54_000 <= settlement.high
    assert covering(cets, 2, 2**20 + 5) == cets[-1]
