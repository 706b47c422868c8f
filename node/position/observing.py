"""What the chain shows of a position: each fact once, and once more when a reorganisation took it back."""

from __future__ import annotations

from node.chain.monitor import Seen, View
from node.position.commands import Command, consequences
from node.position.events import (
    Buried,
    CetConfirmed,
    CetPublished,
    CetTimelockExpired,
    CloseCompleted,
    CloseConfirmed,
    ClosePublished,
    CommitConfirmed,
    CommitPublished,
    CommitPublishing,
    ConfirmationLost,
    Confirmed,
    Event,
    LockConfirmed,
    LockSigned,
    Published,
    PunishConfirmed,
    PunishPublished,
    Recovered,
    RefundConfirmed,
    RefundPublished,
    RefundTimelockExpired,
    RevokedCommitSeen,
    SetupAbandoned,
    SpendCompleted,
    SpendConfirmed,
    SpendPublished,
    UnknownCommitConfirmed,
    Witnesses,
)
from node.position.evolve import evolve
from node.position.state import Attempt, EndingKind, Placed, Position
from protocols.contract.signing import spends_lock
from protocols.contract.terms import Role
from protocols.contract.transactions import FINAL, ContractTransactions
from protocols.contract_setup import check_lock_witnesses
from protocols.errors import RemoteProtocolError

LOCK_CONFIRMATIONS = 1
COMMIT_CONFIRMATIONS = 1
ABANDONED_CONFIRMATIONS = 6
"""Confirmations of what was spent back after which the lock is impossible."""
ENDING_CONFIRMATIONS = 3
"""Confirmations after which what ends a position is final."""
BURIED_CONFIRMATIONS = 101
"""Confirmations after which nothing is watched any more: a reorganisation of 100 blocks does not take it back."""

_ENDINGS: dict[EndingKind, tuple[type[Published], type[Confirmed]]] = {
    EndingKind.CET: (CetPublished, CetConfirmed),
    EndingKind.REFUND: (RefundPublished, RefundConfirmed),
    EndingKind.SPEND: (SpendPublished, SpendConfirmed),
    EndingKind.CLOSE: (ClosePublished, CloseConfirmed),
    EndingKind.PUNISH: (PunishPublished, PunishConfirmed),
}


def observe(view: View) -> Command:
    """Whatever is new in the chain."""

    def decide(position: Position) -> list[Event]:
        events: list[Event] = []
        if position.contract is None:
            return events
        for step in (
            _observe_reorganisation,
            _observe_lock,
            _observe_abandonment,
            _observe_spender,
            _observe_timelocks,
            _observe_ending,
            _observe_depth,
        ):
            for event in step(position, view):
                position = evolve(position, event)
                events.append(event)
            for event in consequences(position):
                position = evolve(position, event)
                events.append(event)
        return events

    return decide


def _observe_reorganisation(position: Position, view: View) -> list[Event]:
    events: list[Event] = []
    ending = position.ending.confirmed if position.ending is not None else None
    commit = position.unknown_commit
    unknown = None if commit is None else Placed(commit.txid, commit.height, commit.block)
    for placed in (ending, position.commit, unknown, position.lock, position.spent_back):
        if placed is None:
            continue
        seen = view.transactions.get(placed.txid)
        if seen is None or seen.block_hash != placed.block:
            events.append(ConfirmationLost(placed.txid))
    return events


def _observe_lock(position: Position, view: View) -> list[Event]:
    transactions = position.transactions(0)
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


def _observe_abandonment(position: Position, view: View) -> list[Event]:
    if position.abandoned is None or position.lock is not None or position.spent_back is not None:
        return []
    # one that was replaced may be the one that confirms
    own, lock = position.attempts[0].own.inputs, position.transactions(0).lock_txid
    spenders = (view.spender(coin.txid, coin.vout) for coin in own)
    for seen in spenders:
        if seen is None or seen.txid == lock:
            continue
        if view.confirmations(seen.txid) >= ABANDONED_CONFIRMATIONS:
            return [SetupAbandoned(seen.txid, *_where(view, seen.txid))]
    return []


def lock_spender(position: Position, view: View) -> Seen | None:
    """What spends the lock. Of what no block holds only what is validly signed: a chain server can make up a spend, and
    have us wait for it while the time for ours goes by."""
    assert position.lock is not None
    return next(
        (
            seen
            for seen in view.spenders(position.lock.txid, 0)
            if seen.height is not None or spends_lock(position.plan(0), seen.tx)
        ),
        None,
    )


def _observe_spender(position: Position, view: View) -> list[Event]:
    """What spends the lock: a commit, however old, or the close."""
    if position.lock is None:
        return []
    seen = lock_spender(position, view)
    attempt = next((each for each in position.attempts if seen and position.commit_txid(each) == seen.txid), None)
    if seen is not None and attempt is None:
        return _observe_close(position, view, seen)
    events: list[Event] = []
    if seen is not None and attempt is not None:
        events += _observe_commit(position, view, attempt, seen)
    if seen is None and position.commit_seen is not None and not position.cheated and not position.recovered:
        contract = position.contract
        if contract is not None and position.publishing is None:
            # the peer may not bring its own back, nothing can be agreed on any more, and without a commit there is
            # neither CET nor refund; ours may be that of the contract before or after
            events.append(CommitPublishing(contract.index, "the peer's commit is in no mempool and no block any more"))
    return events


def _observe_commit(position: Position, view: View, attempt: Attempt, seen: Seen) -> list[Event]:
    events: list[Event] = []
    known, index = position.commit_seen, attempt.index
    confirmed = view.confirmations(seen.txid) >= COMMIT_CONFIRMATIONS
    # its witness may be another one in the block than it was in the mempool, and with it what that tells
    if known is None or known.txid != seen.txid or (confirmed and not position.commit and known.raw != seen.raw):
        events.append(CommitPublished(index, seen.txid, seen.raw))
        if index < len(position.peer_secrets):
            events.append(RevokedCommitSeen(index, seen.txid))
    if position.commit is None and confirmed:
        events.append(CommitConfirmed(index, seen.txid, *_where(view, seen.txid)))
    return events


def _observe_close(position: Position, view: View, seen: Seen) -> list[Event]:
    """The close, or another transaction that pays us or the peer: only one that we signed can spend the lock."""
    events: list[Event] = []
    if position.closing is not None and position.closing.txid == seen.txid and position.close_raw is None:
        events.append(CloseCompleted(seen.raw))  # the maker kept its last message; a mempool refuses what is not valid
    if sum(_paid(position, seen).values()):
        events += _ending(position, view, seen, EndingKind.CLOSE)
    elif view.confirmations(seen.txid) >= COMMIT_CONFIRMATIONS and position.unknown_commit is None:
        # we signed it, and do not know it; what only a mempool shows is the chain server's word
        if not position.recovered:
            events.append(Recovered("the lock is spent by a commit that is not on record"))
        script = bytes(seen.tx.vout[0].scriptPubKey)
        events.append(UnknownCommitConfirmed(seen.txid, script, *_where(view, seen.txid)))
    return events


def _observe_timelocks(position: Position, view: View) -> list[Event]:
    if position.commit is None:
        return []
    events: list[Event] = []
    # BIP68: a relative lock of n blocks is over for the block n after the one that confirmed; the next is tip + 1
    passed = view.confirmations(position.commit.txid)
    plan, attested = position.plan(), position.attested
    timelocks = plan.terms.timelocks
    if attested is not None and not position.cet_timelock_expired:
        settles = attested.event == len(plan.announcements) - 1
        if passed >= (timelocks.settlement if settles else timelocks.liquidation):
            events.append(CetTimelockExpired(view.tip_height))
    if not position.refund_timelock_expired and passed >= timelocks.refund:
        events.append(RefundTimelockExpired(view.tip_height))
    return events


def _observe_ending(position: Position, view: View) -> list[Event]:
    """What spends the commit that is out."""
    if position.unknown_commit is not None:
        return _observe_unknown_ending(position, view, position.unknown_commit.txid)
    if position.commit_seen is None:
        return []
    seen = view.spender(position.commit_seen.txid, 0)
    if seen is None:
        return []
    sequence = seen.tx.vin[0].nSequence
    if sequence == FINAL:
        # of a commit that its publisher revoked only later, a spend may have been signed
        together = position.spend is not None and position.spend.txid == seen.txid
        kind = EndingKind.PUNISH if position.cheated and not together else EndingKind.SPEND
    else:
        refund = sequence == position.plan().terms.timelocks.refund
        kind = EndingKind.REFUND if refund else EndingKind.CET
    events: list[Event] = []
    if position.spend is not None and position.spend.txid == seen.txid and position.spend_raw is None:
        events.append(SpendCompleted(seen.raw))
    return events + _ending(position, view, seen, kind)


def _observe_unknown_ending(position: Position, view: View, commit: bytes) -> list[Event]:
    """What spends a commit that is not on record. The payout scripts and the refund's lock are those of every contract
    of the position, so what was paid is known, and by which kind of transaction as far as one can tell."""
    seen = view.spender(commit, 0)
    if seen is None or seen.height is None:
        return []  # whether it is validly signed cannot be checked: a block has to tell
    sequence = seen.tx.vin[0].nSequence
    if sequence == FINAL:
        # both sides spend it together, or one takes all because the other had revoked it
        kind = EndingKind.SPEND if all(_paid(position, seen).values()) else EndingKind.PUNISH
    else:
        refund = sequence == position.plan(0).terms.timelocks.refund
        kind = EndingKind.REFUND if refund else EndingKind.CET
    return _ending(position, view, seen, kind)


def _ending(position: Position, view: View, seen: Seen, kind: EndingKind) -> list[Event]:
    final = view.confirmations(seen.txid) >= ENDING_CONFIRMATIONS
    known = position.ending
    if known is not None and known.txid == seen.txid and (known.confirmed is not None) >= final:
        return []
    payouts = _paid(position, seen)
    paid = payouts[Role.MAKER], payouts[Role.TAKER]
    published, confirmed = _ENDINGS[kind]
    event = confirmed(seen.txid, *_where(view, seen.txid), *paid) if final else published(seen.txid, *paid)
    return [event]  # type: ignore[list-item]  # each of the table's classes is an Event


def _paid(position: Position, seen: Seen) -> dict[Role, int]:
    plan = position.plan(0)
    return {
        role: sum(out.nValue for out in seen.tx.vout if out.scriptPubKey == plan.party(role).payout_script)
        for role in Role
    }


def _observe_depth(position: Position, view: View) -> list[Event]:
    """What ended the position, and can be undone no more."""
    placed = position.spent_back
    if position.lock is not None:
        placed = position.ending.confirmed if position.ending is not None else None
    if position.buried or placed is None or view.confirmations(placed.txid) < BURIED_CONFIRMATIONS:
        return []
    return [Buried(view.tip_height)]


def _where(view: View, txid: bytes) -> tuple[int, bytes]:
    seen = view.transactions[txid]
    assert seen.height is not None
    assert seen.block_hash is not None
    return seen.height, seen.block_hash
