"""Which transactions a position must have broadcast now: a function of its events and of what the chain shows, so a
restart changes nothing."""

from __future__ import annotations

from collections.abc import Collection

from node.position.state import Attempt, Position
from protocols.contract.keys import AttemptKeys, attempt_keys
from protocols.contract.oracle import opening_scalar, parse_attestation
from protocols.contract.outcomes import covering
from protocols.contract.signing import (
    Signatures,
    complete_cet,
    complete_commit,
    complete_lock,
    complete_refund,
)
from protocols.contract.terms import Role


def due(
    position: Position, seed: bytes, signatures: Signatures | None, lost: Collection[bytes] = ()
) -> dict[bytes, bytes]:
    """Transactions by id, parents before children, each complete; empty when nothing is to be broadcast.

    `seed` is the node's 64-byte seed, `signatures` the peer's of the present contract. `lost` are the ids of those
    that were confirmed once and are not any more: a reorganisation took them out of the chain.
    """
    contract = position.contract
    if contract is None or position.ended:
        return {}
    plan = position.plan(contract.index)
    transactions = position.transactions(contract.index)
    wanted: dict[bytes, bytes] = {}
    own, peer = position.own_witnesses, position.peer_witnesses
    if position.abandoned is not None and position.lock is None:
        return {position.abandoned.txid: position.abandoned.raw}
    if (position.lock is None or transactions.lock_txid in lost) and own is not None and peer is not None:
        witnesses = dict(enumerate((*own, *peer) if position.role is Role.MAKER else (*peer, *own)))
        wanted[transactions.lock_txid] = complete_lock(plan, witnesses)
    if position.lock is None:
        return wanted
    if position.publishing is not None and (position.commit is None or transactions.commit_txid in lost):
        assert contract.commit_signature is not None
        keys = _keys(position, contract, seed)
        commit = complete_commit(plan, position.role, keys, contract.commit_signature)
        wanted[transactions.commit_txid] = commit
    if position.commit is None or signatures is None:
        return wanted
    keys = _keys(position, contract, seed)
    attested = position.attested
    if attested is not None and position.cet_timelock_expired:
        announcement = plan.announcements[attested.event]
        attestation = parse_attestation(attested.raw, announcement)
        outcome = covering(transactions.outcomes, attested.event, attested.price)
        assert attestation is not None
        assert outcome is not None
        raw = complete_cet(
            plan,
            position.role,
            keys.fund,
            outcome,
            peer_signature=signatures.of(transactions, outcome),
            opening=opening_scalar(attestation, announcement, outcome.digits),
        )
        wanted[transactions.cet(outcome).GetTxid()] = raw
    elif attested is None and position.refund_timelock_expired:
        wanted[transactions.refund.GetTxid()] = complete_refund(plan, position.role, keys.fund, signatures.refund)
    return wanted


def _keys(position: Position, attempt: Attempt, seed: bytes) -> AttemptKeys:
    return attempt_keys(
        seed,
        setup_salt=position.attempts[0].salt,
        salt=attempt.salt,
        order_id=position.id,
        index=attempt.index,
    )
