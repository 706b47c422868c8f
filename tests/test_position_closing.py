"""A position on its way to an end that both sign, or that the peer's cheating brings: what may be written when, what
is due then, and what a reorganisation changes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
from attrs import evolve
from bitcoin.core import CTransaction

from node.position.abandon import spend_back
from node.position.closing import check_closable, fail_close, propose_close, punish
from node.position.commands import RefusedCommand, abandon_lock, attest, force_close, override_recovery, recover
from node.position.due import due, punishment
from node.position.events import CloseConfirmed, ConfirmationLost, LockConfirmed, PriceAttested
from node.position.evolve import evolve as evolve_position
from node.position.facts import command_of
from node.position.observing import ENDING_CONFIRMATIONS, observe
from node.position.state import EndingKind, State, watched_scripts
from protocols import settlement
from protocols.contract.closing import close_outputs
from protocols.contract.outcomes import covering
from protocols.contract.payout import Payout
from protocols.contract.sighash import TxOut
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Timelocks
from protocols.contract.transactions import FINAL, unsigned
from protocols.dialogue import Fact
from tests.lives import (
    ATTESTED,
    CLOSING,
    LOCKED,
    SEEN,
    Raw,
    close,
    completed,
    do,
    identified,
    lock,
    opened,
    punished,
    rolled,
    rollovers,
    see,
    spend,
)
from tests.positions import LAST, LIQUIDATING, ORDER_ID, PEER, TRADER, History, attestation, signatures, view, wanted
from tests.test_due import complete

BOTH = pytest.mark.parametrize("role", Role)
TAKER, MAKER = Role.TAKER, Role.MAKER


def names(events: object) -> list[str]:
    assert isinstance(events, list)
    return [type(event).__name__ for event in events]


def committed(role: Role, blocks: int = 1, *, height: int = SEEN) -> History:
    """The peer's commit of contract 0, this many blocks deep."""
    made = opened(role)
    see(made, commit(role), height, tip=height + blocks - 1)
    return made


def commit(role: Role) -> Raw:
    """The peer's, of contract 0."""
    return rollovers().commit(role.other, 0)


def attested(role: Role, price: int = ATTESTED, event: int = LAST) -> History:
    made = committed(role)
    made.do(attest(attestation(event, price)))
    return made


def signed(role: Role) -> History:
    """The close is signed by both, and complete here."""
    made = opened(role)
    do(made, *close()[role])
    return made


# --- the close --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_close_from_the_users_word_to_its_end(role: Role) -> None:
    made = opened(role)
    if role is TAKER:
        made.do(propose_close(CLOSING, "59900"))
    told = [name for fact in close()[role] for name in names(do(made, fact))]
    assert told == (["CloseSigned", "CloseCompleted"] if role is TAKER else ["CloseSigned"])
    assert made.state() is State.CLOSING
    assert wanted(made) == completed(close())
    assert names(see(made, completed(close()))) == ["ClosePublished"]
    assert wanted(made) == completed(close())  # until a block has it
    see(made, completed(close()), SEEN, tip=SEEN + ENDING_CONFIRMATIONS - 2)
    assert made.state() is State.CLOSING
    assert names(see(made, completed(close()), SEEN, tip=SEEN + ENDING_CONFIRMATIONS - 1)) == ["CloseConfirmed"]
    assert made.state() is State.CLOSED
    assert wanted(made) == {}
    plan, ending = made.position.plan(), made.position.ending
    assert ending is not None
    assert ending.kind is EndingKind.CLOSE
    outputs = close_outputs(plan, CLOSING)
    assert [ending.payout(each) for each in (MAKER, TAKER)] == [each.value for each in outputs]


@BOTH
def test_whoever_has_no_complete_close_learns_it_from_a_mempool(role: Role) -> None:
    """The maker may keep its last message: after a reorganisation, whether the close comes back would be its choice."""
    made = opened(role)
    (first, *_) = close()[role]
    assert isinstance(first, settlement.CloseSigned)
    do(made, evolve(first, transaction=None))
    assert wanted(made) == {}
    assert names(see(made, completed(close()))) == ["CloseCompleted", "ClosePublished"]
    assert wanted(made) == completed(close())


@BOTH
def test_the_same_close_again_is_nothing_new_and_any_other_is_refused(role: Role) -> None:
    made = signed(role)
    assert do(made, *close()[role]) == []
    for other in (close("59000")[role][0], close(index=1)[role][0]):
        with pytest.raises(RefusedCommand) as caught:
            do(made, other)
        assert caught.value.code == "other_close"


@BOTH
def test_why_a_close_did_not_come_about_is_kept_once(role: Role) -> None:
    made = opened(role)
    told = [names(made.do(fail_close("stale_price", "too late", rejected=rejected))) for rejected in (True, True)]
    assert told == [["CloseRejected"], []]
    made.do(propose_close(CLOSING, CLOSING))
    assert made.position.close_refusal is None
    assert names(made.do(fail_close("stale_price", "too late", rejected=False))) == ["CloseFailed"]


@BOTH
def test_a_close_with_a_commit_due_as_well_goes_by_what_the_chain_takes(role: Role) -> None:
    made = signed(role)
    made.do(force_close("nothing spent the lock"))
    own = rollovers().commit(role, 0)
    assert list(wanted(made)) == [*completed(close()), *own]
    taken = History(role, made.position)
    see(taken, own, SEEN)
    assert (taken.state(), wanted(taken)) == (State.COMMITTED, {})
    see(made, completed(close()), SEEN, tip=SEEN + 2)
    assert made.state() is State.CLOSED


@BOTH
def test_a_close_in_the_place_of_a_commit_and_the_other_way_round(role: Role) -> None:
    made = signed(role)
    for raw, state in (
        (completed(close()), State.CLOSING),
        (commit(role), State.FORCE_CLOSING),
        (completed(close()), State.CLOSING),
    ):
        see(made, raw)
        assert made.state() is state
        assert (made.position.ending is None) == (made.position.commit_seen is not None)


def test_a_close_that_our_record_does_not_know_is_seen_all_the_same() -> None:
    """It was restored from a backup."""
    made = opened(TAKER)
    made.do(recover("restored from a backup"))
    assert names(see(made, completed(close()), SEEN, tip=SEEN + 2)) == ["CloseConfirmed"]
    assert made.state() is State.CLOSED


def test_a_close_has_its_time_again_after_a_reorganisation() -> None:
    """What was in no mempool while the lock was in no block has not been late."""
    position = signed(TAKER).position
    (txid,), block = lock(), bytes(32)
    for event, at, since in (
        (ConfirmationLost(txid), 100.0, 0.0),
        (LockConfirmed(txid, 300, block), 200.0, 200.0),
        (CloseConfirmed(bytes(32), 301, block, 1, 2), 300.0, 200.0),
        (ConfirmationLost(bytes(32)), 400.0, 400.0),
    ):
        position = evolve_position(position, event, at)
        assert position.closing_since == since


def test_a_commit_that_our_record_does_not_know_tells_that_the_record_is_old() -> None:
    """Whoever signed it did so later; a mempool alone shows whatever its server likes."""
    made, unknown = rolled(TAKER), rollovers(2).commit(MAKER, 2)
    assert see(made, unknown) == []
    assert made.do(force_close("by the user"))
    made = rolled(TAKER)
    assert names(see(made, unknown, SEEN)) == ["Recovered", "UnknownCommitConfirmed"]
    assert see(made, unknown, SEEN) == []
    assert made.position.state is State.COMMITTED
    for asked in (force_close("by the user"), override_recovery("by the user"), propose_close("1", "1")):
        with pytest.raises(RefusedCommand):
            made.do(asked)
    assert due(made.position, TRADER[TAKER].seed, None) == {}


UNKNOWN_ENDINGS = (
    (lambda timelocks: timelocks.settlement, {MAKER: 4_000, TAKER: 6_000}, EndingKind.CET, State.SETTLED),
    (lambda timelocks: timelocks.settlement, {MAKER: 10_000}, EndingKind.CET, State.SETTLED),
    (lambda timelocks: timelocks.refund, {MAKER: 5_000, TAKER: 5_000}, EndingKind.REFUND, State.REFUNDED),
    (lambda _: FINAL, {MAKER: 4_000, TAKER: 6_000}, EndingKind.SPEND, State.SETTLED),
    (lambda _: FINAL, {MAKER: 10_000}, EndingKind.PUNISH, State.PUNISHED),
)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("sequence", "paid", "kind", "ended"), UNKNOWN_ENDINGS)
def test_what_spends_a_commit_that_is_not_on_record_ends_the_position(
    role: Role, sequence: Callable[[Timelocks], int], paid: Mapping[Role, int], kind: EndingKind, ended: State
) -> None:
    """By what stands in the chain alone; the payout scripts are those of every contract of the position."""
    made, unknown = rolled(role), rollovers(2).commit(role.other, 2)
    see(made, unknown, SEEN)
    ((commit, _),) = unknown.items()
    plan = made.position.plan(0)
    outputs = [TxOut(amount, plan.party(each).payout_script) for each, amount in paid.items()]
    ending = identified(unsigned(2, [(commit, 0, sequence(plan.terms.timelocks))], outputs).serialize())

    def look(tip: int, height: int | None) -> list[str]:
        return names(made.do(observe(view(tip, (lock(), LOCKED), (unknown, SEEN), (ending, height)))))

    assert CTransaction.deserialize(unknown[commit]).vout[0].scriptPubKey in watched_scripts(made.position)
    assert look(SEEN + 20, None) == [], "a mempool shows whatever its server likes"
    assert look(SEEN + 20, SEEN + 20)[-1].endswith("Published")
    assert look(SEEN + 22, SEEN + 20)[-1].endswith("Confirmed")
    assert made.position.ending is not None
    assert made.position.ending.kind is kind
    assert (made.position.ending.maker_payout, made.position.ending.taker_payout) == (paid[MAKER], paid.get(TAKER, 0))
    assert made.position.state is ended
    assert look(SEEN + 121, SEEN + 20) == ["Buried"]
    assert made.position.over


def test_a_reorganisation_takes_an_unknown_commit_back() -> None:
    made, unknown = rolled(TAKER), rollovers(2).commit(MAKER, 2)
    see(made, unknown, SEEN)
    assert names(see(made)) == ["ConfirmationLost"]
    assert made.position.unknown_commit is None
    assert made.position.state is State.OPEN
    assert made.position.recovered
    assert names(see(made, unknown, SEEN)) == ["UnknownCommitConfirmed"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def liquidated(role: Role) -> History:
    made = opened(role)
    made.do(attest(attestation(3, LIQUIDATING)))
    made.position = evolve(made.position, publishing=None)
    return made


def forced(role: Role) -> History:
    made = opened(role)
    made.do(force_close("by the user"))
    return made


def unlocked(role: Role) -> History:
    made = opened(role)
    made.do(observe(view(SEEN)))
    return made


def in_a_mempool(role: Role) -> History:
    made = opened(role)
    see(made, commit(role))
    return made


def cheated(role: Role) -> History:
    made = rolled(role)
    see(made, commit(role), SEEN)
    return made


def other_spend(role: Role) -> History:
    made = attested(role)
    do(made, *spend()[role])
    return made


def later_spend(role: Role) -> Fact:
    (first, *_) = spend()[role]
    assert isinstance(first, settlement.SpendSigned)
    return evolve(first, txid=bytes(32), price=1)


def of_another_commit(role: Role) -> Fact:
    (first, *_) = spend()[role]
    assert isinstance(first, settlement.SpendSigned)
    return evolve(first, commit_txid=bytes(32))


REFUSED: list[tuple[str, Callable[[Role], History], Callable[[Role], Fact], str]] = [
    ("a close without a lock", unlocked, lambda role: close()[role][0], "not_open"),
    ("a close after force close", forced, lambda role: close()[role][0], "commit_out"),
    ("a close with a commit in a mempool", in_a_mempool, lambda role: close()[role][0], "commit_out"),
    ("a close after a liquidation", liquidated, lambda role: close()[role][0], "attested"),
    ("a close amid a rollover", partial(rolled, records=2), lambda role: close()[role][0], "unfinished_rollover"),
    ("completing no close", opened, lambda role: settlement.CloseComplete(ORDER_ID, bytes(10)), "not_closing"),
    ("a spend without a commit", opened, lambda role: spend()[role][0], "no_commit_out"),
    ("a spend of a commit in no block", in_a_mempool, lambda role: spend()[role][0], "no_commit_out"),
    ("a spend of a revoked commit", cheated, lambda role: spend()[role][0], "revoked"),
    ("a spend of another commit", attested, of_another_commit, "other_commit"),
    ("another spend", other_spend, later_spend, "other_spend"),
    ("completing no spend", attested, lambda role: settlement.SpendComplete(ORDER_ID, bytes(10)), "not_spending"),
]


@BOTH
@pytest.mark.parametrize(("make", "fact", "code"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_refusals(role: Role, make: Callable[[Role], History], fact: Callable[[Role], Fact], code: str) -> None:
    made = make(role)
    before = made.position
    with pytest.raises(RefusedCommand, match=ORDER_ID.hex()) as caught:
        do(made, fact(role))
    assert caught.value.code == code
    assert made.position is before


@BOTH
def test_nobody_else_settles_a_position(role: Role) -> None:
    for made, facts in ((opened(role), close()[role]), (attested(role), spend()[role])):
        for fact in facts:
            with pytest.raises(RefusedCommand):
                made.do(command_of(fact, bytes([99]) * 32)[1])
            do(made, fact)


@BOTH
def test_after_a_rollover_only_its_own_contract_closes(role: Role) -> None:
    made = rolled(role)
    do(made, *close(index=1)[role])
    assert wanted(made) == completed(close(index=1))
    assert check_closable(made.position).index == 1


# --- the cooperative spend --------------------------------------------------------------------------------------------


@BOTH
def test_a_cooperative_spend_needs_no_lock(role: Role) -> None:
    made = attested(role)
    told = [name for fact in spend()[role] for name in names(do(made, fact))]
    assert told == (["SpendSigned", "SpendCompleted"] if role is TAKER else ["SpendSigned"])
    assert do(made, *spend()[role]) == []
    assert wanted(made) == completed(spend())
    see(made, commit(role), SEEN, more=completed(spend()))
    assert made.state() is State.SETTLING
    done = [(lock(), LOCKED), (commit(role), SEEN), (completed(spend()), SEEN + 1)]
    made.do(observe(view(SEEN + 3, *done)))
    ending = made.position.ending
    assert ending is not None
    assert (made.state(), ending.kind) == (State.SETTLED, EndingKind.SPEND)
    outcome = covering(made.position.transactions().outcomes, LAST, ATTESTED)
    assert outcome is not None
    assert {each: ending.payout(each) for each in Role} == Payout(made.position.plan().terms).split(outcome.long)


@BOTH
def test_spend_and_cet_are_both_due_once_the_lock_is_over(role: Role) -> None:
    """The peer may have kept its signature."""
    made = attested(role)
    do(made, *spend()[role])
    see(made, commit(role), SEEN, tip=SEEN + REGTEST_TIMELOCKS.settlement - 1)
    spent = completed(spend())
    assert len(wanted(made)) == 2
    assert next(iter(wanted(made))) in spent


@BOTH
def test_a_spend_that_the_peer_publishes_alone_is_taken_over(role: Role) -> None:
    made = attested(role)
    (first, *_) = spend()[role]
    assert isinstance(first, settlement.SpendSigned)
    do(made, evolve(first, transaction=None))
    see(made, commit(role), SEEN, more=completed(spend()))
    assert wanted(made) == completed(spend())


def test_a_spend_of_a_commit_that_was_revoked_later_is_no_punishment() -> None:
    """The peer published, had us sign, and then finished the rollover: what confirms is what happened."""
    made = rolled(TAKER, 3)
    see(made, commit(TAKER), SEEN)
    made.do(attest(attestation(LAST, ATTESTED)))
    do(made, *spend()[TAKER], *rollovers().records(TAKER)[3:])
    assert made.state() is State.PUNISHING
    made.do(observe(view(SEEN + 3, (lock(), LOCKED), (commit(TAKER), SEEN), (completed(spend()), SEEN + 1))))
    assert made.state() is State.SETTLED


# --- what the oracle says of two contracts ----------------------------------------------------------------------------


def test_a_price_is_recorded_for_each_contract_that_may_pay_out() -> None:
    """The taker's commit signature for n + 1 left: the maker may publish either, and each pays by its own events."""
    made = rolled(TAKER, 2)
    both = rollovers().node(TAKER)
    shared = {each.id for each in both.plan(0).announcements} & {each.id for each in both.plan(1).announcements}
    events = [number for number, each in enumerate(both.plan(0).announcements) if each.id in shared]
    told = made.do(attest(attestation(events[5], 20_000)))
    prices = [(event.index, event.event) for event in told if isinstance(event, PriceAttested)]
    later = both.plan(1).announcements
    assert prices == [(0, events[5]), (1, [each.id for each in later].index(both.plan(0).announcements[events[5]].id))]
    assert names(told)[2:] == ["CommitPublishing"]
    assert made.position.publishing is not None
    assert made.position.publishing.index == 0
    for index in range(2):
        out = History(TAKER, made.position)
        see(out, rollovers().commit(MAKER, index), SEEN, tip=SEEN + REGTEST_TIMELOCKS.liquidation - 1)
        held = signatures(TAKER) if index == 0 else both.signatures(1)
        ((cet, raw),) = due(out.position, TRADER[TAKER].seed, held).items()
        complete(out, cet, raw)
        assert cet in {
            tx.GetTxid() for tx in map(out.position.transactions(index).cet, out.position.transactions(index).outcomes)
        }


@BOTH
def test_an_earlier_event_that_is_attested_late_counts_until_the_lock_is_over(role: Role) -> None:
    made = attested(role, LIQUIDATING, event=9)
    assert names(made.do(attest(attestation(4, LIQUIDATING)))) == ["PriceAttested"]
    assert made.do(attest(attestation(9, LIQUIDATING))) == []
    see(made, commit(role), SEEN, tip=SEEN + REGTEST_TIMELOCKS.liquidation - 1)
    assert made.do(attest(attestation(2, LIQUIDATING))) == []
    # a reorganisation gives the time back
    see(made, commit(role), SEEN + 1, tip=SEEN + 2)
    assert names(made.do(attest(attestation(2, LIQUIDATING)))) == ["PriceAttested"]


# --- reorganisations --------------------------------------------------------------------------------------------------


@BOTH
def test_what_ended_a_position_comes_back_out_of_a_block_and_goes_in_again(role: Role) -> None:
    """Of each kind: the close, the spend, the refund, the punishment."""
    refunded = committed(role, REGTEST_TIMELOCKS.refund)
    ended: list[tuple[History, list[tuple[Raw, int | None]], State, State]] = [
        (signed(role), [(completed(close()), 700)], State.CLOSING, State.CLOSED),
        (attested(role), [(commit(role), SEEN), (completed(spend()), 700)], State.SETTLING, State.SETTLED),
        (refunded, [(commit(role), SEEN), (wanted(refunded), 700)], State.REFUNDING, State.REFUNDED),
    ]
    cheat = cheated(role)
    ended.append((cheat, [(commit(role), SEEN), (punished(cheat), 700)], State.PUNISHING, State.PUNISHED))
    do(ended[1][0], *spend()[role])
    for made, placed, before, after in ended:
        chain = [(lock(), LOCKED), *placed]
        made.do(observe(view(702, *chain)))
        assert made.state() is after
        assert made.position.inputs_held == frozenset()
        (raw, _) = placed[-1]
        gone = names(made.do(observe(view(703, *chain[:-1], (raw, None)))))
        assert gone == ["ConfirmationLost"]
        assert made.state() is before
        assert made.position.inputs_held
        again = names(made.do(observe(view(710, *chain[:-1], (raw, 705)))))
        assert len(again) == 1
        assert made.state() is after
        # a reorganisation of a hundred blocks still takes it back, and nothing takes back more
        made.do(observe(view(804, *chain[:-1], (raw, 705))))
        assert not made.position.over
        assert names(made.do(observe(view(805, *chain[:-1], (raw, 705))))) == ["Buried"]
        assert made.position.over


@BOTH
def test_a_lock_that_is_lost_takes_everything_with_it_and_brings_it_back(role: Role) -> None:
    cheat = cheated(role)
    punishing = punished(cheat)
    cases: list[tuple[History, list[tuple[Raw, int | None]]]] = [
        (signed(role), [(completed(close()), 701)]),
        (attested(role), [(commit(role), 701)]),
        (cheat, [(commit(role), 701), (punishing, 702)]),
    ]
    for made, placed in cases:
        chain = [(lock(), 700), *placed]
        made.do(observe(view(705, *chain)))
        before = made.state()
        told = names(made.do(observe(view(706))))
        assert told[-1] == "ConfirmationLost"
        assert set(told) == {"ConfirmationLost"}
        assert made.state() is State.OPENING
        assert wanted(made) == lock()
        assert punishment(made.position) == {}
        later = [(raw, None if height is None else height + 10) for raw, height in chain]
        made.do(observe(view(715, *later)))
        assert made.state() is before


def test_a_lock_that_can_never_be_again_frees_our_coins() -> None:
    """The peer's input was spent otherwise in the new branch; one of ours is spent back (rule 2)."""
    made = rolled(TAKER)
    made.do(observe(view(300)))
    assert made.state() is State.OPENING
    assert made.position.inputs_held
    raw = spend_back(made.position, bytes([0x51, 32]) + bytes(32), 3)[0].serialize()
    back = {bytes(range(32)): raw}
    made.do(abandon_lock(bytes(range(32)), raw))
    assert wanted(made) == back
    assert names(made.do(observe(view(320, (back, 310))))) == ["SetupAbandoned"]
    assert made.state() is State.SETUP_FAILED
    assert made.position.inputs_held == frozenset()
    assert names(made.do(observe(view(321)))) == ["ConfirmationLost"]
    assert made.state() is State.ABANDONING
    assert made.position.inputs_held
    made.do(observe(view(500, (back, 350))))
    assert made.position.over


@BOTH
def test_a_punishment_replaced_by_a_dearer_one(role: Role) -> None:
    made = cheated(role)
    first, second = punished(made, 1_000), punished(made, 50_000)
    assert not first.keys() & second.keys()
    assert punishment(made.position) == second
    ((txid, raw),) = second.items()
    assert made.do(punish(txid, raw)) == []
    # a block may take the one that was replaced
    made.do(observe(view(SEEN + 3, (lock(), LOCKED), (commit(role), SEEN), (first, SEEN + 1))))
    assert made.state() is State.PUNISHED
    ending = made.position.ending
    assert ending is not None
    assert ending.payout(role.other) == 0
    assert ending.payout(role) == made.position.transactions().commit_value - 1_000
    assert punishment(made.position) == {}


@BOTH
def test_nobody_is_punished_who_did_not_cheat(role: Role) -> None:
    for made in (opened(role), committed(role), rolled(role)):
        with pytest.raises(RefusedCommand) as caught:
            made.do(punish(bytes(32), bytes(10)))
        assert caught.value.code == "not_cheated"
    after = rolled(role)
    see(after, rollovers().commit(role.other, 1), SEEN)
    assert after.state() is State.COMMITTED
    assert PEER[role] == after.position.peer
