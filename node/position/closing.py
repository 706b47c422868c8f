"""Commands of what ends a position early: the close, the cooperative spend of a commit, and punishment."""

from __future__ import annotations

from node.position.commands import Command, refuse
from node.position.events import (
    CloseCompleted,
    CloseFailed,
    CloseProposed,
    CloseRejected,
    CloseSigned,
    Event,
    PunishSigned,
    SpendCompleted,
    SpendSigned,
)
from node.position.state import Attempt, Position
from protocols import settlement


def check_closable(position: Position) -> Attempt:
    """The contract that may be closed now, or whose close may be signed again. Raises `RefusedCommand`."""
    contract = position.contract
    if contract is None or position.lock is None or position.ended:
        raise refuse(position, "not_open", "there is nothing to close")
    if position.publishing is not None or position.commit_seen is not None or position.unknown_commit is not None:
        raise refuse(position, "commit_out", "a commit is out; the contract settles by the oracle's price")
    if position.rolling and not position.recovered:  # a recovered one is not rolled over any more
        raise refuse(position, "unfinished_rollover", "it goes on by itself once both are connected; or force close")
    if any(each.index >= contract.index for each in position.attestations):
        raise refuse(position, "attested", "the oracle attested a price that the contract pays out at")
    return contract


def propose_close(price: str, limit: str) -> Command:
    """The user's word, on record before the peer is asked."""

    def decide(position: Position) -> list[Event]:
        check_closable(position)
        return [CloseProposed(price, limit)]

    return decide


def fail_close(code: str, sentence: str, *, rejected: bool) -> Command:
    """Why a close did not come about; `rejected`: the peer said so. The same reason again is nothing new."""

    def decide(position: Position) -> list[Event]:
        if position.contract is None or position.ended or position.close_refusal == (code, sentence):
            return []
        return [CloseRejected(code, sentence) if rejected else CloseFailed(code, sentence)]

    return decide


def sign_close(fact: settlement.CloseSigned, peer: bytes) -> Command:
    """Our signature is about to leave. The same close again is nothing new, any other is refused."""

    def decide(position: Position) -> list[Event]:
        if position.peer != peer:
            raise refuse(position, "unknown_position", "there is no such position with this peer")
        known = position.closing
        if known is not None and (known.price, known.txid) != (fact.price, fact.txid):
            raise refuse(position, "other_close", f"a close at {known.price} is signed already")
        check_closable(position)
        if known is None:
            return [CloseSigned(fact.price, fact.txid, fact.transaction)]
        return _completed(position, fact.transaction)

    return decide


def complete_close(fact: settlement.CloseComplete, peer: bytes) -> Command:
    """Whatever became of the position meanwhile: having it is never worse."""

    def decide(position: Position) -> list[Event]:
        if position.peer != peer or position.closing is None:
            raise refuse(position, "not_closing", "no close is signed")
        return _completed(position, fact.transaction)

    return decide


def _completed(position: Position, raw: bytes | None) -> list[Event]:
    return [] if raw is None or position.close_raw is not None else [CloseCompleted(raw)]


# --- the cooperative spend --------------------------------------------------------------------------------------------


def check_spendable(position: Position) -> Attempt:
    """The contract whose commit is confirmed, and may be spent together. Raises `RefusedCommand`.

    One that is only in a mempool can leave it again, be revoked, and come back together with what spends it.
    """
    seen = position.commit_seen
    if seen is None or position.commit is None or position.ended:
        raise refuse(position, "no_commit_out", "no commit is confirmed")
    if position.cheated:
        raise refuse(position, "revoked", "the commit that is out is revoked")
    return position.attempts[seen.index]


def sign_spend(fact: settlement.SpendSigned, peer: bytes) -> Command:
    """Our signature is about to leave. The same spend again is nothing new, any other is refused: an earlier event may
    be attested late, and both would be valid."""

    def decide(position: Position) -> list[Event]:
        if position.peer != peer:
            raise refuse(position, "unknown_position", "there is no such position with this peer")
        attempt = check_spendable(position)
        if position.commit_txid(attempt) != fact.commit_txid:
            raise refuse(position, "other_commit", "another commit is out")
        known = position.spend
        if known is None:
            return [SpendSigned(attempt.index, fact.event, fact.price, fact.txid, fact.transaction)]
        if known.txid != fact.txid:
            raise refuse(position, "other_spend", f"a spend at {known.price} is signed already")
        return _spend_completed(position, fact.transaction)

    return decide


def complete_spend(fact: settlement.SpendComplete, peer: bytes) -> Command:
    def decide(position: Position) -> list[Event]:
        if position.peer != peer or position.spend is None:
            raise refuse(position, "not_spending", "no cooperative spend is signed")
        return _spend_completed(position, fact.transaction)

    return decide


def _spend_completed(position: Position, raw: bytes | None) -> list[Event]:
    return [] if raw is None or position.spend_raw is not None else [SpendCompleted(raw)]


# --- punishment -------------------------------------------------------------------------------------------------------


def punish(txid: bytes, raw: bytes) -> Command:
    """Take everything in a revoked commit, by the complete transaction `raw`. Another one replaces the one before."""

    def decide(position: Position) -> list[Event]:
        if not position.cheated or position.ended:
            raise refuse(position, "not_cheated", "no revoked commit of the peer is out")
        known = position.punish
        return [] if known is not None and known.txid == txid else [PunishSigned(txid, raw)]

    return decide
