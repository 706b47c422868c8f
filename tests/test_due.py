"""What must be broadcast, as a function of a position: complete, valid by Bitcoin Core's script code, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from bitcoin.core import CTransaction
from hypothesis import given
from hypothesis import strategies as st

from node.position.commands import attest, fail_setup, force_close
from node.position.due import due
from node.position.observing import observe
from node.position.state import State
from node.regtest.consensus import check_scripts
from protocols.contract.outcomes import covering
from protocols.contract.sighash import TxOut
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Side
from protocols.errors import LocalError
from tests.positions import (
    LAST,
    LIQUIDATING,
    TRADER,
    History,
    attestation,
    history,
    signatures,
    view,
    wanted,
)

BOTH = pytest.mark.parametrize("role", Role)
LOCKED, COMMITTED = 200, 500


def complete(made: History, txid: bytes, raw: bytes) -> CTransaction:
    """The transaction, judged with all its witnesses."""
    transactions = made.position.transactions()
    tx = CTransaction.deserialize(raw)
    assert tx.GetTxid() == txid
    outputs: dict[tuple[bytes, int], TxOut] = {
        (transactions.lock_txid, 0): TxOut(transactions.lock_value, transactions.lock_output.script),
        (transactions.commit_txid, 0): transactions.commit_outputs[0],
    }
    for coin in transactions.lock_inputs:
        outputs[coin.txid, coin.vout] = TxOut(coin.value, coin.script)
    check_scripts(raw, [outputs[spent.prevout.hash, spent.prevout.n] for spent in tx.vin])
    return tx


def locked(role: Role) -> tuple[History, dict[bytes, bytes]]:
    made = history(role)
    lock = wanted(history(Role.MAKER))
    made.do(observe(view(LOCKED, (lock, LOCKED))))
    return made, lock


def committed(role: Role, blocks: int, *commands: tuple[int, int]) -> History:
    """The commit confirmed so many blocks ago, by our own hand."""
    made, lock = locked(role)
    made.do(force_close("by the user"))
    commit = wanted(made)
    made.do(*(attest(attestation(event, price)) for event, price in commands))
    made.do(observe(view(COMMITTED + blocks - 1, (lock, LOCKED), (commit, COMMITTED))))
    return made


def forced(role: Role) -> History:
    """About to publish its commit."""
    made, _ = locked(role)
    made.do(force_close("by the user"))
    return made


@BOTH
def test_nothing_is_due_before_the_contract_is_signed(role: Role) -> None:
    for steps in range(4 if role is Role.TAKER else 3):
        made = history(role, steps)
        assert due(made.position, TRADER[role].seed, None) == {}
    failed = history(role, 2)
    failed.do(fail_setup("peer_gone", "the peer is gone"))
    assert due(failed.position, TRADER[role].seed, None) == {}


def test_the_lock_is_due_from_all_witnesses_on() -> None:
    """The maker has them when the contract is signed, the taker one message later."""
    assert wanted(history(Role.TAKER, 4)) == {}
    lock = wanted(history(Role.MAKER))
    assert lock == wanted(history(Role.TAKER, 5))
    ((txid, raw),) = lock.items()
    assert len(complete(history(Role.MAKER), txid, raw).vin) == 2


@BOTH
def test_an_open_contract_wants_nothing(role: Role) -> None:
    assert wanted(locked(role)[0]) == {}


@BOTH
def test_the_commit_once_somebody_wants_it(role: Role) -> None:
    made, _ = locked(role)
    made.do(force_close("by the user"))
    ((txid, raw),) = wanted(made).items()
    assert txid == made.position.transactions().commit_txid
    complete(made, txid, raw)


@BOTH
def test_the_cet_of_the_attested_price_from_its_block_on(role: Role) -> None:
    for event, price, blocks in (
        (LAST, 60_000, REGTEST_TIMELOCKS.settlement),
        (3, LIQUIDATING, REGTEST_TIMELOCKS.liquidation),
    ):
        assert wanted(committed(role, blocks - 1, (event, price))) == {}
        made = committed(role, blocks, (event, price))
        ((txid, raw),) = wanted(made).items()
        transactions = made.position.transactions()
        outcome = covering(transactions.outcomes, event, price)
        assert outcome is not None
        assert txid == transactions.cet(outcome).GetTxid()
        assert complete(made, txid, raw).vin[0].nSequence == blocks


@BOTH
@given(price=st.sampled_from([0, 1, 44_799, 44_800, 54_000, 60_000, 2**20 - 1]) | st.integers(0, 2**20 - 1))
def test_whatever_price_settles_pays_by_the_contract(role: Role, price: int) -> None:
    made = committed(role, REGTEST_TIMELOCKS.settlement, (LAST, price))
    ((txid, raw),) = wanted(made).items()
    tx = complete(made, txid, raw)
    plan = made.position.plan()
    terms = plan.terms
    assert sum(out.nValue for out in tx.vout) == terms.pool
    long = terms.side(Role.MAKER) is Side.LONG
    paid = sum(
        out.nValue
        for out in tx.vout
        if out.scriptPubKey == plan.party(Role.MAKER if long else Role.TAKER).payout_script
    )
    exact = made.position.transactions().payout.long(price)
    tolerance = terms.pool * 5 // 100  # half of the far tolerance of the tests' offer
    assert abs(paid - exact) <= tolerance + 330


@BOTH
def test_the_refund_if_nothing_was_attested(role: Role) -> None:
    assert wanted(committed(role, REGTEST_TIMELOCKS.refund - 1)) == {}
    made = committed(role, REGTEST_TIMELOCKS.refund)
    ((txid, raw),) = wanted(made).items()
    assert txid == made.position.transactions().refund.GetTxid()
    complete(made, txid, raw)
    made.do(attest(attestation(LAST, 60_000)))
    assert wanted(made) == {}  # until a look at the chain says that the CET's lock is over


@BOTH
def test_what_a_reorganisation_took_is_due_again_parents_first(role: Role) -> None:
    made = committed(role, REGTEST_TIMELOCKS.refund)
    transactions = made.position.transactions()
    lock, commit, refund = transactions.lock_txid, transactions.commit_txid, transactions.refund.GetTxid()
    raw_lock, raw_commit = wanted(history(Role.MAKER)), wanted(forced(role))
    assert list(wanted(made)) == [refund]
    tip = COMMITTED + REGTEST_TIMELOCKS.refund
    made.do(observe(view(tip, (raw_lock, LOCKED), (raw_commit, None))))
    assert list(wanted(made)) == [commit]
    made.do(observe(view(tip, (raw_lock, None))))
    assert (made.state(), list(wanted(made))) == (State.OPENING, [lock])
    made.do(observe(view(tip + 1, (raw_lock, tip + 1))))
    assert (made.state(), list(wanted(made))) == (State.FORCE_CLOSING, [commit])
    made.do(observe(view(tip + 3, (raw_lock, tip + 1), (raw_commit, tip + 2))))
    assert (made.state(), wanted(made)) == (State.COMMITTED, {})


def test_a_commit_of_the_peer_that_is_lost_is_no_business_of_ours_without_a_reason() -> None:
    made, lock = locked(Role.MAKER)
    other, _ = locked(Role.TAKER)
    other.do(force_close("by the user"))
    commit = wanted(other)
    made.do(observe(view(COMMITTED, (lock, LOCKED), (commit, COMMITTED))))
    assert wanted(made) == {}


@BOTH
def test_a_seed_or_signatures_of_somebody_else_are_noticed(role: Role) -> None:
    made = committed(role, REGTEST_TIMELOCKS.refund)
    with pytest.raises(LocalError, match="is not valid") as caught:
        due(made.position, TRADER[role.other].seed, signatures(role))
    assert caught.value.code == "bad_signature"
    with pytest.raises(LocalError, match="is not valid"):
        due(made.position, TRADER[role].seed, signatures(role.other))


@BOTH
def test_the_same_position_gives_the_same_bytes(role: Role) -> None:
    def all_of(made: History) -> Iterable[tuple[bytes, bytes]]:
        return (*wanted(forced(role)).items(), *wanted(made).items())

    made = committed(role, REGTEST_TIMELOCKS.settlement, (LAST, 60_000))
    assert list(all_of(made)) == list(all_of(committed(role, REGTEST_TIMELOCKS.settlement, (LAST, 60_000))))
