"""What can be done to a position: each command is a function of (position, input) that returns events or refuses.

A refusal is a `LocalError` that names the reason; nothing was written then. Commands are pure: what they need to know
of the world is in their input. Observing the same thing twice gives no events the second time, so every observer may
repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from node.position.events import (
    AttemptStarted,
    CommitPublishing,
    CommitSignatureGiven,
    ContractSigned,
    Event,
    LockAbandoned,
    LockSigned,
    OrderPlaced,
    OrderRejected,
    PriceAttested,
    Recovered,
    RecoveryOverridden,
    SetupFailed,
    SetupStarted,
)
from node.position.evolve import evolve
from node.position.state import Position
from protocols.contract.oracle import Attestation
from protocols.contract.outcomes import covering
from protocols.contract.terms import Role
from protocols.contract_setup import (
    AttemptBegun,
    LockComplete,
    Order,
    SetupComplete,
    SignaturesHeld,
)
from protocols.errors import LocalError

Command: TypeAlias = Callable[[Position], list[Event]]


class RefusedCommand(LocalError):
    """The position is not in a state in which this can be done."""


def refuse(position: Position, code: str, sentence: str) -> RefusedCommand:
    return RefusedCommand(code, f"position {position.id.hex()} is {position.state.value}: {sentence}")


# --- setup ------------------------------------------------------------------------------------------------------------


def place_order(order: Order, role: Role, peer: bytes) -> Command:
    """The taker's order exists before it is sent."""

    def decide(position: Position) -> list[Event]:
        if position.version:
            raise refuse(position, "order_id_known", "an order of this id exists already")
        return [OrderPlaced(role, peer, order.offer, order.quantity, order.leverage)]

    return decide


def begin_attempt(fact: AttemptBegun, peer: bytes) -> Command:
    """Terms, salt, points and coins of a setup; for the maker also the order itself."""

    def decide(position: Position) -> list[Event]:
        events: list[Event] = []
        if fact.role is Role.MAKER:
            events += place_order(fact.order, fact.role, peer)(position)
        elif not position.version or position.peer != peer:
            raise refuse(position, "unknown_order", "this peer was sent no such order")
        if position.attempts or position.refusal is not None:
            raise refuse(position, "already_attempted", "a setup is attempted once; order anew")
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
            raise refuse(position, "no_such_attempt", f"attempt {fact.index} is not under way")
        attempt = position.attempts[fact.index]
        if attempt.signatures_held or attempt.peer not in (None, fact.peer):
            raise refuse(position, "already_signed", "one attempt carries one set of terms and signatures")
        return [CommitSignatureGiven(fact.index, fact.peer)]

    return decide


def complete_setup(fact: SetupComplete) -> Command:
    def decide(position: Position) -> list[Event]:
        if position.refusal is not None or not position.attempts or not position.attempts[0].signatures_held:
            raise refuse(position, "not_setting_up", "the peer's signatures are not held")
        if position.contract is not None:
            raise refuse(position, "already_signed", "the contract is signed already")
        return [ContractSigned(0, fact.commit_signature, fact.own_witnesses, fact.peer_witnesses)]

    return decide


def complete_lock(fact: LockComplete) -> Command:
    def decide(position: Position) -> list[Event]:
        if position.contract is None:
            raise refuse(position, "not_signed", "there is no contract whose lock could be complete")
        return [] if position.peer_witnesses is not None else [LockSigned(fact.peer_witnesses)]

    return decide


def fail_setup(code: str, sentence: str) -> Command:
    """The setup broke. Refused once our lock signatures count as left: then the lock is watched instead."""

    def decide(position: Position) -> list[Event]:
        if position.contract is not None:
            raise refuse(position, "already_signed", "our lock signatures left; the lock decides")
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
            raise refuse(position, "no_lock_to_abandon", "there is no unconfirmed lock with our signatures")
        known = position.abandoned
        return [] if known is not None and known.txid == txid else [LockAbandoned(txid, raw)]

    return decide


# --- what the user wants ----------------------------------------------------------------------------------------------


def force_close(reason: str) -> Command:
    """Publish the commit without the peer. The oracle's price settles; if it never speaks, the refund pays out."""

    def decide(position: Position) -> list[Event]:
        contract = position.contract
        if contract is None or position.lock is None:
            raise refuse(position, "not_open", "there is no confirmed lock that a commit could spend")
        if position.commit is not None or position.unknown_commit is not None or position.ended:
            raise refuse(position, "already_committed", "the lock is spent already")
        if position.recovered and not position.overridden:
            raise refuse(
                position, "recovered", "this record may be older than what was signed, and the commit revoked since"
            )
        return [] if position.publishing is not None else [CommitPublishing(contract.index, reason)]

    return decide


def recover(reason: str) -> Command:
    """From now on this record counts as one that may be older than what was signed."""

    def decide(position: Position) -> list[Event]:
        known = position.recovered and not position.overridden
        return [] if known or position.over else [Recovered(reason)]

    return decide


def override_recovery(reason: str) -> Command:
    """Publish the commit of a record that may be old, at the word of a user who was told the risk."""

    def decide(position: Position) -> list[Event]:
        if not position.recovered:
            raise refuse(position, "not_recovered", "its record is complete; force close it instead")
        if position.overridden:
            return []
        overridden = RecoveryOverridden()
        return [overridden, *force_close(reason)(evolve(position, overridden))]

    return decide


# --- what the oracle says ---------------------------------------------------------------------------------------------


def attest(attestation: Attestation) -> Command:
    """The oracle attested an event. Only a price that a contract pays out at is recorded, for each that may pay out."""

    def decide(position: Position) -> list[Event]:
        if position.contract is None or position.ended:
            return []
        events: list[Event] = []
        for attempt in position.claimable:
            if attempt.index == _out(position) and position.cet_timelock_expired:
                continue  # too late to change what is being claimed
            transactions = position.transactions(attempt.index)
            named = [each.id for each in transactions.plan.announcements]
            if attestation.id not in named:
                continue
            event, known = named.index(attestation.id), position.attested_for(attempt.index)
            if known is not None and known.event <= event:
                continue  # the earliest attested region counts
            if covering(transactions.outcomes, event, attestation.price) is None:
                continue
            attested = PriceAttested(attempt.index, event, attestation.price, attestation.raw)
            position = evolve(position, attested)
            events.append(attested)
        return [*events, *consequences(position)] if events else []

    return decide


def _out(position: Position) -> int | None:
    return position.commit_seen.index if position.commit_seen is not None else None


def consequences(position: Position) -> list[Event]:
    """An attested price is acted upon as soon as there is a lock to spend: the commit goes out, unless it is confirmed.

    That the peer published it is not enough: a mempool may drop it, and then nobody else sees to it that it comes back.
    """
    contract = position.contract
    attested = position.attested_for(contract.index) if contract is not None else None
    if (
        attested is None
        or position.lock is None
        or position.publishing is not None
        or position.commit is not None
        or position.ending is not None
        or position.recovered
    ):
        return []
    return [CommitPublishing(attested.index, f"the oracle attested {attested.price}")]
