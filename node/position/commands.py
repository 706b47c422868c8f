"""What can be done to a position: each command is a function of (position, input) that returns events or refuses.

A refusal is a `LocalError` that names the reason; nothing was written then. Commands are pure: what they need to know
of the world is in their input. Observing the same thing twice gives no events the second time, so every observer may
repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from node.chain.monitor import Seen, View
from node.position.events import (
    AttemptStarted,
    CetConfirmed,
    CetPublished,
    CetTimelockExpired,
    CommitConfirmed,
    CommitPublished,
    CommitPublishing,
    CommitSignatureGiven,
    ContractSigned,
    Event,
    LockAbandoned,
    LockConfirmed,
    LockSigned,
    OrderPlaced,
    OrderRejected,
    PriceAttested,
    RefundConfirmed,
    RefundPublished,
    RefundTimelockExpired,
    SetupAbandoned,
    SetupFailed,
    SetupStarted,
    Witnesses,
)
from node.position.state import Position, evolve
from protocols.contract.oracle import Attestation
from protocols.contract.outcomes import covering
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractTransactions
from protocols.contract.transactions import txid as txid_of
from protocols.contract_setup import (
    AttemptBegun,
    LockComplete,
    Order,
    SetupComplete,
    SignaturesHeld,
    check_lock_witnesses,
)
from protocols.errors import LocalError, RemoteProtocolError

Command: TypeAlias = Callable[[Position], list[Event]]

LOCK_CONFIRMATIONS = 1
COMMIT_CONFIRMATIONS = 1
ABANDONED_CONFIRMATIONS = 6
"""Confirmations of what was spent back after which the lock is impossible."""
ENDING_CONFIRMATIONS = 3
"""Confirmations after which a CET or a refund is final."""


class RefusedCommand(LocalError):
    """The position is not in a state in which this can be done."""


def _refuse(position: Position, code: str, sentence: str) -> RefusedCommand:
    return RefusedCommand(code, f"position {position.id.hex()} is {position.state.value}: {sentence}")


# --- setup ------------------------------------------------------------------------------------------------------------


def place_order(order: Order, role: Role, peer: bytes) -> Command:
    """The taker's order exists before it is sent."""

    def decide(position: Position) -> list[Event]:
        if position.version:
            raise _refuse(position, "order_id_known", "an order of this id exists already")
        return [OrderPlaced(role, peer, order.offer, order.quantity, order.leverage)]

    return decide


def begin_attempt(fact: AttemptBegun, peer: bytes) -> Command:
    """Terms, salt, points and coins of a setup; for the maker also the order itself."""

    def decide(position: Position) -> list[Event]:
        events: list[Event] = []
        if fact.role is Role.MAKER:
            events += place_order(fact.order, fact.role, peer)(position)
        elif not position.version or position.peer != peer:
            raise _refuse(position, "unknown_order", "this peer was sent no such order")
        if position.attempts or position.refusal is not None:
            raise _refuse(position, "already_attempted", "a setup is attempted once; order anew")
        return [
            *events,
            SetupStarted(fact.terms, tuple(announcement.raw for announcement in fact.announcements)),
            AttemptStarted(0, fact.salt, fact.own, fact.peer),
        ]

    return decide


def hold_signatures(fact: SignaturesHeld) -> Command:
    """The peer's refund and CET signatures are verified; the blob goes to the store with the event."""

    def decide(position: Position) -> list[Event]:
        if position.refusal is not None or fact.index >= len(position.attempts):
            raise _refuse(position, "no_such_attempt", f"attempt {fact.index} is not under way")
        attempt = position.attempts[fact.index]
        if attempt.signatures_held or attempt.peer not in (None, fact.peer):
            raise _refuse(position, "already_signed", "one attempt carries one set of terms and signatures")
        return [CommitSignatureGiven(fact.index, fact.peer)]

    return decide


def complete_setup(fact: SetupComplete) -> Command:
    def decide(position: Position) -> list[Event]:
        if position.refusal is not None or not position.attempts or not position.attempts[0].signatures_held:
            raise _refuse(position, "not_setting_up", "the peer's signatures are not held")
        if position.contract is not None:
            raise _refuse(position, "already_signed", "the contract is signed already")
        return [ContractSigned(0, fact.commit_signature, fact.own_witnesses, fact.peer_witnesses)]

    return decide


def complete_lock(fact: LockComplete) -> Command:
    def decide(position: Position) -> list[Event]:
        if position.contract is None:
            raise _refuse(position, "not_signed", "there is no contract whose lock could be complete")
        return [] if position.peer_witnesses is not None else [LockSigned(fact.peer_witnesses)]

    return decide


def fail_setup(code: str, sentence: str) -> Command:
    """The setup broke. Refused once our lock signatures count as left: then the lock is watched instead."""

    def decide(position: Position) -> list[Event]:
        if position.contract is not None:
            raise _refuse(position, "already_signed", "our lock signatures left; the lock decides")
        if not position.version or position.refusal is not None:
            return []
        if not position.attempts:
            return [OrderRejected(code, sentence)]
        return [SetupFailed(code, sentence)]

    return decide


# --- a lock that does not come ----------------------------------------------------------------------------------------


def abandon_lock(txid: bytes, raw: bytes) -> Command:
    """Spend an input of the lock back to us, by the complete transaction `raw`. Only while the lock is out.

    Another transaction replaces the one before: it pays more, to the same script.
    """

    def decide(position: Position) -> list[Event]:
        if position.contract is None or position.lock is not None or position.ended:
            raise _refuse(position, "no_lock_to_abandon", "there is no unconfirmed lock with our signatures")
        known = position.abandoned
        return [] if known is not None and known.txid == txid else [LockAbandoned(txid, raw)]

    return decide


# --- what the user wants ----------------------------------------------------------------------------------------------


def force_close(reason: str) -> Command:
    """Publish the commit without the peer. The oracle's price settles; if it never speaks, the refund pays out."""

    def decide(position: Position) -> list[Event]:
        contract = position.contract
        if contract is None or position.lock is None:
            raise _refuse(position, "not_open", "there is no confirmed lock that a commit could spend")
        if position.commit is not None or position.ended:
            raise _refuse(position, "already_committed", "the commit is confirmed")
        return [] if position.publishing is not None else [CommitPublishing(contract.index, reason)]

    return decide


# --- what the chain and the oracle show -------------------------------------------------------------------------------


def observe(view: View) -> Command:
    """Whatever is new in the chain: each fact once."""

    def decide(position: Position) -> list[Event]:
        events: list[Event] = []
        if position.contract is None:
            return events
        transactions = position.transactions()
        for step in (_observe_lock, _observe_abandonment, _observe_commit, _observe_timelocks, _observe_ending):
            fresh = step(position, transactions, view)
            for event in fresh:
                position = evolve(position, event)
            events += fresh
            due = _consequences(position)
            for event in due:
                position = evolve(position, event)
            events += due
        return events

    return decide


def _observe_lock(position: Position, transactions: ContractTransactions, view: View) -> list[Event]:
    txid = transactions.lock_txid
    events: list[Event] = []
    seen = view.transactions.get(txid)
    if seen is not None and position.peer_witnesses is None:
        # the maker published it and kept its last message; should the lock be lost again, we can bring it back
        witnesses = _peer_witnesses(position, transactions, seen)
        events += [] if witnesses is None else [LockSigned(witnesses)]
    if position.lock is None and view.confirmations(txid) >= LOCK_CONFIRMATIONS:
        events.append(LockConfirmed(txid, *_where(view, txid)))
    return events


def _peer_witnesses(position: Position, transactions: ContractTransactions, seen: Seen) -> Witnesses | None:
    """The peer's witnesses in a lock; None if they are not valid: witnesses are the chain server's word."""
    first = 0 if position.role is Role.TAKER else len(transactions.plan.maker.inputs)
    witnesses = tuple(tuple(map(bytes, each.scriptWitness.stack)) for each in seen.tx.wit.vtxinwit)
    found = witnesses[first : first + len(transactions.plan.party(position.role.other).inputs)]
    try:
        check_lock_witnesses(transactions.plan, position.role.other, found)
    except RemoteProtocolError:
        return None
    return found


def _observe_abandonment(position: Position, transactions: ContractTransactions, view: View) -> list[Event]:
    if position.abandoned is None or position.lock is not None or position.spent_back is not None:
        return []
    # one that was replaced may be the one that confirms
    own = transactions.plan.party(position.role).inputs
    spenders = (view.spender(coin.txid, coin.vout) for coin in own)
    for seen in spenders:
        if seen is None or seen.txid == transactions.lock_txid:
            continue
        if view.confirmations(seen.txid) >= ABANDONED_CONFIRMATIONS:
            return [SetupAbandoned(seen.txid, *_where(view, seen.txid))]
    return []


def _observe_commit(position: Position, transactions: ContractTransactions, view: View) -> list[Event]:
    txid, index = transactions.commit_txid, transactions.plan.index
    events: list[Event] = []
    if txid in view.transactions and position.commit_seen is None:
        events.append(CommitPublished(index, txid))
    if position.commit is None and view.confirmations(txid) >= COMMIT_CONFIRMATIONS:
        events.append(CommitConfirmed(index, txid, *_where(view, txid)))
    if position.commit is not None and position.publishing is None and not view.confirmations(txid):
        # the peer's, and it may not bring it back: without it there is neither CET nor refund
        events.append(CommitPublishing(index, "a reorganisation took the peer's commit out of the chain"))
    return events


def _observe_timelocks(position: Position, transactions: ContractTransactions, view: View) -> list[Event]:
    if position.commit is None:
        return []
    events: list[Event] = []
    # BIP68: a relative lock of n blocks is over for the block n after the one that confirmed; the next is tip + 1. As
    # the commit stands now: a reorganisation may have moved it.
    passed = view.confirmations(transactions.commit_txid)
    timelocks = transactions.plan.terms.timelocks
    if position.attested is not None and not position.cet_timelock_expired:
        settles = position.attested.event == len(transactions.plan.announcements) - 1
        if passed >= (timelocks.settlement if settles else timelocks.liquidation):
            events.append(CetTimelockExpired(view.tip_height))
    if not position.refund_timelock_expired and passed >= timelocks.refund:
        events.append(RefundTimelockExpired(view.tip_height))
    return events


def _observe_ending(position: Position, transactions: ContractTransactions, view: View) -> list[Event]:
    seen = view.spender(transactions.commit_txid, 0)
    if seen is None:
        return []
    txid = seen.txid
    final = view.confirmations(txid) >= ENDING_CONFIRMATIONS
    paid = {
        role: sum(out.nValue for out in seen.tx.vout if out.scriptPubKey == transactions.plan.party(role).payout_script)
        for role in Role
    }
    payouts = paid[Role.MAKER], paid[Role.TAKER]
    known = position.cet or position.refund
    if known is not None and known.txid == txid and bool(known.confirmed) >= final:
        return []
    if txid == txid_of(transactions.refund):
        return [RefundConfirmed(txid, *_where(view, txid), *payouts) if final else RefundPublished(txid, *payouts)]
    return [CetConfirmed(txid, *_where(view, txid), *payouts) if final else CetPublished(txid, *payouts)]


def _where(view: View, txid: bytes) -> tuple[int, bytes]:
    seen = view.transactions[txid]
    assert seen.height is not None
    assert seen.block_hash is not None
    return seen.height, seen.block_hash


def attest(event: int, attestation: Attestation) -> Command:
    """The oracle attested one of the contract's events; only a price that the contract pays out at is recorded."""

    def decide(position: Position) -> list[Event]:
        contract = position.contract
        if contract is None or position.ended:
            return []
        if position.attested is not None and position.attested.event <= event:
            return []  # the earliest attested region counts
        if position.cet_timelock_expired:
            return []  # too late to change what is being claimed
        outcomes = position.transactions().outcomes
        if covering(outcomes, event, attestation.price) is None:
            return []
        attested = PriceAttested(contract.index, event, attestation.price, attestation.raw)
        return [attested, *_consequences(evolve(position, attested))]

    return decide


def _consequences(position: Position) -> list[Event]:
    """An attested price is acted upon as soon as there is a lock to spend: the commit goes out, unless it is confirmed.

    That the peer published it is not enough: a mempool may drop it, and then nobody else sees to it that it comes back.
    """
    if (
        position.attested is not None
        and position.lock is not None
        and position.publishing is None
        and position.commit is None
    ):
        return [CommitPublishing(position.attested.index, f"the oracle attested {position.attested.price}")]
    return []
