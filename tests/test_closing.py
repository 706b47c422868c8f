"""The close and the cooperative spend under consensus code: what they pay, who must sign; and a nonce signs once."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from bitcoin.core import CTransaction
from btclib_ecc.ecc import musig2
from btclib_secp256k1 import keys as curve
from hypothesis import given
from hypothesis import strategies as st

from node.regtest.consensus import Chain, ScriptRefused, check_scripts
from protocols.contract import schnorr
from protocols.contract.closing import (
    Close,
    CloseNonce,
    CloseSession,
    Spend,
    attested_outcome,
    close_outputs,
)
from protocols.contract.funding import FundingInput, later_fees, output_vsize
from protocols.contract.keys import key_sort
from protocols.contract.numbers import DUST, ORDER, BadNumber, parse_price
from protocols.contract.payout import Payout
from protocols.contract.scripts import tweak
from protocols.contract.sighash import TxOut
from protocols.contract.terms import Role, Terms
from protocols.contract.transactions import FINAL, ContractTransactions, txid, vsize
from protocols.errors import LocalError, RemoteProtocolError

from .contracts import any_terms, prices
from .deals import announcement, attestation, deal, digest, p2tr_of
from .opened import COIN_SCRIPTS, FINE, PRICE, TERMS, TOO_LOW, Open, World, paid

P2WPKH, OTHER_P2WPKH = b"\x00\x14" + bytes(range(20)), b"\x00\x14" + bytes(20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Chain(Path(tmp_path_factory.mktemp("chain"))) as chain:
        for height in range(1, 41):
            chain.mine(script=COIN_SCRIPTS[Role.MAKER if height % 2 else Role.TAKER])
        chain.mine_many(100)
        yield World(chain)


def scripts(maker: bytes, taker: bytes) -> Callable[[Role], bytes]:
    return lambda role: maker if role is Role.MAKER else taker


DEAL = deal(TERMS)
CLOSE = Close(DEAL.plan, "60000.5")


def nonce(role: Role, close: Close = CLOSE, entropy: Callable[[int], bytes] = os.urandom) -> CloseNonce:
    return CloseNonce(close, role, DEAL.keys[role].fund, entropy)


def sessions() -> dict[Role, CloseSession]:
    nonces = {role: nonce(role) for role in Role}
    return {role: nonces[role].meet(nonces[role.other].public) for role in Role}


# --- what a close pays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["60000", "54000", "53999.99", "1", "1048575"])
def test_a_close_pays_each_payout_and_half_of_what_is_left(world: World, price: str) -> None:
    """contract.md, "Fees": 216·r + 240 satoshis are left of the prepaid fees when the close's own is paid."""
    opened = world.open()
    close = Close(opened.deal.plan, price)
    raw = closed(opened, close)
    rate = TERMS.fee_rate
    payouts = {role: Payout(TERMS).of(role, parse_price(price)) for role in Role}
    assert paid(raw) == [
        (payouts[role] + 108 * rate + 120, opened.deal.plan.party(role).payout_script) for role in Role
    ]
    size = 68 + 43 + 43
    assert vsize(CTransaction.deserialize(raw)) == size
    assert opened.transactions.lock_value - sum(value for value, _ in paid(raw)) == rate * size
    assert txid(CTransaction.deserialize(raw)) == close.txid
    world.mine(raw)


def closed(opened: Open, close: Close) -> bytes:
    return signed(close, {role: opened.deal.keys[role].fund for role in Role})


def signed(close: Close, funds: dict[Role, bytes]) -> bytes:
    """By both sides, each of which completes it."""
    nonces = {role: CloseNonce(close, role, funds[role], os.urandom) for role in Role}
    met = {role: nonces[role].meet(nonces[role.other].public) for role in Role}
    partials = {role: met[role].sign(funds[role]) for role in Role}
    both = {met[role].complete(partials[role], partials[role.other]) for role in Role}
    assert len(both) == 1
    return both.pop()


@pytest.mark.parametrize(
    ("maker", "taker", "size"),
    [(P2WPKH, p2tr_of("x"), 31 + 43), (p2tr_of("x"), P2WPKH, 43 + 31), (P2WPKH, OTHER_P2WPKH, 31 + 31)],
)
def test_a_closes_size_and_fee_follow_its_scripts(maker: bytes, taker: bytes, size: int) -> None:
    made = deal(evolve(TERMS, fee_rate=7), payout=scripts(maker, taker))
    raw = signed(Close(made.plan, "54000"), {role: made.keys[role].fund for role in Role})
    assert vsize(CTransaction.deserialize(raw)) == 68 + size
    transactions = ContractTransactions(made.plan)
    assert transactions.lock_value - sum(value for value, _ in paid(raw)) == 7 * (68 + size)
    check_scripts(raw, [TxOut(transactions.lock_value, transactions.lock_script)])


@given(any_terms(), prices, st.integers(2, 10_000), *[st.sampled_from([P2WPKH, p2tr_of("x")])] * 2)
def test_a_close_always_has_both_outputs_and_leaves_the_rate_to_the_miners(
    terms: Terms, price: str, rate: int, maker: bytes, taker: bytes
) -> None:
    terms = evolve(terms, fee_rate=rate)
    first, second = close_outputs(deal(terms, payout=scripts(maker, taker)).plan, price)
    assert (first.script, second.script) == (maker, taker)
    assert min(first.value, second.value) >= DUST
    halves = [
        output.value - Payout(terms).of(role, parse_price(price))
        for output, role in ((first, Role.MAKER), (second, Role.TAKER))
    ]
    assert halves[0] - halves[1] in (0, 1)
    assert sum(halves) == 216 * rate + 240
    lock = terms.pool + later_fees(rate, maker, taker)
    assert lock - first.value - second.value == rate * (68 + output_vsize(maker) + output_vsize(taker))


@pytest.mark.parametrize("price", ["0", "-1", "1048576", "54000.001", "54000.0", "x", ""])
def test_a_close_needs_a_price(price: str) -> None:
    with pytest.raises(BadNumber, match="price"):
        Close(DEAL.plan, price)


def test_a_close_waits_for_nothing_and_can_be_raised() -> None:
    tx = CLOSE.tx
    assert (tx.nVersion, tx.nLockTime, [each.nSequence for each in tx.vin]) == (3, 0, [FINAL])


# --- both sign as one -------------------------------------------------------------------------------------------------


def test_a_close_by_one_side_alone_is_none(world: World) -> None:
    opened = world.open()
    close = Close(opened.deal.plan, "60000")
    at_maker = CloseNonce(close, Role.MAKER, opened.deal.keys[Role.MAKER].fund, os.urandom)
    alone = schnorr.sign(opened.deal.keys[Role.MAKER].fund, close.message)
    spent = [TxOut(opened.transactions.lock_value, opened.transactions.lock_script)]
    assert not schnorr.verify(close.output_key, close.message, alone)
    # the maker plays both parts with its one key
    met = at_maker.meet(at_maker.public)
    partial = met.sign(opened.deal.keys[Role.MAKER].fund)
    with pytest.raises(RemoteProtocolError):
        met.complete(partial, partial)
    check_scripts(closed(opened, close), spent)
    bent = bytearray(closed(opened, close))
    bent[-20] ^= 1  # within the signature
    with pytest.raises(ScriptRefused):
        check_scripts(bytes(bent), spent)


def test_the_other_side_may_be_another_implementation() -> None:
    """The taker's part by btclib's own MuSig2: its nonce, its session, its partial signature, its aggregate."""
    funds = [DEAL.keys[role].fund for role in Role]
    points = key_sort(curve.pubkey_from_prvkey(fund) for fund in funds)
    lock = ContractTransactions(DEAL.plan).lock_output
    for index in range(8):  # both parities of every point on the way
        close = Close(DEAL.plan, f"{60_000 + index}")
        ours = nonce(Role.MAKER, close)
        secret, public = musig2.nonce_gen_(digest("btclib", index), None, DEAL.plan.taker.points.fund)
        session = musig2.SessionContext(
            musig2.nonce_agg([ours.public, public]),
            points,
            [tweak(lock.internal_key, lock.leaf.hash)],
            [True],
            close.message,
        )
        theirs = musig2.sign(secret, int.from_bytes(DEAL.keys[Role.TAKER].fund, "big"), session)
        met = ours.meet(public)
        met.verify(theirs)
        own = met.sign(DEAL.keys[Role.MAKER].fund)
        assert musig2.partial_sig_verify_(own, ours.public, DEAL.plan.maker.points.fund, session)
        raw = met.complete(own, theirs)
        signature = bytes(CTransaction.deserialize(raw).wit.vtxinwit[0].scriptWitness.stack[0])
        assert signature == musig2.partial_sig_agg([own, theirs], session).serialize()
        assert schnorr.verify(lock.script[2:], close.message, signature)


def test_a_partial_signature_that_is_not_the_peers_is_refused() -> None:
    met = sessions()
    signed = {role: met[role].sign(DEAL.keys[role].fund) for role in Role}
    at_maker, theirs = met[Role.MAKER], signed[Role.TAKER]
    at_maker.verify(theirs)
    elsewhere = sessions()[Role.TAKER].sign(DEAL.keys[Role.TAKER].fund)  # another session's
    for wrong in (
        signed[Role.MAKER],
        elsewhere,
        theirs[:-1] + bytes((theirs[-1] ^ 1,)),
        bytes(32),
        ORDER.to_bytes(32, "big"),
        b"\xff" * 32,
        theirs[:31],
        theirs + b"\x00",
        b"",
    ):
        for refuses in (at_maker.verify, lambda wrong: at_maker.complete(signed[Role.MAKER], wrong)):
            with pytest.raises(RemoteProtocolError) as caught:
                refuses(wrong)
            assert caught.value.code == "bad_signature"
    with pytest.raises(LocalError, match="our own"):
        at_maker.complete(elsewhere, theirs)


# --- a nonce signs once -----------------------------------------------------------------------------------------------


def test_a_nonce_answers_one_nonce_of_the_peer() -> None:
    ours = nonce(Role.TAKER)
    ours.meet(nonce(Role.MAKER).public)
    for peer in (nonce(Role.MAKER).public, ours.public):
        with pytest.raises(LocalError) as caught:
            ours.meet(peer)
        assert caught.value.code == "nonce_spent"


def test_a_session_signs_once() -> None:
    met = sessions()[Role.TAKER]
    met.sign(DEAL.keys[Role.TAKER].fund)
    with pytest.raises(LocalError) as caught:
        met.sign(DEAL.keys[Role.TAKER].fund)
    assert caught.value.code == "nonce_spent"


def test_a_nonce_is_spent_by_a_signature_that_fails() -> None:
    met = sessions()[Role.TAKER]
    for secret in (DEAL.keys[Role.MAKER].fund, DEAL.keys[Role.TAKER].fund):
        with pytest.raises(LocalError):
            met.sign(secret)


@pytest.mark.parametrize("bad", [b"", bytes(66), bytes(65), (b"\x02" + bytes(31) + b"\x05") * 2, b"\x04" + bytes(65)])
def test_what_is_no_nonce_spends_ours(bad: bytes) -> None:
    ours = nonce(Role.TAKER)
    with pytest.raises(RemoteProtocolError) as caught:
        ours.meet(bad)
    assert caught.value.code == "bad_nonce"
    with pytest.raises(LocalError):
        ours.meet(nonce(Role.MAKER).public)


def test_leaving_the_block_wipes_the_nonce() -> None:
    with nonce(Role.TAKER) as ours:
        met = ours.meet(nonce(Role.MAKER).public)
    with pytest.raises(LocalError):
        met.sign(DEAL.keys[Role.TAKER].fund)


def test_a_nonce_can_be_neither_stored_nor_copied_to_sign_twice() -> None:
    ours = nonce(Role.TAKER)
    for store in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError, match="neither stored nor copied"):
            store(ours)
    first = ours.meet(nonce(Role.MAKER).public)
    second = copy.copy(first)
    first.sign(DEAL.keys[Role.TAKER].fund)
    with pytest.raises(LocalError):
        second.sign(DEAL.keys[Role.TAKER].fund)


def test_two_closes_share_no_nonce_even_when_chance_repeats_itself() -> None:
    def stuck(size: int) -> bytes:
        return bytes([7]) * size

    other_lock = deal(TERMS, coins=lambda role: FundingInput(digest("other", role), 0, 10_000_000, p2tr_of(role)))
    made = [
        CloseNonce(Close(plan, price), role, DEAL.keys[role].fund, stuck).public
        for plan in (DEAL.plan, other_lock.plan)
        for price in ("60000", "60000.01")
        for role in Role
    ]
    assert len(set(made)) == len(made) == 8
    assert nonce(Role.MAKER, entropy=stuck).public == nonce(Role.MAKER, entropy=stuck).public


def test_every_nonce_draws_anew() -> None:
    draws = count(1)

    def entropy(size: int) -> bytes:
        return next(draws).to_bytes(size, "big")

    assert len({nonce(Role.MAKER, entropy=entropy).public for _ in range(5)}) == 5
    assert next(draws) == 6


@pytest.mark.parametrize("drawn", [b"", bytes(31), bytes(32), b"\x01" * 33])
def test_a_source_that_gives_no_randomness_is_refused(drawn: bytes) -> None:
    with pytest.raises(ValueError, match="randomness"):
        nonce(Role.MAKER, entropy=lambda _: drawn)


@pytest.mark.parametrize("secret", [DEAL.keys[Role.TAKER].fund, DEAL.keys[Role.MAKER].publish, bytes(32), b"short"])
def test_a_nonce_is_for_our_own_fund_key(secret: bytes) -> None:
    with pytest.raises(ValueError):
        CloseNonce(CLOSE, Role.MAKER, secret, os.urandom)


def test_no_secret_shows() -> None:
    ours = nonce(Role.MAKER, entropy=lambda size: b"\x5a" * size)
    met = ours.meet(nonce(Role.TAKER).public)
    with pytest.raises(LocalError) as caught:
        met.sign(DEAL.keys[Role.TAKER].fund)
    shown = repr(ours) + repr(met) + repr(caught.value)
    for hidden in (b"\x5a" * 32, *(DEAL.keys[role].fund for role in Role)):
        assert hidden.hex() not in shown
        assert repr(hidden) not in shown


# --- the cooperative spend --------------------------------------------------------------------------------------------


def spent_together(opened: Open, price: int, event: int = -1) -> tuple[Spend, bytes]:
    spend = Spend(opened.deal.plan, opened.outcome(price, event=event))
    signatures = {role: spend.sign(opened.deal.keys[role].fund) for role in Role}
    both = {role: spend.complete(role, signatures[role], signatures[role.other]) for role in Role}
    assert both[Role.MAKER] == both[Role.TAKER]
    return spend, both[Role.MAKER]


@pytest.mark.parametrize(("price", "event"), [(PRICE, -1), (TOO_LOW, 0), (1, -1)])
@pytest.mark.parametrize("role", Role)
def test_a_commit_that_is_out_is_spent_in_the_next_block(world: World, role: Role, price: int, event: int) -> None:
    """The outputs are those of the CET for the attested price, its lock is not."""
    opened = world.open()
    spend, raw = spent_together(opened, price, event)
    tx = CTransaction.deserialize(raw)
    cet = opened.transactions.cet(opened.outcome(price, event=event))
    assert paid(raw) == paid(cet.serialize())
    assert (tx.nVersion, tx.nLockTime, tx.vin[0].nSequence, txid(tx)) == (3, 0, FINAL, spend.txid)
    assert vsize(tx) == 118 + 43 * len(tx.vout)
    assert world.refusal(raw) == "bad-txns-inputs-missingorspent"
    opened.publish(role)
    world.mine(raw)


def test_what_spends_one_commit_spends_no_other(world: World) -> None:
    opened = world.open()
    _, raw = spent_together(opened, PRICE)
    with pytest.raises(ScriptRefused):
        check_scripts(raw, [evolve(opened.spent[0], value=opened.spent[0].value + 1)])
    rolled = deal(evolve(TERMS, maker_account=12_000), attempt=1)
    with pytest.raises(ScriptRefused):
        check_scripts(raw, [ContractTransactions(rolled.plan).commit_outputs[0]])


def test_the_signature_of_a_spend_is_checked_and_can_be_made_again() -> None:
    outcome = next(each for each in ContractTransactions(DEAL.plan).by_event[1] if each.low <= PRICE <= each.high)
    spend, again = Spend(DEAL.plan, outcome), Spend(DEAL.plan, outcome)
    own, theirs = (spend.sign(DEAL.keys[role].fund) for role in Role)
    assert own == again.sign(DEAL.keys[Role.MAKER].fund)
    spend.verify(Role.TAKER, theirs)
    other = Spend(DEAL.plan, evolve(outcome, long=outcome.long + 1)).sign(DEAL.keys[Role.TAKER].fund)
    for wrong in (own, other, bytes(64), theirs[:63], theirs + b"\x00", b"", theirs[:-1] + bytes((theirs[-1] ^ 1,))):
        for refuses in (
            lambda wrong: spend.verify(Role.TAKER, wrong),
            lambda wrong: spend.complete(Role.MAKER, own, wrong),
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                refuses(wrong)
            assert caught.value.code == "bad_signature"
    with pytest.raises(LocalError, match="maker's signature"):
        spend.complete(Role.MAKER, other, theirs)


# --- which outcome counts ---------------------------------------------------------------------------------------------

FOUR = deal(FINE, events=4).plan


@pytest.mark.parametrize(
    ("attested", "event"),
    [
        ({}, None),
        ({0: PRICE}, None),  # no liquidation region, and not the last event
        ({3: PRICE}, 3),
        ({0: PRICE, 1: PRICE, 2: PRICE, 3: PRICE}, 3),
        ({0: TOO_LOW}, 0),
        ({2: TOO_LOW}, 2),
        ({1: TOO_LOW, 2: TOO_LOW, 3: PRICE}, 1),
        ({0: PRICE, 2: TOO_LOW, 3: TOO_LOW}, 2),
        ({3: 1 << 20}, 3),
    ],
)
def test_the_earliest_attested_region_counts(attested: dict[int, int], event: int | None) -> None:
    found = attested_outcome(
        FOUR, [attestation(each, attested[each]) if each in attested else None for each in range(4)]
    )
    if event is None:
        assert found is None
        return
    assert found is not None
    outcome, price = found
    assert (outcome.event, price) == (event, attestation(event, attested[event]).price)
    assert outcome.low <= min(price, (1 << 20) - 1) <= outcome.high
    assert outcome.settlement == (event == 3)


def test_attestations_belong_to_their_announcements() -> None:
    moved: list[Any] = [None, attestation(0, TOO_LOW), None, None]
    with pytest.raises(ValueError, match=announcement(1).id.replace("?", r"\?")):
        attested_outcome(FOUR, moved)
    with pytest.raises(ValueError):
        attested_outcome(FOUR, moved[:1])
