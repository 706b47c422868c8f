"""Contracts to test with: the worked one of the specification, and a strategy for all others."""

from fractions import Fraction

from attrs import evolve
from hypothesis import assume
from hypothesis import strategies as st

from protocols.contract.numbers import PRICE_LIMIT, format_decimal
from protocols.contract.symbols import SYMBOLS
from protocols.contract.terms import REGTEST_TIMELOCKS, BadTerms, Side, Terms

WORKED = Terms(
    quantity=3_500,
    price="54000",
    maker_side=Side.SHORT,
    maker_leverage=1,
    taker_leverage=5,
    maker_account=0,
    fee_rate=2,
    timelocks=REGTEST_TIMELOCKS,
    reference="54000",
)
"""3 500 contracts at 54 000, long ×5, short ×1, no fees."""


def equal_steps(terms: Terms, tolerance: str) -> Terms:
    """The same contract with one tolerance everywhere."""
    return evolve(terms, tolerance_near=tolerance, tolerance_far=tolerance)


prices = st.integers(1, PRICE_LIMIT * 100 - 1).map(lambda cents: format_decimal(Fraction(cents, 100), 2))


@st.composite
def any_terms(draw: st.DrawFn) -> Terms:
    """Terms of all kinds, such as rollovers make too: any symbol, any account, any reference."""
    price = draw(prices)
    try:
        terms = Terms(
            symbol=draw(st.sampled_from(list(SYMBOLS))),
            quantity=draw(st.integers(1, 10**7)),
            price=price,
            maker_side=draw(st.sampled_from(Side)),
            maker_leverage=draw(st.integers(1, 50)),
            taker_leverage=draw(st.integers(1, 50)),
            maker_account=0,
            fee_rate=2,
            timelocks=REGTEST_TIMELOCKS,
            reference=draw(st.just(price) | prices),
            tolerance_near=draw(st.sampled_from(["0.002", "0.005", "0.01"])),
            tolerance_far="0.01",
        )
    except BadTerms as error:
        assume(error.field not in ("maker's margin (satoshis)", "taker's margin (satoshis)"))
        raise
    account = draw(st.just(0) | st.integers(-terms.pool // 10, terms.pool // 10) | st.integers(-terms.pool, terms.pool))
    return evolve(terms, maker_account=account)
