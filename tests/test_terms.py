"""Numbers on the wire, margins, fees and accounts, and what terms are refused."""

import hashlib
from fractions import Fraction

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract.numbers import (
    BadNumber,
    format_decimal,
    hu,
    parse_price,
    parse_rate,
    parse_tolerance,
    tagged_hash,
)
from protocols.contract.terms import (
    BadTerms,
    Role,
    Side,
    Terms,
    Timelocks,
    funding_fee,
    funding_to_maker,
    margin,
)

from .contracts import WORKED, prices


@pytest.mark.parametrize(
    ("x", "rounded"),
    [("1/2", 1), ("-1/2", 0), ("3/2", 2), ("-3/2", -1), ("49/100", 0), ("-51/100", -1), ("7", 7), ("0", 0)],
)
def test_half_up(x: str, rounded: int) -> None:
    assert hu(Fraction(x)) == rounded


@given(prices)
def test_a_price_has_one_spelling(text: str) -> None:
    assert format_decimal(parse_price(text), 2) == text


@given(st.integers(-(10**8), 10**8))
def test_a_rate_has_one_spelling(hundred_millionths: int) -> None:
    rate = Fraction(hundred_millionths, 10**8)
    assert parse_rate(format_decimal(rate, 8)) == rate


BAD_DECIMALS = ["", "-", ".5", "1.", "01", "1.50", "+1", "-0", "1e2", " 1", "1\n", "1_0", "٣", "0x1", "nan", "1,5"]


@pytest.mark.parametrize("text", [*BAD_DECIMALS, "0", "-1", "1048576", "0.001", pytest.param("9" * 5_000, id="long")])
def test_bad_prices(text: str) -> None:
    with pytest.raises(BadNumber) as refused:
        parse_price(text, "bid")
    assert (refused.value.field, refused.value.value) == ("bid", text)
    assert str(refused.value).startswith("bid is '")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", [*BAD_DECIMALS, "1.00000001", "-1.1", "0.000000001"])
def test_bad_rates(text: str) -> None:
    with pytest.raises(BadNumber, match="rate is"):
        parse_rate(text)


@pytest.mark.parametrize("text", [*BAD_DECIMALS, "0", "0.0004", "0.11", "-0.002"])
def test_bad_tolerances(text: str) -> None:
    with pytest.raises(BadNumber, match="tolerance_near is"):
        parse_tolerance(text, "tolerance_near")


def test_a_value_with_too_many_places_is_not_rounded_silently() -> None:
    with pytest.raises(ValueError, match="more than 2 decimal places"):
        format_decimal(Fraction(1, 3), 2)


def test_tagged_hash_is_that_of_bip340() -> None:
    tag = hashlib.sha256(b"BIP0340/challenge").digest()
    for data in (b"", b"abc"):  # twice, since the state of a tag is kept
        assert tagged_hash("BIP0340/challenge", data) == hashlib.sha256(tag + tag + data).digest()


@pytest.mark.parametrize(
    ("symbol", "quantity", "price", "leverage", "satoshis"),
    [
        # domain.md "BTCUSD", contract.md "Numbers that both peers compute"
        ("BTCUSD", 40_000, "40000", 1, 100_000_000),
        ("BTCUSD", 40_000, "40000", 10, 10_000_000),
        ("BTCUSD", 3_500, "54000", 5, 1_296_296),
        ("BTCUSD", 3_500, "54000", 1, 6_481_481),
        ("BTCUSD", 1, "40000.5", 1, 2_500),
        # domain.md "ETHUSD"
        ("ETHUSD", 1, "2500.75", 1, 250_075),
        ("ETHUSD", 40, "3000", 3, 4_000_000),
        ("ETHUSD", 1, "2500.75", 2, 125_038),  # 125 037.5
    ],
)
def test_margins(symbol: str, quantity: int, price: str, leverage: int, satoshis: int) -> None:
    assert margin(symbol, quantity, parse_price(price), leverage) == satoshis


def test_the_worked_contract() -> None:
    assert (WORKED.margin(Role.TAKER), WORKED.margin(Role.MAKER), WORKED.pool) == (1_296_296, 6_481_481, 7_777_777)
    assert (WORKED.side(Role.MAKER), WORKED.side(Role.TAKER)) == (Side.SHORT, Side.LONG)
    assert (WORKED.role(Side.LONG), WORKED.role(Side.SHORT)) == (Role.TAKER, Role.MAKER)
    assert (WORKED.leverage(Side.LONG), WORKED.leverage(Side.SHORT)) == (5, 1)
    assert (WORKED.margin_of(Side.LONG), WORKED.margin_of(Side.SHORT)) == (1_296_296, 6_481_481)


def test_accounts_are_each_others_negative() -> None:
    terms = evolve(WORKED, maker_account=-70)
    assert (terms.account(Role.MAKER), terms.account(Role.TAKER)) == (-70, 70)
    assert (terms.account_of(Side.LONG), terms.account_of(Side.SHORT)) == (70, -70)


def test_funding_fees() -> None:
    assert funding_fee(6_481_481, Fraction("0.001"), 24) == 6_482  # domain.md "Fees between the peers"
    assert funding_fee(6_481_481, Fraction("-0.001"), 24) == 6_482
    assert funding_fee(6_481_481, Fraction("0.001"), 1) == 271
    assert funding_fee(6_000_000, Fraction("0.001"), 12) == 3_000
    assert funding_fee(6_481_481, Fraction(0), 24) == 0


@pytest.mark.parametrize(
    ("maker_side", "rate", "to_maker"),
    [
        # a positive rate: long pays short; the fee is on the receiver's margin
        (Side.SHORT, "0.001", 6_482),
        (Side.LONG, "0.001", -6_482),
        (Side.SHORT, "-0.001", -1_297),
        (Side.LONG, "-0.001", 1_297),
        (Side.LONG, "0", 0),
    ],
)
def test_who_pays_funding(maker_side: Side, rate: str, to_maker: int) -> None:
    margins = {Side.LONG: 1_296_296, Side.SHORT: 6_481_481}
    assert funding_to_maker(maker_side, margins, parse_rate(rate), 24) == to_maker


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("symbol", "XRPUSD"),
        ("quantity", 0),
        ("quantity", -1),
        ("quantity", 1.0),
        ("quantity", True),
        ("price", "0"),
        ("price", "054000"),
        ("reference", "54000.555"),
        ("maker_leverage", 0),
        ("taker_leverage", -5),
        ("taker_leverage", 1_001),
        ("maker_account", 10**17),
        ("fee_rate", 1),
        ("fee_rate", 10_001),
        ("tolerance_near", "0"),
        ("tolerance_near", "0.02"),
        ("tolerance_far", "0.5"),
    ],
)
def test_bad_terms_name_the_field(field: str, value: object) -> None:
    good = {each.name: getattr(WORKED, each.name) for each in fields(Terms)}
    assert Terms(**good) == WORKED
    with pytest.raises(BadTerms) as refused:
        Terms(**(good | {field: value}))
    assert (refused.value.field, refused.value.value) == (field, value)


def test_a_margin_below_5000_satoshis_is_refused() -> None:
    assert evolve(WORKED, quantity=14).margin(Role.TAKER) == 5_185
    with pytest.raises(BadTerms, match=r"taker's margin \(satoshis\) is 4815"):
        evolve(WORKED, quantity=13)


@pytest.mark.parametrize("blocks", [(0, 2, 3), (12, 12, 216), (12, 216, 216), (12, 18, 65_536)])
def test_timelocks_are_in_order_and_fit_bip68(blocks: tuple[int, int, int]) -> None:
    with pytest.raises(BadTerms, match=r"timelocks\."):
        Timelocks(*blocks)
