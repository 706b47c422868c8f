"""A position as its events tell it: `evolve` is total, refuses nothing, and is the only way to a `Position`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from functools import lru_cache, reduce
from itertools import repeat

import attrs
from attrs import field, frozen
from bitcoin.core import CTransaction

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
from protocols.contract.funding import OutPoint
from protocols.contract.oracle import Announcement, parse_announcement
from protocols.contract.signing import transactions_of
from protocols.contract.terms import Role, Side, Terms
from protocols.contract.transactions import ContractPlan, ContractTransactions, Party
from protocols.errors import LocalError, WorldError
from protocols.offers import Offer, OracleKeys


class State(Enum):
    """Where a position stands; derived from its events, never stored (domain.md, "A position's life")."""

    ORDERED = "ordered"
    SETTING_UP = "setting up"
    OPENING = "opening"
    ABANDONING = "abandoning"
    OPEN = "open"
    FORCE_CLOSING = "force closing"
    COMMITTED = "committed"
    SETTLING = "settling"
    SETTLED = "settled"
    REFUNDING = "refunding"
    REFUNDED = "refunded"
    REJECTED = "rejected"
    SETUP_FAILED = "setup failed"


ENDED = frozenset({State.SETTLED, State.REFUNDED, State.REJECTED, State.SETUP_FAILED})
"""Nothing more can happen to these."""


@frozen
class Placed:
    """Where a transaction stands in the chain."""

    txid: bytes
    height: int
    block: bytes


@frozen
class Attempt:
    """One attempt at a contract: the setup (index 0) or a rollover."""

    index: int
    terms: Terms
    announcements: tuple[bytes, ...] = field(repr=False)
    salt: bytes = field(repr=False)
    own: Party
    peer: Party | None
    signatures_held: bool = False
    commit_signature: bytes | None = field(default=None, repr=False)
    """The peer's; with it the contract can be enforced."""


@frozen
class Ending:
    """The transaction that pays out, and what it pays."""

    txid: bytes
    maker_payout: int
    taker_payout: int
    confirmed: Placed | None = None

    def payout(self, role: Role) -> int:
        return self.maker_payout if role is Role.MAKER else self.taker_payout


@frozen(kw_only=True)
class Position:
    """What this node knows of one position; `version` counts its events."""

    id: bytes
    version: int = 0
    role: Role = Role.TAKER
    peer: bytes = b""
    offer: Offer | None = None
    quantity: int = 0
    leverage: int = 0
    refusal: tuple[str, str] | None = None
    """Code and sentence of a rejection or a failed setup."""
    failed: bool = False
    terms: Terms | None = None
    announcements: tuple[bytes, ...] = field(default=(), repr=False)
    attempts: tuple[Attempt, ...] = ()
    own_witnesses: Witnesses | None = field(default=None, repr=False)
    peer_witnesses: Witnesses | None = field(default=None, repr=False)
    placed_at: float = field(default=0.0, eq=False)
    """When the order was on record, seconds since 1970."""
    changed_at: float = field(default=0.0, eq=False)
    signed_at: float = field(default=0.0, eq=False)
    """When the contract was on record, seconds since 1970: from then on our lock signatures count as left."""
    abandoned: LockAbandoned | None = None
    spent_back: Placed | None = None
    lock: Placed | None = None
    attested: PriceAttested | None = None
    publishing: CommitPublishing | None = None
    commit_seen: CommitPublished | None = None
    commit: Placed | None = None
    cet_timelock_expired: bool = False
    refund_timelock_expired: bool = False
    cet: Ending | None = None
    refund: Ending | None = None
    """Only one of the two spends the commit; what was seen last stands here."""

    @property
    def state(self) -> State:
        return _state(self)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def side(self) -> Side:
        """Ours."""
        assert self.offer is not None
        return self.offer.side if self.role is Role.MAKER else self.offer.side.other

    @property
    def contract(self) -> Attempt | None:
        """The latest attempt that can be enforced."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.commit_signature), None)

    @property
    def inputs_held(self) -> frozenset[OutPoint]:
        """Coins of ours that the lock spends: nothing else may use them from the attempt on until it failed."""
        if self.ended or not self.attempts:
            return frozenset()
        return frozenset(coin.outpoint for coin in self.attempts[0].own.inputs)

    @property
    def own_margin_at_risk(self) -> int:
        """Satoshis of ours that this position has locked or is about to lock."""
        if self.ended or self.terms is None:
            return 0
        return self.terms.margin(self.role)

    def plan(self, index: int | None = None) -> ContractPlan:
        """The plan of an attempt whose both sides are known; without an index that of `contract`."""
        if index is None:
            assert self.contract is not None, "no contract yet"
            index = self.contract.index
        attempt = self.attempts[index]
        assert attempt.peer is not None, "the peer's side is not known yet"
        maker, taker = (attempt.own, attempt.peer) if self.role is Role.MAKER else (attempt.peer, attempt.own)
        assert self.offer is not None
        try:
            announcements = tuple(_announcement(raw, self.offer.oracle) for raw in attempt.announcements)
        except WorldError as error:  # it was verified when it was recorded
            raise LocalError("damaged_record", f"position {self.id.hex()}: {error.sentence}") from error
        return ContractPlan(self.id, index, attempt.terms, maker, taker, announcements)

    def transactions(self, index: int | None = None) -> ContractTransactions:
        return transactions_of(self.plan(index))


@lru_cache(maxsize=4096)
def _announcement(raw: bytes, oracle: OracleKeys) -> Announcement:
    return parse_announcement(
        raw,
        announcement_key=oracle.announcement_key,
        attestation_key=oracle.attestation_key,
        scheme=oracle.scheme,
    )


def watched_scripts(position: Position) -> frozenset[bytes]:
    """Those in whose history on the chain everything about a signed position shows."""
    transactions = position.transactions()
    scripts = {transactions.lock_output.script, transactions.commit_output.script}
    if position.abandoned is not None:
        scripts.add(spent_back_to(position.abandoned))
    return frozenset(scripts)


def spent_back_to(abandoned: LockAbandoned) -> bytes:
    """Our script that gets what was to go into the lock."""
    return bytes(CTransaction.deserialize(abandoned.raw).vout[0].scriptPubKey)


def _state(position: Position) -> State:
    # From the end of a life to its beginning: the first that holds.
    if position.cet is not None:
        return State.SETTLED if position.cet.confirmed else State.SETTLING
    if position.refund is not None:
        return State.REFUNDED if position.refund.confirmed else State.REFUNDING
    if position.attested is not None and position.lock is not None:
        return State.SETTLING
    if position.commit is not None:
        return State.COMMITTED
    if position.publishing is not None or position.commit_seen is not None:
        return State.FORCE_CLOSING
    if position.lock is not None:
        return State.OPEN
    if position.spent_back is not None:
        return State.SETUP_FAILED
    if position.abandoned is not None:
        return State.ABANDONING
    if position.refusal is not None:
        return State.SETUP_FAILED if position.failed else State.REJECTED
    if position.contract is not None:
        return State.OPENING
    return State.SETTING_UP if position.terms is not None else State.ORDERED


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
            return attrs.evolve(change, terms=terms, announcements=announcements)
        case AttemptStarted(index, salt, own, peer):
            if position.terms is None:
                return change  # no command decides this
            attempt = Attempt(index, position.terms, position.announcements, salt, own, peer)
            return attrs.evolve(change, attempts=(*position.attempts, attempt))
        case CommitSignatureGiven(index, given_peer):
            attempts = _at(position, index, lambda a: attrs.evolve(a, peer=given_peer, signatures_held=True))
            return attrs.evolve(change, attempts=attempts)
        case ContractSigned(index, commit_signature, own_witnesses, peer_witnesses):
            return attrs.evolve(
                change,
                attempts=_at(position, index, lambda a: attrs.evolve(a, commit_signature=commit_signature)),
                own_witnesses=own_witnesses,
                peer_witnesses=peer_witnesses,
                signed_at=at,
            )
        case LockSigned(lock_witnesses):
            return attrs.evolve(change, peer_witnesses=lock_witnesses)
        case LockAbandoned():
            return attrs.evolve(change, abandoned=event)
        case SetupAbandoned(txid, height, block):
            sentence = "the lock never reached the chain; its coins were spent back"
            return attrs.evolve(change, spent_back=Placed(txid, height, block), refusal=("lock_abandoned", sentence))
        case LockConfirmed(txid, height, block):
            return attrs.evolve(change, lock=Placed(txid, height, block))
        case PriceAttested():
            return attrs.evolve(change, attested=event)
        case CommitPublishing():
            return attrs.evolve(change, publishing=event)
        case CommitPublished():
            return attrs.evolve(change, commit_seen=event)
        case CommitConfirmed(_, txid, height, block):
            return attrs.evolve(change, commit=Placed(txid, height, block))
        case CetTimelockExpired():
            return attrs.evolve(change, cet_timelock_expired=True)
        case RefundTimelockExpired():
            return attrs.evolve(change, refund_timelock_expired=True)
        case CetPublished(txid, maker_payout, taker_payout):
            return attrs.evolve(change, cet=Ending(txid, maker_payout, taker_payout), refund=None)
        case CetConfirmed(txid, height, block, maker_payout, taker_payout):
            ending = Ending(txid, maker_payout, taker_payout, Placed(txid, height, block))
            return attrs.evolve(change, cet=ending, refund=None)
        case RefundPublished(txid, maker_payout, taker_payout):
            return attrs.evolve(change, refund=Ending(txid, maker_payout, taker_payout), cet=None)
        case RefundConfirmed(txid, height, block, maker_payout, taker_payout):
            ending = Ending(txid, maker_payout, taker_payout, Placed(txid, height, block))
            return attrs.evolve(change, refund=ending, cet=None)


def replay(order_id: bytes, events: Iterable[Event], times: Iterable[float] = repeat(0.0)) -> Position:
    """The position that these events add up to, recorded at these moments."""
    recorded = zip(events, times, strict=False)
    return reduce(lambda position, each: evolve(position, *each), recorded, Position(id=order_id))
