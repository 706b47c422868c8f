"""Which transactions a position must have broadcast now. Its events alone say so, and a restart changes nothing."""

from __future__ import annotations

from bitcoin.core import CTransaction

from node.position.state import Position
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


def due(position: Position, seed: bytes, signatures: Signatures | None) -> dict[bytes, bytes]:
    """Transactions by id, parents before children, each complete; empty when nothing is to be broadcast. What punishes
    is told by `punishment`.

    `seed` is the node's 64-byte seed, `signatures` the peer's of the present contract. Some may exclude each other, as
    a close and a commit do: whichever the chain takes.
    """
    if position.contract is None or position.ended:
        return {}
    if position.lock is None:
        return _lock(position)
    if position.unknown_commit is not None:
        return {}  # what we could sign, its publisher alone can complete
    wanted: dict[bytes, bytes] = {}
    if position.commit is None:
        if position.closing is not None and position.close_raw is not None:
            wanted[position.closing.txid] = position.close_raw
        if position.publishing is not None and (position.overridden or not position.recovered):
            txid, raw = _commit(position, position.publishing.index, seed)
            wanted[txid] = raw
        return wanted
    if position.cheated:
        return wanted
    if position.spend is not None and position.spend_raw is not None:
        wanted[position.spend.txid] = position.spend_raw
    if signatures is not None:
        wanted |= _claim(position, seed, signatures)
    return wanted


def punishment(position: Position) -> dict[bytes, bytes]:
    """What takes everything in a revoked commit, and before it the commit itself while it is in no block: a child may
    bring it in. Transactions by id, to be handed in together."""
    seen, signed = position.commit_seen, position.punish
    if seen is None or not position.cheated or position.ended:
        return {}
    wanted = {seen.txid: seen.raw} if position.commit is None else {}
    if signed is not None and spends(signed.raw, seen.txid):
        wanted[signed.txid] = signed.raw
    return wanted


def spends(raw: bytes, txid: bytes) -> bool:
    """Whether a transaction's first input is an output of that one."""
    return bytes(CTransaction.deserialize(raw).vin[0].prevout.hash) == txid


def needs_signatures(position: Position) -> bool:
    """Whether what is due is made with the peer's refund and CET signatures."""
    if position.ended or position.cheated:  # they are gone once nothing is watched any more
        return False
    return position.cet_timelock_expired or position.refund_timelock_expired


def _lock(position: Position) -> dict[bytes, bytes]:
    if position.abandoned is not None:
        return {position.abandoned.txid: position.abandoned.raw}
    own, peer = position.own_witnesses, position.peer_witnesses
    if own is None or peer is None:
        return {}
    witnesses = dict(enumerate((*own, *peer) if position.role is Role.MAKER else (*peer, *own)))
    return {position.transactions(0).lock_txid: complete_lock(position.plan(0), witnesses)}


def _commit(position: Position, index: int, seed: bytes) -> tuple[bytes, bytes]:
    attempt = position.attempts[index]
    assert attempt.commit_signature is not None, "only what can be enforced is published"
    raw = complete_commit(position.plan(index), position.role, position.keys(index, seed), attempt.commit_signature)
    return position.commit_txid(attempt), raw


def _claim(position: Position, seed: bytes, signatures: Signatures) -> dict[bytes, bytes]:
    """The CET of the attested price, or without one the refund, once its lock is over."""
    plan, transactions, attested = position.plan(), position.transactions(), position.attested
    fund = position.keys(plan.index, seed).fund
    if attested is None:
        if not position.refund_timelock_expired:
            return {}
        return {transactions.refund.GetTxid(): complete_refund(plan, position.role, fund, signatures.refund)}
    if not position.cet_timelock_expired:
        return {}
    announcement = plan.announcements[attested.event]
    attestation = parse_attestation(attested.raw, announcement)
    outcome = covering(transactions.outcomes, attested.event, attested.price)
    assert attestation is not None
    assert outcome is not None
    raw = complete_cet(
        plan,
        position.role,
        fund,
        outcome,
        peer_signature=signatures.of(transactions, outcome),
        opening=opening_scalar(attestation, announcement, outcome.digits),
    )
    return {transactions.cet(outcome).GetTxid(): raw}
