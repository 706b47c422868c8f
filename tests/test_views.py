"""How the API shows a position."""

from __future__ import annotations

from node.position.commands import attest, force_close
from node.position.observing import observe
from node.position.state import State
from node.web.views import position_view
from protocols.contract.outcomes import covering
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.contract.transactions import txid as txid_of
from tests.positions import CALM, LAST, attestation, history, view, wanted


def test_a_settlement_is_shown_with_its_price_and_without_when_only_the_chain_told_of_it() -> None:
    made = history(Role.TAKER)
    lock = wanted(made)
    made.do(observe(view(100, (lock, 100))), force_close("a test"))
    commit = wanted(made)
    made.do(observe(view(101, (lock, 100), (commit, 101))))
    assert position_view(made.position, {})["settlement"] is None
    transactions = made.position.transactions()
    outcome = covering(transactions.outcomes, LAST, CALM)
    assert outcome is not None
    tip = 101 + REGTEST_TIMELOCKS.settlement
    cet = transactions.cet(outcome)
    published = ({txid_of(cet): cet.serialize()}, tip)

    told = history(Role.TAKER)
    told.do(observe(view(100, (lock, 100))), force_close("a test"), attest(attestation(LAST, CALM)))
    by_oracle = position_view(told.position, {})["settlement"]
    assert by_oracle["price"] == CALM

    made.do(observe(view(tip + 2, (lock, 100), (commit, 101), published)))
    assert made.state() is State.SETTLED
    shown = position_view(made.position, {})
    assert shown["settlement"] == {**by_oracle, "price": None}
    assert shown["paid"]["taker_payout"] == by_oracle["taker_payout"]
    assert shown["paid"]["txid"] == by_oracle["cet_txid"]
