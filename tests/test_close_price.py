"""Which price a taker closes at, which is too bad, and what it brings."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.clock import Clock
from node.close_price import brings, closing_price, closing_quote, is_worse, worst_price
from node.errors import Conflict
from node.prices import Feed, Quote
from protocols.contract.closing import Close
from protocols.contract.numbers import BadNumber, format_decimal
from protocols.contract.terms import Role, Side
from tests.settlements import PLAN

QUOTE = Quote("BTCUSD", bid="50000", ask="50000.5", at=0.0, received_at=0.0)
PRICES = st.integers(1, 2**20 * 100 - 1).map(lambda cents: format_decimal(Fraction(cents, 100), 2))
BANDS = st.sampled_from(["0", "0.001", "0.5"])


def test_the_side_of_the_quote_that_favours_the_maker() -> None:
    """domain.md, "Closing price": maker long → ask, maker short → bid."""
    assert closing_price(Side.LONG.other, QUOTE) == "50000.5"
    assert closing_price(Side.SHORT.other, QUOTE) == "50000"


def test_the_limit_is_for_the_users_good() -> None:
    """Who is long sells: less is worse. Who is short buys: more is."""
    assert (worst_price(Side.LONG, "50000", "0.001"), worst_price(Side.SHORT, "50000", "0.001")) == ("49950", "50050")
    assert is_worse(Side.LONG, "49949.99", "49950")
    assert is_worse(Side.SHORT, "50050.01", "50050")
    with pytest.raises(BadNumber) as refused:
        is_worse(Side.LONG, "1", "1.000")
    assert refused.value.field == "limit"


@given(st.sampled_from(Side), PRICES, BANDS)
def test_a_price_is_never_worse_than_its_own_limit(side: Side, price: str, band: str) -> None:
    """Nor is what is suggested ever no price."""
    limit = worst_price(side, price, band)
    assert not is_worse(side, price, limit)
    assert limit == price or is_worse(side, limit, price)


@given(st.sampled_from(Role), PRICES)
def test_what_is_shown_is_what_the_close_pays(role: Role, price: str) -> None:
    found = brings(PLAN, role, price)
    other = brings(PLAN, role.other, price)
    outputs = Close(PLAN, price).tx.vout
    assert found.paid == outputs[0 if role is Role.MAKER else 1].nValue
    assert found.payout == found.margin + found.account + found.pnl
    assert (found.account, found.pnl) == (-other.account, -other.pnl)
    assert found.fee > 0
    assert abs(found.fee - other.fee) <= 1


def test_without_a_quote_closing_is_paused() -> None:
    for url in (None, "ws://127.0.0.1:1/realtime"):
        with pytest.raises(Conflict, match="closing is paused, force close still works") as refused:
            closing_quote(Feed(url, Clock()))
        assert refused.value.code == "no_quote"
