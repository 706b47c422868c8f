"""Commands of a rollover: what each record asks for, and when nothing of it may be written any more (network.md)."""

from __future__ import annotations

from node.position.commands import Command, refuse
from node.position.events import (
    Event,
    Following,
    RevocationReceived,
    RevokedCommitSeen,
    Revoking,
    RolloverBegun,
    RolloverFailed,
    RolloverHeld,
    RolloverRejected,
    RolloverSigned,
)
from node.position.state import Attempt, Position
from protocols import rollover
from protocols.contract.terms import Role
from protocols.rollover import NextContract


def check_rollable(position: Position) -> Attempt:
    """The contract that may be rolled over now, as far as the record tells. Raises `RefusedCommand`."""
    contract = position.contract
    if contract is None or position.lock is None or position.ending is not None:
        raise refuse(position, "not_open", "there is no contract to roll over")
    if position.publishing is not None or position.commit_seen is not None:
        raise refuse(position, "commit_out", "a commit is out; the contract settles by the oracle's price")
    if position.closing is not None:
        raise refuse(position, "closing", "our signature of its close left; only that may follow")
    if any(each.index >= contract.index for each in position.attestations):
        raise refuse(position, "attested", "the oracle attested a price that the contract pays out at")
    if position.recovered:
        raise refuse(position, "recovered", "this record may be older than what was signed")
    return contract


def begin_rollover(fact: rollover.RolloverBegun, peer: bytes) -> Command:
    """R0."""

    def decide(position: Position) -> list[Event]:
        contract = _check_peer(position, peer)
        if position.rolling:
            raise refuse(position, "unfinished_rollover", "the last rollover must be finished first")
        if fact.index != contract.index + 1:
            raise refuse(position, "no_such_contract", f"contract {contract.index} stands, not {fact.index - 1}")
        following = None
        if fact.next is not None:
            following = _following(position, fact.next)
            if any(each.following and each.following.peer == following.peer for each in position.begun):
                raise refuse(position, "repeated_point", "one pair of points carries one set of terms")
        return [RolloverBegun(fact.index, fact.salt, fact.own, following)]

    return decide


def hold_rollover(fact: rollover.RolloverHeld, peer: bytes) -> Command:
    """R1. The blob with the signatures goes to the store with the event."""

    def decide(position: Position) -> list[Event]:
        contract = _check_peer(position, peer)
        begun = next((each for each in position.begun if each.own == fact.next.plan.party(position.role).points), None)
        if begun is None or fact.index != contract.index + 1 or position.rolling:
            raise refuse(position, "other_attempt", f"no attempt with these points at contract {fact.index} goes on")
        following = _following(position, fact.next)
        if begun.following is not None and begun.following != following:
            raise refuse(position, "other_attempt", "one pair of points carries one set of terms")
        return [
            RolloverHeld(
                fact.index,
                begun.own,
                following if begun.following is None else None,
                fact.commit_signature,
                fact.commit_txid,
            )
        ]

    return decide


def complete_rollover(fact: rollover.RolloverComplete, peer: bytes) -> Command:
    """R2: never refused while the attempt stands. More can be enforced with it, and nothing less."""

    def decide(position: Position) -> list[Event]:
        attempt = position.attempts[-1] if position.attempts else None
        if attempt is None or position.peer != peer or attempt.index != fact.index or not fact.index:
            raise refuse(position, "other_attempt", f"contract {fact.index} is not being agreed on")
        if attempt.commit_signature is not None:
            raise refuse(position, "already_signed", f"contract {fact.index} is complete")
        return [RolloverSigned(fact.index, fact.commit_signature)]

    return decide


def revoke(fact: rollover.RevocationLeaves, peer: bytes) -> Command:
    """R3. It and our publishing of the contract exclude each other for ever.

    That the peer published it is no obstacle: our secret is worth something only with what our own commit would tell.
    """

    def decide(position: Position) -> list[Event]:
        contract = position.contract
        if contract is None or position.peer != peer or contract.index != fact.index + 1:
            raise refuse(position, "not_superseded", f"contract {fact.index} has no successor")
        if position.own_revoked != fact.index:
            raise refuse(position, "already_revoked", f"contract {fact.index} is revoked")
        if position.publishing is not None and position.publishing.index <= fact.index:
            raise refuse(position, "commit_out", "we publish it ourselves")
        if position.recovered:
            raise refuse(position, "recovered", "we may have published it since this record was made")
        return [Revoking(fact.index)]

    return decide


def hold_revocation(fact: rollover.RevocationHeld, peer: bytes) -> Command:
    """R4. If the peer published the contract before it revoked it, it is a cheat from now on."""

    def decide(position: Position) -> list[Event]:
        if position.peer != peer or not position.attempts or position.attempts[-1].index <= fact.index:
            raise refuse(position, "not_superseded", f"contract {fact.index} has no successor")
        if len(position.peer_secrets) != fact.index:
            raise refuse(position, "already_revoked", f"a revocation of contract {fact.index} is not expected")
        if position.own_revoked <= fact.index:
            # ours leaves first: so a commit that the peer revoked is never one that we published
            raise refuse(position, "not_revoked", f"our own revocation of contract {fact.index} has not left")
        events: list[Event] = [RevocationReceived(fact.index, fact.secret)]
        seen = position.commit_seen
        if seen is not None and seen.index == fact.index:
            events.append(RevokedCommitSeen(seen.index, seen.txid))
        return events

    return decide


def fail_rollover(code: str, sentence: str, *, rejected: bool) -> Command:
    """Why a rollover did not come about; `rejected`: the peer said so. The same reason again is nothing new."""

    def decide(position: Position) -> list[Event]:
        if position.contract is None or position.ended or position.rollover_refusal == (code, sentence):
            return []
        return [RolloverRejected(code, sentence) if rejected else RolloverFailed(code, sentence)]

    return decide


def _check_peer(position: Position, peer: bytes) -> Attempt:
    if position.peer != peer:
        raise refuse(position, "unknown_contract", "there is no such contract with this peer")
    return check_rollable(position)


def _following(position: Position, following: NextContract) -> Following:
    plan = following.plan
    return Following(
        plan.terms,
        tuple(each.raw for each in plan.announcements),
        following.funding_rate,
        plan.party(Role.TAKER if position.role is Role.MAKER else Role.MAKER).points,
    )
