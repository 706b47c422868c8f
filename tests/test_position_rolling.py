"""A position through rollovers: what may be written when, and what it may publish, claim and punish after each record
(network.md, "Rollover")."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import attrs
import pytest
from bitcoin.core import CTransaction
from hypothesis import given
from hypothesis import strategies as st

from node.position.commands import Command, RefusedCommand, attest, force_close, recover
from node.position.deadlines import publish_unchanged
from node.position.due import due, punishment
from node.position.events import CommitPublishing, Event, Revoking, RolloverHeld
from node.position.evolve import MOST_BEGUN, evolve, replay
from node.position.facts import command_of
from node.position.observing import observe
from node.position.punishing import fee_to_sign
from node.position.rolling import begin_rollover, check_rollable, fail_rollover
from node.position.state import ENDED, State
from protocols import rollover
from protocols.contract.keys import Points
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.dialogue import Fact
from protocols.errors import LocalError
from tests.lives import (
    ATTESTED,
    SEEN,
    close,
    completed,
    do,
    opened,
    punished,
    rolled,
    rollovers,
    see,
    spend,
)
from tests.positions import LAST, LIQUIDATING, ORDER_ID, PEER, TRADER, History, attestation, reread, signatures, view

BOTH = pytest.mark.parametrize("role", Role)
OTHER = bytes([99]) * 32
PUNISH_VSIZE = 126 + 43


def seen_commit(role: Role, records: int, publisher: Role, index: int) -> History:
    made = rolled(role, records)
    see(made, rollovers().commit(publisher, index))
    return made


# --- the table of cuts ------------------------------------------------------------------------------------------------


@BOTH
def test_what_may_be_published_claimed_and_punished_after_each_record(role: Role) -> None:
    """As `protocols.rollover.Standing` has it, which is tested against the table of network.md."""
    facts = rollovers().records(role)
    assert len(facts) == 5
    for records in range(len(facts) + 1):
        made = opened(role)
        do(made, *facts[:records])
        node = rollovers().node(role)
        standing = attrs.evolve(node, facts=facts[:records]).standing(0)
        contract = made.position.contract
        assert contract is not None
        assert contract.index == max(standing.publishable)
        assert {attempt.index for attempt in made.position.claimable} == standing.claimable
        punishable = set()
        for index in range(2):
            there = History(role, made.position)
            see(there, rollovers().commit(role.other, index))
            if there.position.cheated:
                punishable.add(index)
        assert punishable == standing.punishable


@BOTH
@pytest.mark.parametrize(("published", "refused"), [(0, True), (1, False)])
def test_publishing_and_revoking_exclude_each_other(role: Role, published: int, *, refused: bool) -> None:
    """For ever, whichever is first; what is published may be the contract that follows."""
    leaves = record(role, 3)
    publishing = opened(role)
    do(publishing, *rollovers().records(role)[: 2 + published])
    publishing.do(force_close("by the user"))
    assert publishing.position.publishing == CommitPublishing(published, "by the user")
    do(publishing, *rollovers().records(role)[2 + published : 3])
    if refused:
        with pytest.raises(RefusedCommand, match="we publish it ourselves"):
            do(publishing, leaves)
    else:
        assert do(publishing, leaves) == [Revoking(0)]
    revoked = opened(role)
    do(revoked, *rollovers().records(role)[:4])
    assert revoked.do(force_close("by the user")) == [CommitPublishing(1, "by the user")]


@BOTH
def test_states_and_terms_through_two_rollovers(role: Role) -> None:
    made = opened(role)
    assert made.state() is State.OPEN
    for index in range(2):
        for fact in rollovers(2).facts[role][index]:
            do(made, fact)
            complete = len(made.position.peer_secrets) == index + 1
            begun = bool(made.position.begun)
            assert made.state() is (State.OPEN if complete or begun else State.ROLLING_OVER)
    assert made.position.contract == made.position.attempts[2]
    assert made.position.terms == rollovers(2).node(role).plan(2).terms
    assert [made.position.plan(index) for index in range(3)] == [
        rollovers(2).node(role).plan(index) for index in range(3)
    ]
    assert made.position.keys(2, TRADER[role].seed) == rollovers(2).node(role).keys(2)
    again = replay(ORDER_ID, [reread(event) for event in made.events])
    assert again == made.position


def test_the_terms_that_are_shown_are_those_of_the_contract_that_can_be_enforced() -> None:
    before, after = (rollovers().node(Role.TAKER).plan(index).terms for index in range(2))
    assert rolled(Role.TAKER, 2).position.terms == before
    assert rolled(Role.TAKER, 3).position.terms == after


def test_facts_written_together_are_all_written_or_none() -> None:
    """The maker's R1 and R2, and its R3 and R4."""
    for begun in (1, 2):
        made = rolled(Role.MAKER, begun)
        made.do(force_close("by the user"))
        before, together = made.position, rollovers().facts[Role.MAKER][0][begun]
        if begun == 1:
            with pytest.raises(RefusedCommand, match="a commit is out"):
                do(made, together)
            assert made.position is before
        else:  # it publishes n + 1, and may revoke n
            assert [type(event).__name__ for event in do(made, together)] == ["Revoking", "RevocationReceived"]
    made = rolled(Role.MAKER, 2)
    revoked = History(Role.MAKER, attrs.evolve(made.position, peer_secrets=(bytes(32),)))
    with pytest.raises(RefusedCommand, match="is not expected"):  # the second of the two
        do(revoked, rollovers().facts[Role.MAKER][0][2])
    assert revoked.position.own_revoked == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


def record(role: Role, number: int, index: int = 0) -> Fact:
    return rollovers(index + 1).records(role, index)[number]


def of_other_terms(fact: Fact) -> Fact:
    assert isinstance(fact, rollover.RolloverHeld)
    return attrs.evolve(fact, next=attrs.evolve(fact.next, funding_rate="0.0001"))


def closing(role: Role) -> History:
    made = opened(role)
    do(made, close()[role][0])
    return made


def seen_close(role: Role) -> History:
    """One that is not on record."""
    made = opened(role)
    see(made, completed(close()))
    return made


def forced(role: Role, records: int = 0) -> History:
    made = rolled(role, records)
    made.do(force_close("by the user"))
    return made


def recovered(role: Role, records: int = 0) -> History:
    made = rolled(role, records)
    made.do(recover("restored from a backup"))
    return made


def attested(role: Role, records: int = 0) -> History:
    made = rolled(role, records)
    made.do(attest(attestation(3, LIQUIDATING)))
    return made


def lost_lock(role: Role) -> History:
    made = opened(role)
    made.do(observe_nothing())
    return made


def observe_nothing() -> Command:
    return observe(view(SEEN))


TAKER, MAKER = Role.TAKER, Role.MAKER
REFUSED: list[tuple[str, Callable[[], History], Callable[[], Fact], str]] = [
    ("R0 without a lock", partial(lost_lock, TAKER), partial(record, TAKER, 0), "not_open"),
    ("R0 while a close is seen", partial(seen_close, TAKER), partial(record, TAKER, 0), "not_open"),
    ("R0 while a close is out", partial(closing, TAKER), partial(record, TAKER, 0), "closing"),
    ("the maker's too", partial(closing, MAKER), partial(record, MAKER, 0), "closing"),
    ("R0 after force close", partial(forced, TAKER), partial(record, TAKER, 0), "commit_out"),
    (
        "R0 with the peer's commit seen",
        partial(seen_commit, MAKER, 0, TAKER, 0),
        partial(record, MAKER, 0),
        "commit_out",
    ),
    ("R0 of a recovered position", partial(recovered, TAKER), partial(record, TAKER, 0), "recovered"),
    ("R0 while one is unfinished", partial(rolled, TAKER, 2), partial(record, TAKER, 0), "unfinished_rollover"),
    ("R0 of a contract that is over", partial(rolled, TAKER), partial(record, TAKER, 0), "no_such_contract"),
    ("R0 of a contract to come", partial(opened, TAKER), partial(record, TAKER, 0, 1), "no_such_contract"),
    ("the same points again", partial(rolled, MAKER, 1), partial(record, MAKER, 0), "repeated_point"),
    ("R1 without R0", partial(opened, TAKER), partial(record, TAKER, 1), "other_attempt"),
    ("R1 twice", partial(rolled, TAKER, 2), partial(record, TAKER, 1), "other_attempt"),
    ("R1 of other terms", partial(rolled, MAKER, 1), lambda: of_other_terms(record(MAKER, 1)), "other_attempt"),
    ("R1 after force close", partial(forced, TAKER, 1), partial(record, TAKER, 1), "commit_out"),
    ("R1 with a commit seen", partial(seen_commit, TAKER, 1, MAKER, 0), partial(record, TAKER, 1), "commit_out"),
    ("R1 of a recovered position", partial(recovered, TAKER, 1), partial(record, TAKER, 1), "recovered"),
    ("R2 without R1", partial(rolled, TAKER, 1), partial(record, TAKER, 2), "other_attempt"),
    ("R2 twice", partial(rolled, TAKER, 3), partial(record, TAKER, 2), "already_signed"),
    ("R3 without R2", partial(rolled, TAKER, 2), partial(record, TAKER, 3), "not_superseded"),
    ("R3 twice", partial(rolled, TAKER, 4), partial(record, TAKER, 3), "already_revoked"),
    ("R3 of a recovered position", partial(recovered, TAKER, 3), partial(record, TAKER, 3), "recovered"),
    ("R4 without R2", partial(rolled, TAKER, 1), partial(record, TAKER, 4), "not_superseded"),
    ("R4 before R3", partial(rolled, TAKER, 3), partial(record, TAKER, 4), "not_revoked"),
    ("R4 twice", partial(rolled, TAKER, 5), partial(record, TAKER, 4), "already_revoked"),
]


@pytest.mark.parametrize(("make", "fact", "code"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_refusals(make: Callable[[], History], fact: Callable[[], Fact], code: str) -> None:
    made = make()
    before = made.position
    with pytest.raises(RefusedCommand, match=ORDER_ID.hex()) as caught:
        do(made, fact())
    assert caught.value.code == code
    assert made.position is before


@pytest.mark.parametrize("number", range(5))
@BOTH
def test_nobody_else_rolls_a_position_over(role: Role, number: int) -> None:
    made = opened(role)
    do(made, *rollovers().records(role)[:number])
    with pytest.raises(RefusedCommand):
        made.do(command_of(rollovers().records(role)[number], OTHER)[1])


@BOTH
def test_a_liquidation_that_was_attested_ends_rolling_over(role: Role) -> None:
    made = attested(role)
    made.position = attrs.evolve(made.position, publishing=None)
    with pytest.raises(RefusedCommand) as caught:
        check_rollable(made.position)
    assert caught.value.code == "attested"


def test_a_taker_that_tries_all_day_can_still_roll_over() -> None:
    """Every five minutes for 22 hours, and only then the maker takes part; old attempts do not pile up."""
    for role in Role:
        made = opened(role)
        first = rollovers().records(role)[0]
        assert isinstance(first, rollover.RolloverBegun)
        for number in range(MOST_BEGUN + 12):
            made.do(begin_rollover(_other_attempt(first, role, number), PEER[role]))
        assert len(made.position.begun) == MOST_BEGUN
        do(made, *rollovers().facts[role][0])
        assert len(made.position.peer_secrets) == 1
        assert made.position.begun == ()


def _other_attempt(fact: rollover.RolloverBegun, role: Role, number: int) -> rollover.RolloverBegun:
    """With other points on both sides."""

    def points(of: Points, name: int) -> Points:
        return Points(of.fund, *(bytes([2, name]) + number.to_bytes(31, "big") for _ in range(2)))

    own = points(fact.own, 1)
    if fact.next is None:
        return attrs.evolve(fact, own=own, salt=number.to_bytes(32, "big"))
    plan = fact.next.plan
    taker = attrs.evolve(plan.taker, points=points(plan.taker.points, 2))
    maker = attrs.evolve(plan.maker, points=own)
    following = attrs.evolve(fact.next, plan=attrs.evolve(plan, taker=taker, maker=maker))
    return attrs.evolve(fact, own=own, salt=number.to_bytes(32, "big"), next=following)


def test_an_attempt_that_was_forgotten_is_never_signed() -> None:
    """The peer that goes back to it has nothing that it could publish."""
    made = rolled(Role.MAKER, 1)
    first = rollovers().records(Role.MAKER)[0]
    assert isinstance(first, rollover.RolloverBegun)
    for number in range(MOST_BEGUN):
        made.do(begin_rollover(_other_attempt(first, Role.MAKER, number), PEER[Role.MAKER]))
    with pytest.raises(RefusedCommand) as caught:
        do(made, rollovers().facts[Role.MAKER][0][1])
    assert caught.value.code == "other_attempt"


@BOTH
def test_why_a_rollover_did_not_come_about_is_kept_once(role: Role) -> None:
    made = opened(role)
    names = [
        type(event).__name__
        for rejected in (True, True, False)
        for event in made.do(fail_rollover("no_quote", f"no quote {rejected}", rejected=rejected))
    ]
    assert names == ["RolloverRejected", "RolloverFailed"]
    assert made.position.rollover_refusal == ("no_quote", "no quote False")
    first = rollovers().facts[role][0]
    do(made, first[0])
    assert made.position.rollover_refusal is not None, "the next one binds nobody yet"
    do(made, first[1])
    assert made.position.rollover_refusal is None


# --- commits in the middle of it --------------------------------------------------------------------------------------


def test_whichever_of_two_commits_confirms_is_claimed_by_its_own_contract() -> None:
    """The taker's commit signature left and nothing came back: the maker may publish n + 1, or n."""
    for index in range(2):
        made = rolled(Role.TAKER, 2)
        see(made, rollovers().commit(Role.MAKER, index), SEEN)
        assert made.position.present == made.position.attempts[index]
        assert not made.position.cheated
        blocks = made.position.plan().terms.timelocks.refund
        see(made, rollovers().commit(Role.MAKER, index), SEEN, tip=SEEN + blocks)
        held = signatures(Role.TAKER) if index == 0 else rollovers().node(Role.TAKER).signatures(1)
        refund = due(made.position, TRADER[Role.TAKER].seed, held)
        assert refund.keys() == {made.position.transactions(index).refund.GetTxid()}


@BOTH
def test_one_commit_in_the_place_of_another(role: Role) -> None:
    made = rolled(role, 4 if role is Role.TAKER else 2)
    for index in (0, 1, 0):
        see(made, rollovers().commit(role.other, index))
        assert made.position.present == made.position.attempts[index]
        assert made.position.ending is None


@BOTH
def test_a_commit_of_the_contract_before_that_vanishes_leaves_nobody_waiting(role: Role) -> None:
    """It was out, so nothing can be agreed on any more; the rollover's own deadline knows only what is unseen."""
    made = rolled(role, 3 if role is Role.TAKER else 2)
    see(made, rollovers().commit(role.other, 0))
    assert made.position.publishing is None
    see(made)
    assert made.position.publishing == CommitPublishing(1, "the peer's commit is in no mempool and no block any more")


def test_a_commit_that_vanishes_has_none_published_of_a_recovered_position() -> None:
    made = recovered(Role.TAKER)
    see(made, rollovers().commit(Role.MAKER, 0))
    assert see(made) == []


@BOTH
def test_publishing_and_then_revoking_is_cheating_once_the_revocation_is_here(role: Role) -> None:
    """The peer's own commit, out before it gave its revocation: mempool or block, before or after."""
    facts = rollovers().records(role)
    for height in (None, SEEN):
        before = opened(role)
        do(before, *facts[:3])
        see(before, rollovers().commit(role.other, 0), height)
        assert not before.position.cheated
        assert [type(event).__name__ for event in do(before, facts[3])] == ["Revoking"]
        told = [type(event).__name__ for event in do(before, facts[4])]
        assert told == ["RevocationReceived", "RevokedCommitSeen"]
        after = rolled(role)
        told = [type(event).__name__ for event in see(after, rollovers().commit(role.other, 0), height)]
        assert told[:2] == ["CommitPublished", "RevokedCommitSeen"]
        for made in (before, after):
            assert made.state() is State.PUNISHING
            paid = punished(made)
            commit = rollovers().commit(role.other, 0)
            assert (paid.keys() & commit.keys() == commit.keys()) is (height is None)
            see(made, commit, SEEN, more={txid: raw for txid, raw in paid.items() if txid not in commit})
            assert made.state() is State.PUNISHING


def test_a_commit_that_tells_no_secret_cannot_be_punished_yet() -> None:
    """A chain server may show any valid witness until the block tells."""
    made = rolled(Role.MAKER)
    ((txid, raw),) = rollovers().commit(Role.TAKER, 0).items()
    see(made, {txid: rollovers().commit(Role.MAKER, 0)[txid]})  # by ourselves
    assert made.state() is State.PUNISHING
    with pytest.raises(LocalError) as caught:
        punished(made)
    assert caught.value.code == "no_secret"
    see(made, {txid: raw}, SEEN)
    assert len(punished(made)) == 1


def test_a_forged_spend_of_the_lock_holds_nothing_back() -> None:
    """What is in no block counts with valid signatures only: a chain server can make up all the rest."""
    made = rolled(Role.MAKER)
    ((txid, raw),) = rollovers().commit(Role.TAKER, 0).items()
    ((close_txid, close_raw),) = completed(close()).items()
    stripped, flipped = _stripped(raw), raw.replace(_witness(raw)[0], bytes(64))
    state = made.state()
    for forged in (
        {txid: stripped},
        {txid: flipped},
        {close_txid: _stripped(close_raw)},
        {close_txid: close_raw.replace(_witness(close_raw)[0], bytes(64))},
    ):
        other = History(Role.MAKER, made.position)
        see(other, forged)
        assert (other.state(), other.position.commit_seen, other.position.ending) == (state, None, None)
        see(other, {**forged, close_txid: close_raw})  # beside it, or in its place
        assert other.position.ending is not None
    confirmed = History(Role.MAKER, made.position)
    see(confirmed, {txid: stripped}, SEEN)  # what a block holds is valid; only its witness is the server's word
    assert confirmed.state() is State.PUNISHING


def _witness(raw: bytes) -> list[bytes]:
    return [bytes(item) for item in CTransaction.deserialize(raw).wit.vtxinwit[0].scriptWitness.stack]


@BOTH
def test_what_is_punished_is_not_claimed_too(role: Role) -> None:
    """Also when the locks of its CETs and refund are over: of what spends it, ours should be the dearest."""
    made = rolled(role)
    see(made, rollovers().commit(role.other, 0), SEEN, tip=SEEN + REGTEST_TIMELOCKS.refund)
    assert made.position.refund_timelock_expired
    assert due(made.position, TRADER[role].seed, signatures(role)) == {}


def _stripped(raw: bytes) -> bytes:
    tx = CTransaction.deserialize(raw)
    bare: bytes = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion).serialize()
    return bare


def test_a_rollover_that_is_finished_while_its_deadline_is_looked_at_publishes_nothing() -> None:
    half_done, finished = rolled(Role.TAKER, 4), rolled(Role.TAKER)
    late = publish_unchanged(half_done.position, "too late")
    assert late(half_done.position) == [CommitPublishing(1, "too late")]
    assert late(finished.position) == []


def test_a_punishment_belongs_to_the_commit_that_is_out() -> None:
    """A cheat that replaces one revoked commit by another goes unpunished otherwise: both pay the same."""
    run = rollovers(2)
    made = rolled(Role.MAKER, index=1)
    see(made, run.commit(Role.TAKER, 0))
    assert fee_to_sign(made.position, 2, SEEN) == 2 * PUNISH_VSIZE
    first = punished(made, 2 * PUNISH_VSIZE)
    assert fee_to_sign(made.position, 2, SEEN) is None
    see(made, run.commit(Role.TAKER, 1), SEEN)
    assert made.state() is State.PUNISHING
    assert punishment(made.position) == {}
    assert fee_to_sign(made.position, 2, SEEN) == 2 * PUNISH_VSIZE
    second = punished(made)
    assert len(second) == 1
    assert not second.keys() & first.keys()


# --- any order --------------------------------------------------------------------------------------------------------


@lru_cache
def steps(role: Role) -> list[Callable[[History], list[Event]]]:
    """Whatever a node might be told, whether or not it fits."""
    run = rollovers(2)
    facts = [fact for index in range(2) for fact in run.facts[role][index]]
    facts += [*close()[role], *close("59000")[role], *close(index=1)[role], *spend()[role]]
    made: list[Callable[[History], list[Event]]] = [partial(_do, fact) for fact in facts]
    made += [partial(_command, force_close("by the user")), partial(_command, recover("a backup"))]
    made += [
        partial(_command, attest(attestation(event, price)))
        for event, price in ((LAST, ATTESTED), (3, LIQUIDATING), (2, LIQUIDATING))
    ]
    spenders = [run.commit(publisher, index) for publisher in Role for index in range(3)]
    spenders += [completed(close()), completed(close(index=1))]
    for raw in spenders:
        made += [partial(see, raw=raw), partial(see, raw=raw, height=SEEN), partial(see, raw=raw, height=SEEN, tip=430)]
    made += [
        see,
        partial(_command, observe_nothing()),
        partial(see, raw=completed(close()), height=SEEN, tip=SEEN + 100),
    ]
    return made


def _do(fact: Fact, made: History) -> list[Event]:
    return do(made, fact)


def _command(wish: Command, made: History) -> list[Event]:
    return made.do(wish)


@BOTH
@given(data=st.data())
def test_any_order_of_facts_looks_and_wishes_leaves_a_sound_position(role: Role, data: st.DataObject) -> None:
    """What a money safety rule forbids is never on record, whatever came before."""
    pool = steps(role)
    run = rollovers(2)
    records = data.draw(st.integers(0, len(run.facts[role][0])), label="records")
    made = rolled(role, records)
    for number in data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=14), label="steps"):
        before = made.position
        try:
            fresh = pool[number](made)
        except LocalError:
            assert made.position is before
            continue
        position = made.position
        revoked = [event.index for event in made.events if isinstance(event, Revoking)]
        publishing = [event.index for event in made.events if isinstance(event, CommitPublishing)]
        assert not any(ours <= gone for ours in publishing for gone in revoked)
        assert len(position.peer_secrets) <= position.own_revoked
        assert position.contract is not None
        assert position.own_revoked <= position.contract.index
        assert [attempt.index for attempt in position.attempts] == list(range(len(position.attempts)))
        # what a record that is too old has begun can never be finished: a close is what is left
        assert position.recovered or not (position.rolling and position.closing)
        if before.closing is not None:
            assert position.closing == before.closing
            assert not any(isinstance(event, RolloverHeld) for event in fresh)
        if before.recovered:
            assert not any(isinstance(event, CommitPublishing | Revoking) for event in fresh)
        if before.spend is not None:
            assert position.spend == before.spend
        assert position.ended == (position.state in ENDED)
        commits = {position.commit_txid(attempt): attempt.index for attempt in position.attempts}
        held = run.node(role).signatures(position.present.index) if position.present else None
        for txid in due(position, TRADER[role].seed, held):
            assert commits.get(txid, position.own_revoked) >= position.own_revoked  # nothing that we revoked
    again = replay(ORDER_ID, [reread(event) for event in made.events])
    assert again == made.position


@given(st.lists(st.sampled_from([e for role in Role for e in rolled(role, index=1).events]), max_size=30))
def test_evolve_refuses_nothing_of_real_rollovers_in_any_order(events: list[Event]) -> None:
    position = replay(ORDER_ID, events)
    assert position.version == len(events)
    assert position.ended == (position.state in ENDED)
    assert evolve(position, CommitPublishing(0, "a test")).version == len(events) + 1
