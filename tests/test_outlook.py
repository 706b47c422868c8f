"""What people are told of a position: its worth at a quote, what comes next, and its transactions."""

from __future__ import annotations

import pytest

from node.clock import Clock
from node.close_price import brings
from node.position.commands import attest, force_close
from node.position.observing import observe
from node.position.state import Position, State
from node.web.outlook import next_view, transactions_view, value_view
from node.web.statement import archived_uses, uses_of
from node.web.views import position_view
from protocols.contract.outcomes import covering
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.contract.transactions import txid as txid_of
from tests.feeds import HandFed
from tests.positions import CALM, LAST, attestation, history, view, wanted

CLOCK = Clock(wall=lambda: 1_790_000_000.0)


def told(position: Position) -> str:
    return str(next_view(position, CLOCK)["sentence"])


@pytest.mark.parametrize("role", Role)
def test_a_whole_life_is_told(role: Role) -> None:
    states = set()
    for steps in range(1, 5):
        made = history(role, steps)
        states.add(made.state())
        assert told(made.position)
        assert value_view(made.position, feed("54000", "54010")) is None
    made = history(role)
    lock = wanted(made)
    seen = [(lock, 100)]
    made.do(observe(view(100, *seen)))
    assert (made.state(), "settles at expiry" in told(made.position)) == (State.OPEN, True)
    expiry = made.position.plan().announcements[-1].time
    assert next_view(made.position, CLOCK)["at"] == expiry
    rolls = next_view(made.position, CLOCK, {"next_try": 1.0, "from": expiry - 3600})
    assert (rolls["at"], "rolls over" in rolls["sentence"]) == (expiry - 3600, True)
    assert [(each["kind"], each["height"]) for each in transactions_view(made.position)] == [("lock", 100)]

    made.do(force_close("a test"))
    assert (made.state(), "commit confirms" in told(made.position)) == (State.FORCE_CLOSING, True)
    commit = wanted(made)
    seen.append((commit, 101))
    made.do(observe(view(101, *seen)))
    assert (made.state(), "oracle attests" in told(made.position)) == (State.COMMITTED, True)
    made.do(attest(attestation(LAST, CALM)))
    assert (made.state(), "payout goes out" in told(made.position)) == (State.SETTLING, True)
    assert value_view(made.position, feed("1", "1")) is None  # the market moves nothing any more

    transactions = made.position.transactions()
    outcome = covering(transactions.outcomes, LAST, CALM)
    assert outcome is not None
    tip = 101 + REGTEST_TIMELOCKS.settlement
    cet = transactions.cet(outcome)
    made.do(observe(view(tip + 2, *seen, ({txid_of(cet): cet.serialize()}, tip))))
    assert (made.state(), told(made.position)) == (State.SETTLED, "nothing: it is over")
    assert [(each["kind"], each["height"]) for each in transactions_view(made.position)] == [
        ("lock", 100),
        ("commit", 101),
        ("cet", tip),
    ]
    # the archive keeps what says the same
    assert archived_uses(position_view(made.position, {})) == uses_of(made.position)


def feed(bid: str, ask: str) -> HandFed:
    found = HandFed(CLOCK)
    found.tell(bid, ask)
    return found


@pytest.mark.parametrize("role", Role)
def test_its_worth_is_what_a_close_at_the_quote_brings(role: Role) -> None:
    """The taker is long here: it closes at the bid, whoever asks."""
    made = history(role)
    made.do(observe(view(100, (wanted(made), 100))))
    assert value_view(made.position, None) is None
    assert value_view(made.position, HandFed(CLOCK)) is None
    found = value_view(made.position, feed("56000", "56010"))
    assert found is not None
    expected = brings(made.position.plan(), role, "56000")
    assert (found["price"], found["pnl"], found["paid"]) == ("56000", expected.pnl, expected.paid)
    assert found["payout"] == expected.margin + found["account"] + found["pnl"]
    assert (found["pnl"] > 0) == (role is Role.TAKER)
