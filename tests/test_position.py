"""Positions: what commands decide and refuse, how events evolve them, and the bytes that events are kept as.

Bytes of events are pinned in tests/golden/events; a missing file is written when UPDATE_GOLDEN is set, and none is ever
changed: a class that changes its shape gets a new version and an upcaster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.chain.monitor import View
from node.eventstore.interface import Recorded
from node.position.abandon import spend_back
from node.position.commands import (
    Command,
    abandon_lock,
    attest,
    begin_attempt,
    complete_lock,
    complete_setup,
    fail_setup,
    force_close,
    hold_signatures,
    place_order,
)
from node.position.events import (
    CODEC,
    AttemptStarted,
    Buried,
    CetConfirmed,
    CetPublished,
    CetTimelockExpired,
    CloseCompleted,
    CloseConfirmed,
    CloseFailed,
    CloseProposed,
    ClosePublished,
    CloseRejected,
    CloseSigned,
    CommitConfirmed,
    CommitPublished,
    CommitPublishing,
    CommitSignatureGiven,
    ConfirmationLost,
    ContractSigned,
    Event,
    Following,
    LockAbandoned,
    LockConfirmed,
    LockSigned,
    OrderPlaced,
    OrderRejected,
    PriceAttested,
    PunishConfirmed,
    PunishPublished,
    PunishSigned,
    Recovered,
    RecoveryOverridden,
    RefundConfirmed,
    RefundPublished,
    RefundTimelockExpired,
    RevocationReceived,
    RevokedCommitSeen,
    Revoking,
    RolloverBegun,
    RolloverFailed,
    RolloverHeld,
    RolloverRejected,
    RolloverSigned,
    SetupAbandoned,
    SetupFailed,
    SetupStarted,
    SpendCompleted,
    SpendConfirmed,
    SpendPublished,
    SpendSigned,
    UnknownCommitConfirmed,
)
from node.position.evolve import replay
from node.position.facts import command_of, decode_signatures, encode_signatures
from node.position.observing import ABANDONED_CONFIRMATIONS, observe
from node.position.state import ENDED, EndingKind, State
from protocols.contract.funding import FundingInput
from protocols.contract.keys import Points
from protocols.contract.outcomes import covering
from protocols.contract.payout import Payout
from protocols.contract.signing import Signatures
from protocols.contract.terms import REGTEST_TIMELOCKS, Role, Side
from protocols.contract.transactions import Party
from protocols.contract_setup import AttemptBegun, LockComplete, SetupComplete, SignaturesHeld
from protocols.dialogue import Fact
from protocols.errors import LocalError
from tests.contracts import WORKED
from tests.positions import (
    CALM,
    LAST,
    LIQUIDATING,
    ORDER_ID,
    PEER,
    TRADER,
    History,
    attestation,
    commands,
    fact,
    history,
    recorded,
    reread,
    shared,
    view,
    wanted,
)
from tests.setups import OFFER, order

GOLDEN = Path(__file__).parent / "golden" / "events"

BOTH = pytest.mark.parametrize("role", Role)

# --- bytes ------------------------------------------------------------------------------------------------------------


def _points(first: int) -> Points:
    return Points(*(bytes([2]) + bytes([first + each]) * 32 for each in range(3)))


def _party(first: int) -> Party:
    coins = (FundingInput(bytes([first + 3]) * 32, 1, 10_000_000, b"\x51\x20" + bytes([first + 4]) * 32),)
    return Party(_points(first), coins, b"\x51\x20" + bytes([first + 5]) * 32, b"\x00\x14" + bytes([first + 6]) * 20)


FOLLOWING = Following(WORKED, (b"{}", b"[1]"), "-0.0005", _points(64))
TXID, BLOCK = bytes(range(32)), bytes(range(32, 64))

EXAMPLES: tuple[Event, ...] = (
    OrderPlaced(Role.TAKER, bytes([7]) * 32, OFFER, 3_500, 5),
    OrderRejected("max_exposure", "the maker takes no more on this side at present"),
    SetupStarted(WORKED, (b"{}", b"[1]")),
    AttemptStarted(0, bytes([9]) * 32, _party(16), None),
    CommitSignatureGiven(0, _party(32)),
    ContractSigned(0, bytes([3]) * 65, ((bytes([4]) * 64,),), None),
    LockSigned(((bytes([5]) * 71, bytes([6]) * 33), (bytes([7]) * 64,))),
    SetupFailed("interrupted", "the node stopped before the setup was complete"),
    LockAbandoned(TXID, bytes([2, 0, 0, 0])),
    SetupAbandoned(TXID, 150, BLOCK),
    LockConfirmed(TXID, 141, BLOCK),
    PriceAttested(0, 24, 49_262, b'{"attestation":null}'),
    CommitPublishing(0, "the oracle attested 49262"),
    CommitPublished(0, TXID, bytes([3, 0, 0, 0])),
    CommitConfirmed(0, TXID, 300, BLOCK),
    CetTimelockExpired(317),
    CetPublished(TXID, 1_000_000, 0),
    CetConfirmed(TXID, 318, BLOCK, 1_000_000, 2_000_000),
    RefundTimelockExpired(515),
    RefundPublished(TXID, 1, 2),
    RefundConfirmed(TXID, 516, BLOCK, 1, 2),
    RolloverBegun(1, bytes([10]) * 32, _points(48), FOLLOWING),
    RolloverHeld(1, _points(48), FOLLOWING, bytes([11]) * 65, TXID),
    RolloverSigned(1, bytes([12]) * 65),
    Revoking(0),
    RevocationReceived(0, bytes([13]) * 32),
    RolloverRejected("no_quote", "the maker has no fresh quote"),
    RolloverFailed("peer_gone", "the peer is gone"),
    CloseProposed("54000.5", "53900"),
    CloseRejected("price_moved", "the price has moved"),
    CloseFailed("peer_gone", "the peer is gone"),
    CloseSigned("54000.5", TXID, None),
    CloseCompleted(bytes([3, 0, 0, 0])),
    ClosePublished(TXID, 1, 2),
    CloseConfirmed(TXID, 516, BLOCK, 1, 2),
    SpendSigned(0, 24, 49_262, TXID, bytes([3, 0, 0, 0])),
    SpendCompleted(bytes([3, 0, 0, 0])),
    SpendPublished(TXID, 1, 2),
    SpendConfirmed(TXID, 516, BLOCK, 1, 2),
    RevokedCommitSeen(0, TXID),
    PunishSigned(TXID, bytes([3, 0, 0, 0])),
    PunishPublished(TXID, 0, 2),
    PunishConfirmed(TXID, 516, BLOCK, 0, 2),
    ConfirmationLost(TXID),
    Buried(616),
    Recovered("restored from a backup"),
    RecoveryOverridden(),
    UnknownCommitConfirmed(TXID, bytes([0, 32]), 514, BLOCK),
)


def test_there_is_an_example_of_every_event_and_every_kind_is_registered() -> None:
    assert [type(each) for each in EXAMPLES] == list(get_args(Event))
    assert [CODEC.encode(each).name for each in EXAMPLES] == list(CODEC.names)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_the_bytes_of_an_event_never_change(event: Event) -> None:
    new = CODEC.encode(event)
    golden = GOLDEN / f"{new.name}.{new.version}.hex"
    if not golden.exists() and os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(new.data.hex() + "\n", encoding="ascii")
    assert new.data.hex() == golden.read_text(encoding="ascii").strip()
    assert CODEC.decode(recorded(new), shared(new)) == event


def test_every_version_that_was_ever_written_can_be_read() -> None:
    made = [(CODEC.encode(each), each) for each in EXAMPLES]
    examples = {new.name: each for new, each in made}
    contents = {name: piece for new, _ in made for name, piece in shared(new).items()}
    files = sorted(GOLDEN.glob("*.hex"))
    assert len(files) >= len(EXAMPLES)
    for file in files:
        name, version = file.stem.split(".")
        data = bytes.fromhex(file.read_text(encoding="ascii"))
        event = CODEC.decode(Recorded(1, "position/00", 1, name, int(version), data, 0.0), contents)
        assert event == examples[name]


@BOTH
def test_events_of_a_real_setup_are_read_as_they_were_written(role: Role) -> None:
    made = history(role)
    again = [reread(event) for event in made.events]
    assert again == made.events
    assert replay(ORDER_ID, again) == made.position


@given(st.builds(Signatures, st.binary(min_size=64, max_size=64), st.lists(st.binary(max_size=200)).map(tuple)))
def test_signatures_are_read_as_they_were_written(held: Signatures) -> None:
    assert decode_signatures(encode_signatures(held)) == held


@BOTH
def test_no_secret_shows_in_a_position(role: Role) -> None:
    made = history(role)
    shown = repr((made.position, made.events))
    salt = made.position.attempts[0].salt
    assert repr(salt) not in shown
    assert salt.hex() not in shown
    assert repr(made.position.attempts[0].commit_signature) not in shown


# --- a life -----------------------------------------------------------------------------------------------------------

LOCKED, COMMITTED = 200, 500


class Life:
    """A contract's life on a chain that the test draws up: what is due is what gets there."""

    def __init__(self, role: Role) -> None:
        self.made = history(role)
        self.lock = wanted(history(Role.MAKER))  # the one who knows all witnesses first
        self.placed: list[tuple[dict[bytes, bytes], int | None]] = []
        self.tip = LOCKED

    def see(self) -> list[Event]:
        return self.made.do(observe(self.view))

    @property
    def view(self) -> View:
        return view(self.tip, *self.placed)

    def confirm_lock(self) -> Life:
        self.placed = [(self.lock, LOCKED)]
        self.see()
        return self

    def attest(self, price: int, event: int = LAST) -> Life:
        self.made.do(attest(attestation(event, price)))
        return self

    def publish_commit(self) -> Life:
        self.commit = wanted(self.made)
        self.placed.append((self.commit, None))
        self.see()
        return self

    def confirm_commit(self) -> Life:
        self.placed[-1] = (self.commit, COMMITTED)
        self.tip = COMMITTED
        self.see()
        return self

    def wait(self, blocks: int) -> Life:
        """So that this many blocks stand on the chain from the commit's on."""
        self.tip = COMMITTED + blocks - 1
        self.see()
        return self

    def publish_ending(self) -> Life:
        self.ending = wanted(self.made)
        self.placed.append((self.ending, None))
        self.see()
        return self

    def confirm_ending(self, confirmations: int = 3) -> Life:
        at = self.tip
        self.placed[-1] = (self.ending, at)
        self.tip = at + confirmations - 1
        self.see()
        return self

    def state(self) -> State:
        return self.made.state()


def settled(role: Role = Role.MAKER) -> Life:
    life = Life(role).confirm_lock().attest(60_000).publish_commit().confirm_commit()
    return life.wait(REGTEST_TIMELOCKS.settlement).publish_ending().confirm_ending()


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


@BOTH
def test_states_of_a_whole_life_to_a_cet(role: Role) -> None:
    life = Life(role)
    assert life.state() is State.OPENING
    assert life.see() == []
    life.confirm_lock()
    assert life.state() is State.OPEN
    assert life.made.position.lock is not None
    life.attest(60_000)
    assert life.state() is State.SETTLING
    assert names(life.made.events[-3:]) == ["LockConfirmed", "PriceAttested", "CommitPublishing"]
    life.publish_commit().confirm_commit()
    assert names(life.made.events[-2:]) == ["CommitPublished", "CommitConfirmed"]
    assert wanted(life.made) == {}
    life.wait(REGTEST_TIMELOCKS.settlement - 1)
    assert not life.made.position.cet_timelock_expired
    life.wait(REGTEST_TIMELOCKS.settlement)
    assert names(life.made.events[-1:]) == ["CetTimelockExpired"]
    life.publish_ending()
    assert life.state() is State.SETTLING
    life.confirm_ending(2)
    assert not life.made.position.ended
    life.tip += 1
    assert names(life.see()) == ["CetConfirmed"]
    assert life.state() is State.SETTLED
    assert wanted(life.made) == {}
    assert life.made.position.inputs_held == frozenset()
    assert life.made.position.own_margin_at_risk == 0


@BOTH
def test_payouts_are_those_of_the_contract_to_the_satoshi(role: Role) -> None:
    position = settled(role).made.position
    outcome = covering(position.transactions().outcomes, LAST, 60_000)
    assert outcome is not None
    assert position.ending is not None
    payouts = Payout(position.plan().terms).split(outcome.long)
    assert {each: position.ending.payout(each) for each in Role} == payouts
    assert sum(payouts.values()) == position.plan().terms.pool


def test_states_of_a_refund() -> None:
    life = Life(Role.TAKER).confirm_lock()
    life.made.do(force_close("by the user"))
    assert life.state() is State.FORCE_CLOSING
    life.publish_commit().confirm_commit()
    assert life.state() is State.COMMITTED
    life.wait(REGTEST_TIMELOCKS.refund - 1)
    assert life.state() is State.COMMITTED
    assert wanted(life.made) == {}
    life.wait(REGTEST_TIMELOCKS.refund)
    life.publish_ending()
    assert life.state() is State.REFUNDING
    life.confirm_ending()
    assert life.state() is State.REFUNDED
    refund = life.made.position.ending
    assert refund is not None
    assert {role: refund.payout(role) for role in Role} == Payout(life.made.position.plan().terms).refund()


def test_states_before_a_contract() -> None:
    states = []
    for steps in range(6):
        states.append(history(Role.TAKER, steps).position.state)
    assert states[1:] == [State.ORDERED, State.SETTING_UP, State.SETTING_UP, State.OPENING, State.OPENING]
    assert history(Role.MAKER, 1).position.state is State.SETTING_UP
    ordered, begun = history(Role.TAKER, 1), history(Role.TAKER, 2)
    for made in (ordered, begun):
        made.do(fail_setup("peer_gone", "the peer is gone"))
        assert made.position.refusal == ("peer_gone", "the peer is gone")
        assert made.position.ended
    assert (ordered.position.state, begun.position.state) == (State.REJECTED, State.SETUP_FAILED)


@BOTH
def test_coins_are_held_from_the_attempt_until_it_failed(role: Role) -> None:
    coins = frozenset(coin.outpoint for coin in TRADER[role].funding().inputs)
    before = 1 if role is Role.TAKER else 0
    assert history(role, before).position.inputs_held == frozenset()
    for steps in range(before + 1, 6):
        assert history(role, steps).position.inputs_held == coins
    failed = history(role, before + 2)
    failed.do(fail_setup("peer_gone", "the peer is gone"))
    assert failed.position.inputs_held == frozenset()


@BOTH
def test_sides_and_margins(role: Role) -> None:
    position = history(role).position
    assert position.side is (Side.SHORT if role is Role.MAKER else Side.LONG)
    assert position.own_margin_at_risk == position.plan().terms.margin(role)
    assert len(position.plan().announcements) == LAST + 1


# --- observing --------------------------------------------------------------------------------------------------------


def test_one_look_at_a_chain_that_went_on_without_us_tells_all_of_it() -> None:
    after = settled(Role.TAKER)
    late = history(Role.TAKER)
    late.do(attest(attestation(LAST, 60_000)))
    assert late.state() is State.OPENING
    late.do(observe(after.view))
    assert late.state() is State.SETTLED
    assert late.position.ending == after.made.position.ending
    assert len(set(names(late.events))) == len(late.events)


def test_a_commit_by_the_peer_is_followed_and_taken_over_once_a_price_is_attested() -> None:
    """The mempool may drop it, and the peer may never come back."""
    life = Life(Role.MAKER).confirm_lock()
    other = Life(Role.TAKER).confirm_lock()
    other.made.do(force_close("by the user"))
    other.publish_commit()
    life.placed = other.placed
    assert names(life.see()) == ["CommitPublished"]
    assert life.state() is State.FORCE_CLOSING
    assert wanted(life.made) == {}
    life.attest(60_000)
    assert wanted(life.made).keys() == other.commit.keys()
    life.commit = other.commit
    life.confirm_commit()
    assert wanted(life.made) == {}


def test_an_attestation_after_the_commit_confirmed_publishes_no_other() -> None:
    life = Life(Role.MAKER).confirm_lock()
    life.made.do(force_close("by the user"))
    life.publish_commit().confirm_commit().attest(60_000)
    assert names(life.made.events).count("CommitPublishing") == 1
    life.wait(REGTEST_TIMELOCKS.settlement).publish_ending().confirm_ending()
    assert life.state() is State.SETTLED


def test_a_price_attested_before_the_lock_confirms_waits_for_it() -> None:
    life = Life(Role.MAKER).attest(60_000)
    assert names(life.made.events[-1:]) == ["PriceAttested"]
    assert wanted(life.made).keys() == life.lock.keys()
    life.confirm_lock()
    assert names(life.made.events[-2:]) == ["LockConfirmed", "CommitPublishing"]


def test_liquidation_before_expiry_goes_by_the_shorter_lock() -> None:
    life = Life(Role.MAKER).confirm_lock().attest(LIQUIDATING, event=3)
    assert life.state() is State.SETTLING
    life.publish_commit().confirm_commit().wait(REGTEST_TIMELOCKS.liquidation - 1)
    assert not life.made.position.cet_timelock_expired
    life.wait(REGTEST_TIMELOCKS.liquidation).publish_ending().confirm_ending()
    position = life.made.position
    assert position.ending is not None
    assert (position.ending.maker_payout, position.ending.taker_payout) == (position.plan().terms.pool, 0)


def test_the_earliest_attested_region_counts() -> None:
    life = Life(Role.MAKER).confirm_lock()
    assert life.made.do(attest(attestation(3, CALM))) == []
    life.attest(60_000)
    life.attest(LIQUIDATING, event=7)
    assert life.made.do(attest(attestation(9, LIQUIDATING))) == []
    life.attest(LIQUIDATING, event=2)
    attested = life.made.position.attested
    assert attested is not None
    assert attested.event == 2
    assert names(life.made.events).count("CommitPublishing") == 1
    life.publish_commit().confirm_commit().wait(REGTEST_TIMELOCKS.liquidation)
    assert life.made.do(attest(attestation(1, LIQUIDATING))) == []  # what is being claimed does not change


def test_a_reorganisation_moves_the_commit_and_with_it_the_time_of_the_cet() -> None:
    life = Life(Role.MAKER).confirm_lock().attest(60_000).publish_commit().confirm_commit()
    life.tip += 5
    life.placed[-1] = (life.commit, COMMITTED + 5)
    assert names(life.see()) == ["ConfirmationLost", "CommitConfirmed"]
    life.tip = COMMITTED + 5 + REGTEST_TIMELOCKS.settlement - 2
    assert life.see() == []
    life.tip += 1
    assert names(life.see()) == ["CetTimelockExpired"]


def test_the_refund_confirms_though_a_cet_was_seen_and_the_other_way_round() -> None:
    """Both are valid once the refund's lock is over; what confirms is what happened."""
    refunding = Life(Role.TAKER).confirm_lock()
    refunding.made.do(force_close("by the user"))
    refunding.publish_commit().confirm_commit().wait(REGTEST_TIMELOCKS.refund)
    refund = wanted(refunding.made)
    settling = Life(Role.MAKER).confirm_lock().attest(60_000)
    settling.placed, settling.commit, settling.tip = list(refunding.placed), refunding.commit, refunding.tip
    settling.see()
    cet = wanted(settling.made)
    assert cet.keys() != refund.keys()
    for first, last, state in ((cet, refund, State.REFUNDED), (refund, cet, State.SETTLED)):
        made = History(Role.MAKER, settling.made.position)
        tip = settling.tip
        made.do(observe(view(tip, *settling.placed, (first, None))))
        assert not made.position.ended
        made.do(observe(view(tip + 1, *settling.placed, (last, tip + 1))))
        assert not made.position.ended
        made.do(observe(view(tip + 3, *settling.placed, (last, tip + 1))))
        assert made.position.state is state
        assert made.position.ending is not None
        assert (made.position.ending.kind is EndingKind.REFUND) == (state is State.REFUNDED)
        assert wanted(made) == {}


def test_a_lock_that_is_given_up_frees_the_coins_once_what_was_spent_back_is_deep() -> None:
    life = Life(Role.TAKER)
    reserved = life.made.position.inputs_held
    spent_back = {TXID: spend_back(life.made.position, bytes([0x51, 32]) + bytes(32), 3)[0].serialize()}
    life.made.do(abandon_lock(TXID, spent_back[TXID]))
    assert life.state() is State.ABANDONING
    assert wanted(life.made) == spent_back
    assert life.made.do(abandon_lock(TXID, spent_back[TXID])) == []
    life.placed, life.tip = [(spent_back, 300)], 300 + ABANDONED_CONFIRMATIONS - 2
    assert life.see() == []
    assert life.made.position.inputs_held == reserved != frozenset()
    life.tip += 1
    assert names(life.see()) == ["SetupAbandoned"]
    assert life.state() is State.SETUP_FAILED
    assert life.made.position.inputs_held == frozenset()
    assert wanted(life.made) == {}


def test_a_lock_that_confirms_though_it_was_given_up_is_an_open_position() -> None:
    life = Life(Role.TAKER)
    life.made.do(abandon_lock(TXID, bytes(10)))
    life.attest(60_000).confirm_lock()
    assert life.state() is State.SETTLING
    assert wanted(life.made).keys() == {life.made.position.transactions().commit_txid}
    life.publish_commit().confirm_commit().wait(REGTEST_TIMELOCKS.settlement).publish_ending().confirm_ending()
    assert life.state() is State.SETTLED


# --- refusals ---------------------------------------------------------------------------------------------------------


def begun(role: Role) -> AttemptBegun:
    found = fact(role, AttemptBegun)
    assert isinstance(found, AttemptBegun)
    return found


def held(role: Role) -> SignaturesHeld:
    found = fact(role, SignaturesHeld)
    assert isinstance(found, SignaturesHeld)
    return found


def complete(role: Role) -> SetupComplete:
    found = fact(role, SetupComplete)
    assert isinstance(found, SetupComplete)
    return found


LOCK = LockComplete(ORDER_ID, ((bytes(64),),))


def failed(role: Role = Role.TAKER) -> History:
    made = history(role, 2)
    made.do(fail_setup("peer_gone", "the peer is gone"))
    return made


REFUSALS: list[tuple[str, Callable[[], History], Callable[[], Command], str]] = [
    (
        "an order id twice",
        partial(history, Role.TAKER, 1),
        partial(place_order, order(), Role.TAKER, bytes(32)),
        "order_id_known",
    ),
    (
        "the maker's order id twice",
        partial(history, Role.MAKER, 1),
        lambda: begin_attempt(begun(Role.MAKER), PEER[Role.MAKER]),
        "order_id_known",
    ),
    (
        "the maker's order id after its end",
        partial(failed, Role.MAKER),
        lambda: begin_attempt(begun(Role.MAKER), PEER[Role.MAKER]),
        "order_id_known",
    ),
    (
        "an attempt without an order",
        partial(history, Role.TAKER, 0),
        lambda: begin_attempt(begun(Role.TAKER), PEER[Role.TAKER]),
        "unknown_order",
    ),
    (
        "an attempt with another peer",
        partial(history, Role.TAKER, 1),
        lambda: begin_attempt(begun(Role.TAKER), bytes(32)),
        "unknown_order",
    ),
    (
        "a second attempt",
        partial(history, Role.TAKER, 2),
        lambda: begin_attempt(begun(Role.TAKER), PEER[Role.TAKER]),
        "already_attempted",
    ),
    (
        "an attempt after a failure",
        failed,
        lambda: begin_attempt(begun(Role.TAKER), PEER[Role.TAKER]),
        "already_attempted",
    ),
    (
        "signatures without an attempt",
        partial(history, Role.TAKER, 1),
        lambda: hold_signatures(held(Role.TAKER)),
        "no_such_attempt",
    ),
    (
        "signatures of another attempt",
        partial(history, Role.TAKER, 2),
        lambda: hold_signatures(attrs.evolve(held(Role.TAKER), index=1)),
        "no_such_attempt",
    ),
    ("signatures after a failure", failed, lambda: hold_signatures(held(Role.TAKER)), "no_such_attempt"),
    ("signatures twice", partial(history, Role.TAKER, 3), lambda: hold_signatures(held(Role.TAKER)), "already_signed"),
    (
        "signatures of another party",
        partial(history, Role.TAKER, 2),
        lambda: hold_signatures(attrs.evolve(held(Role.TAKER), peer=_party(0))),
        "already_signed",
    ),
    (
        "completion without signatures",
        partial(history, Role.TAKER, 2),
        lambda: complete_setup(complete(Role.TAKER)),
        "not_setting_up",
    ),
    ("completion after a failure", failed, lambda: complete_setup(complete(Role.TAKER)), "not_setting_up"),
    (
        "completion twice",
        partial(history, Role.TAKER, 4),
        lambda: complete_setup(complete(Role.TAKER)),
        "already_signed",
    ),
    ("a lock without a contract", partial(history, Role.TAKER, 3), partial(complete_lock, LOCK), "not_signed"),
    (
        "a failure after our lock signatures left",
        partial(history, Role.TAKER, 4),
        partial(fail_setup, "peer_gone", "gone"),
        "already_signed",
    ),
    (
        "giving up a lock that is confirmed",
        lambda: settled().made,
        partial(abandon_lock, TXID, bytes(10)),
        "no_lock_to_abandon",
    ),
    (
        "giving up a lock that nobody signed",
        partial(history, Role.TAKER, 3),
        partial(abandon_lock, TXID, bytes(10)),
        "no_lock_to_abandon",
    ),
    (
        "force close before the lock confirmed",
        partial(history, Role.TAKER),
        partial(force_close, "by the user"),
        "not_open",
    ),
    ("force close of no contract", partial(history, Role.TAKER, 3), partial(force_close, "by the user"), "not_open"),
    (
        "force close after the commit confirmed",
        lambda: settled().made,
        partial(force_close, "by the user"),
        "already_committed",
    ),
]


@pytest.mark.parametrize(
    ("make", "command", "code"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS]
)
def test_refusals_name_the_reason_and_the_position(
    make: Callable[[], History], command: Callable[[], Command], code: str
) -> None:
    made = make()
    with pytest.raises(LocalError, match=ORDER_ID.hex()) as caught:
        command()(made.position)
    assert caught.value.code == code


def test_a_fact_that_no_position_remembers_is_refused() -> None:
    with pytest.raises(LocalError, match="no position remembers a Strange") as caught:
        command_of(type("Strange", (Fact,), {})(), bytes(32))
    assert caught.value.code == "unknown_fact"


def test_what_may_be_said_twice_gives_nothing_the_second_time() -> None:
    made = history(Role.TAKER)
    assert made.do(complete_lock(LOCK)) == []
    unknown = History(Role.MAKER)
    assert unknown.do(fail_setup("peer_gone", "the peer is gone")) == []
    lost = failed()
    assert lost.do(fail_setup("peer_gone", "the peer is gone")) == []
    closing = Life(Role.TAKER).confirm_lock()
    assert len(closing.made.do(force_close("by the user"))) == 1
    assert closing.made.do(force_close("by the user")) == []


@pytest.mark.parametrize(
    "made", [history(Role.TAKER, 0), history(Role.TAKER, 3), failed()], ids=["none", "half", "failed"]
)
def test_without_a_contract_there_is_nothing_to_observe_or_attest(made: History) -> None:
    lock = wanted(history(Role.MAKER))
    assert made.do(observe(view(300, (lock, 200))), attest(attestation(LAST, CALM))) == []


# --- any order --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(EXAMPLES), max_size=25))
def test_evolve_refuses_nothing_and_every_position_has_a_state(events: list[Event]) -> None:
    position = replay(ORDER_ID, events)
    assert position.version == len(events)
    assert position.ended == (position.state in ENDED)
    assert isinstance(position.inputs_held, frozenset)


def pool(role: Role) -> list[Command]:
    """Commands and looks at the chain of all kinds, whether or not they fit together."""
    life = Life(role).confirm_lock()
    life.made.do(force_close("by the user"))
    views = [view(150), life.view]
    life.publish_commit()
    views.append(life.view)
    life.confirm_commit()
    views.append(life.view)
    unsettled = life.made.position
    life.wait(REGTEST_TIMELOCKS.refund)
    views.append(life.view)
    refund = wanted(life.made)
    settling = History(role, unsettled)
    settling.do(attest(attestation(LAST, 60_000)), observe(life.view))
    cet = wanted(settling)
    for ending in (cet, refund):
        for at in (None, life.tip, life.tip - 2):
            views.append(view(life.tip, *life.placed, (ending, at)))
    attested = [(LAST, 60_000), (2, LIQUIDATING), (2, CALM), (5, LIQUIDATING), (LAST, 0)]
    return [
        *commands(role),
        *map(observe, views),
        *(attest(attestation(event, price)) for event, price in attested),
        fail_setup("peer_gone", "the peer is gone"),
        force_close("by the user"),
    ]


POOLS = {role: pool(role) for role in Role}


@given(st.data())
def test_any_sequence_of_commands_leaves_a_sound_position(data: st.DataObject) -> None:
    """And whatever is observed twice gives nothing new."""
    role = data.draw(st.sampled_from(Role))
    given_commands = POOLS[role]
    setup = data.draw(st.integers(0, len(commands(role))))
    rest = data.draw(st.lists(st.integers(0, len(given_commands) - 1), max_size=12))
    made = history(role, setup)
    for number in rest:
        before = made.position
        try:
            fresh = made.do(given_commands[number])
        except LocalError:
            assert made.position is before
            continue
        if number >= len(commands(role)):
            assert made.do(given_commands[number]) == []
        if before.ended:
            assert fresh == [] or before.state in (State.SETTLED, State.REFUNDED)
        if before.contract is not None:
            assert made.position.contract == before.contract
            assert not made.position.failed
        if made.position.attested is not None and made.position.lock is not None:
            assert made.position.publishing or made.position.commit or made.position.ending
    again = replay(ORDER_ID, [reread(event) for event in made.events])
    assert again == made.position
    assert made.position.version == len(made.events)
    for raw in wanted(made).values() if made.position.contract else ():
        assert raw
