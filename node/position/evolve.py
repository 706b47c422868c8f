"""How each event changes a position: `evolve` is total, refuses nothing, and is the only way to a `Position`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, reduce
from itertools import repeat

import attrs

from node.position.events import (
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
    Confirmed,
    ContractSigned,
    Event,
    LockAbandoned,
    LockConfirmed,
    LockSigned,
    OrderPlaced,
    OrderRejected,
    PriceAttested,
    Published,
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
from node.position.state import Attempt, Ending, EndingKind, Placed, Position

MOST_BEGUN = 288
"""Attempts of one rollover that are kept while they bind nobody, one every five minutes of a day: any of them may be
the one that the taker signed. Older ones fall out; those can no more be signed by us, and a taker that began so many
others has signed none of them."""

_PUBLISHED: dict[type[Published], EndingKind] = {
    CetPublished: EndingKind.CET,
    RefundPublished: EndingKind.REFUND,
    SpendPublished: EndingKind.SPEND,
    ClosePublished: EndingKind.CLOSE,
    PunishPublished: EndingKind.PUNISH,
}
_CONFIRMED: dict[type[Confirmed], EndingKind] = {
    CetConfirmed: EndingKind.CET,
    RefundConfirmed: EndingKind.REFUND,
    SpendConfirmed: EndingKind.SPEND,
    CloseConfirmed: EndingKind.CLOSE,
    PunishConfirmed: EndingKind.PUNISH,
}


def _at(position: Position, index: int, change: Callable[[Attempt], Attempt]) -> tuple[Attempt, ...]:
    return tuple(change(attempt) if attempt.index == index else attempt for attempt in position.attempts)


def evolve(position: Position, event: Event, at: float = 0.0) -> Position:
    """The position after one more event, which was recorded `at` (seconds since 1970)."""
    change = attrs.evolve(position, version=position.version + 1, changed_at=at)
    match event:
        case OrderPlaced(role, peer, offer, quantity, leverage):
            placed = attrs.evolve(change, role=role, peer=peer, offer=offer, placed_at=at)
            return attrs.evolve(placed, quantity=quantity, leverage=leverage)
        case OrderRejected(code, sentence):
            return attrs.evolve(change, refusal=(code, sentence))
        case SetupFailed(code, sentence):
            return attrs.evolve(change, refusal=(code, sentence), failed=True)
        case SetupStarted(terms, announcements):
            return attrs.evolve(change, terms=terms, announcements=shared(announcements))
        case AttemptStarted(index, salt, own, peer):
            if position.terms is None:
                return change  # no command decides this
            attempt = Attempt(index, position.terms, position.announcements, salt, own, peer)
            return attrs.evolve(change, attempts=(*position.attempts, attempt))
        case CommitSignatureGiven(index, given_peer):
            attempts = _at(
                position, index, lambda a: attrs.evolve(a, peer=given_peer, signatures_held=True, held_at=at)
            )
            return attrs.evolve(change, attempts=attempts)
        case ContractSigned(index, commit_signature, own_witnesses, peer_witnesses):
            return attrs.evolve(
                change,
                attempts=_at(position, index, lambda a: attrs.evolve(a, commit_signature=commit_signature)),
                own_witnesses=own_witnesses,
                peer_witnesses=peer_witnesses,
                out_since=at,
            )
        case LockSigned(lock_witnesses):
            return attrs.evolve(change, peer_witnesses=lock_witnesses)
        case LockAbandoned():
            return attrs.evolve(change, abandoned=event)
        case SetupAbandoned(txid, height, block):
            sentence = "the lock never reached the chain; its coins were spent back"
            return attrs.evolve(change, spent_back=Placed(txid, height, block), refusal=("lock_abandoned", sentence))
        case LockConfirmed(txid, height, block):
            # what spends it could not be in a mempool before
            return attrs.evolve(change, lock=Placed(txid, height, block), closing_since=at)
        case ConfirmationLost(txid):
            return _unconfirmed(position, change, txid, at)
        case Buried():
            return attrs.evolve(change, buried=True)
        case Recovered():
            return attrs.evolve(change, recovered=True, overridden=False)
        case RecoveryOverridden():
            return attrs.evolve(change, overridden=True)
        case UnknownCommitConfirmed():
            return attrs.evolve(change, unknown_commit=event)
        case (
            RolloverBegun()
            | RolloverHeld()
            | RolloverSigned()
            | Revoking()
            | RevocationReceived()
            | RolloverRejected()
            | RolloverFailed()
        ):
            return _rolled(position, change, event, at)
        case CloseProposed() | CloseRejected() | CloseFailed() | CloseSigned() | CloseCompleted():
            return _closed(change, event, at)
        case _:
            return _settled(change, event)


def _unconfirmed(position: Position, change: Position, txid: bytes, at: float) -> Position:
    """What a reorganisation takes out of the chain, and with it all that came after."""
    if position.spent_back is not None and position.spent_back.txid == txid:
        return attrs.evolve(change, spent_back=None, refusal=None)
    ending = position.ending
    if ending is not None:
        ending = attrs.evolve(ending, confirmed=None)
    if position.lock is not None and position.lock.txid == txid:
        return attrs.evolve(
            change,
            lock=None,
            out_since=at,
            commit_seen=None,
            commit=None,
            ending=None,
            cet_timelock_expired=False,
            refund_timelock_expired=False,
            unknown_commit=None,
        )
    if position.unknown_commit is not None and position.unknown_commit.txid == txid:
        return attrs.evolve(change, unknown_commit=None, ending=None)
    if position.commit is not None and position.commit.txid == txid:
        return attrs.evolve(
            change, commit=None, ending=ending, cet_timelock_expired=False, refund_timelock_expired=False
        )
    return attrs.evolve(change, ending=ending, closing_since=at)


def _rolled(
    position: Position,
    change: Position,
    event: RolloverBegun
    | RolloverHeld
    | RolloverSigned
    | Revoking
    | RevocationReceived
    | RolloverRejected
    | RolloverFailed,
    at: float,
) -> Position:
    match event:
        case RolloverBegun():
            if event.following is not None:
                named = shared(event.following.announcements)
                event = attrs.evolve(event, following=attrs.evolve(event.following, announcements=named))
            return attrs.evolve(change, begun=(*position.begun, event)[-MOST_BEGUN:])
        case RolloverHeld(index, own, following, commit_signature, commit_txid):
            begun = next((each for each in position.begun if each.own == own), None)
            following = following if begun is None else following or begun.following
            if begun is None or following is None or not position.attempts or position.attempts[0].peer is None:
                return change  # no command decides this
            setup = position.attempts[0]
            attempt = Attempt(
                index,
                following.terms,
                shared(following.announcements),
                begun.salt,
                attrs.evolve(setup.own, points=own),
                attrs.evolve(position.attempts[0].peer, points=following.peer),
                signatures_held=True,
                funding_rate=following.funding_rate,
                own_commit_signature=commit_signature,
                commit_txid=commit_txid,
                held_at=at,
            )
            return attrs.evolve(change, attempts=(*position.attempts, attempt), begun=(), rollover_refusal=None)
        case RolloverSigned(index, commit_signature):
            attempts = _at(position, index, lambda a: attrs.evolve(a, commit_signature=commit_signature))
            contract = next((each for each in attempts if each.index == index), None)
            if contract is None:
                return change  # no command decides this
            return attrs.evolve(change, attempts=attempts, terms=contract.terms, announcements=contract.announcements)
        case Revoking(index):
            return attrs.evolve(change, own_revoked=index + 1)
        case RevocationReceived(_, secret):
            return attrs.evolve(change, peer_secrets=(*position.peer_secrets, secret))
        case RolloverRejected(code, sentence) | RolloverFailed(code, sentence):
            return attrs.evolve(change, rollover_refusal=(code, sentence))


def _closed(
    change: Position, event: CloseProposed | CloseRejected | CloseFailed | CloseSigned | CloseCompleted, at: float
) -> Position:
    match event:
        case CloseProposed():
            return attrs.evolve(change, proposed=event, close_refusal=None)
        case CloseRejected(code, sentence) | CloseFailed(code, sentence):
            return attrs.evolve(change, close_refusal=(code, sentence))
        case CloseSigned(_, _, raw):
            return attrs.evolve(change, closing=event, close_raw=raw, closing_since=at, close_refusal=None)
        case CloseCompleted(raw):
            return attrs.evolve(change, close_raw=raw)


def _settled(
    change: Position,
    event: PriceAttested
    | CommitPublishing
    | CommitPublished
    | CommitConfirmed
    | CetTimelockExpired
    | RefundTimelockExpired
    | SpendSigned
    | SpendCompleted
    | RevokedCommitSeen
    | PunishSigned
    | Published
    | Confirmed,
) -> Position:
    match event:
        case PriceAttested(index):
            others = tuple(each for each in change.attestations if each.index != index)
            return attrs.evolve(change, attestations=(*others, event))
        case CommitPublishing():
            return attrs.evolve(change, publishing=event)
        case CommitPublished(index, txid):
            if not 0 <= index < len(change.attempts):
                return change  # no command decides this
            same = change.commit_seen is not None and change.commit_seen.txid == txid
            return attrs.evolve(change, commit_seen=event, ending=change.ending if same else None)
        case CommitConfirmed(_, txid, height, block):
            return attrs.evolve(change, commit=Placed(txid, height, block))
        case CetTimelockExpired():
            return attrs.evolve(change, cet_timelock_expired=True)
        case RefundTimelockExpired():
            return attrs.evolve(change, refund_timelock_expired=True)
        case SpendSigned(raw=raw):
            return attrs.evolve(change, spend=event, spend_raw=raw)
        case SpendCompleted(raw):
            return attrs.evolve(change, spend_raw=raw)
        case RevokedCommitSeen():
            return change  # it follows from the commit that is seen and the revocations
        case PunishSigned():
            return attrs.evolve(change, punish=event)
        case Published(txid, maker_payout, taker_payout):
            ending = Ending(_PUBLISHED[type(event)], txid, maker_payout, taker_payout)
            if ending.kind is EndingKind.CLOSE:  # in the place of a commit
                change = attrs.evolve(change, commit_seen=None)
            return attrs.evolve(change, ending=ending)
        case Confirmed(txid, height, block, maker_payout, taker_payout):
            placed = Placed(txid, height, block)
            ending = Ending(_CONFIRMED[type(event)], txid, maker_payout, taker_payout, placed)
            if ending.kind is EndingKind.CLOSE:
                change = attrs.evolve(change, commit_seen=None)
            return attrs.evolve(change, ending=ending)


@lru_cache(maxsize=1 << 14)
def _one(announcement: bytes) -> bytes:
    return announcement


def shared(announcements: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The same ones. Positions name the same hours, and roll over every hour: one copy of each event is enough."""
    return tuple(map(_one, announcements))


def replay(order_id: bytes, events: Iterable[Event], times: Iterable[float] = repeat(0.0)) -> Position:
    """The position that these events add up to, recorded at these moments."""
    recorded = zip(events, times, strict=False)
    return reduce(lambda position, each: evolve(position, *each), recorded, Position(id=order_id))
