"""A position as its events tell it (:mod:`node.position.evolve`), and what follows from it."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from attrs import field, frozen
from bitcoin.core import CTransaction

from node.position.events import (
    CloseProposed,
    CloseSigned,
    CommitPublished,
    CommitPublishing,
    LockAbandoned,
    PriceAttested,
    PunishSigned,
    RolloverBegun,
    SpendSigned,
    UnknownCommitConfirmed,
    Witnesses,
)
from protocols.contract.funding import OutPoint
from protocols.contract.keys import AttemptKeys, attempt_keys
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
    ROLLING_OVER = "rolling over"
    CLOSING = "closing"
    CLOSED = "closed"
    FORCE_CLOSING = "force closing"
    COMMITTED = "committed"
    SETTLING = "settling"
    SETTLED = "settled"
    REFUNDING = "refunding"
    REFUNDED = "refunded"
    PUNISHING = "punishing"
    PUNISHED = "punished"
    REJECTED = "rejected"
    SETUP_FAILED = "setup failed"


ENDED = frozenset({State.CLOSED, State.SETTLED, State.REFUNDED, State.PUNISHED, State.REJECTED, State.SETUP_FAILED})
"""Nothing more happens to these, unless a reorganisation brings them back."""


class EndingKind(Enum):
    """Which of the transactions pays out."""

    CET = "cet"
    REFUND = "refund"
    SPEND = "spend"
    CLOSE = "close"
    PUNISH = "punish"


_STATES = {
    EndingKind.CET: (State.SETTLING, State.SETTLED),
    EndingKind.REFUND: (State.REFUNDING, State.REFUNDED),
    EndingKind.SPEND: (State.SETTLING, State.SETTLED),
    EndingKind.CLOSE: (State.CLOSING, State.CLOSED),
    EndingKind.PUNISH: (State.PUNISHING, State.PUNISHED),
}
"""What a position is once its ending is seen, and once that is final."""


PLANS_KEPT = 4
"""Of one position: those of contracts that may pay out, and of what is being looked at."""


@frozen
class Placed:
    """Where a transaction stands in the chain."""

    txid: bytes
    height: int
    block: bytes


@frozen
class Attempt:
    """One attempt at a contract: the setup's (index 0), or a rollover's that reached R1."""

    index: int
    terms: Terms
    announcements: tuple[bytes, ...] = field(repr=False)
    salt: bytes = field(repr=False)
    own: Party
    peer: Party | None
    signatures_held: bool = False
    """The peer's refund and CET signatures; from then on our commit signature counts as given."""
    commit_signature: bytes | None = field(default=None, repr=False)
    """The peer's; with it the contract can be enforced."""
    funding_rate: str = ""
    """Of a rollover: by which the fee account was carried on."""
    own_commit_signature: bytes | None = field(default=None, repr=False)
    """Of a rollover."""
    commit_txid: bytes = b""
    """Of a rollover."""
    held_at: float = field(default=0.0, eq=False)
    """When our commit signature counted as given."""


@frozen
class Ending:
    """The transaction that pays out, and what it pays."""

    kind: EndingKind
    txid: bytes
    maker_payout: int
    taker_payout: int
    confirmed: Placed | None = None
    """Once it is final."""

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
    """Of the contract that stands; before there is one, of the setup."""
    announcements: tuple[bytes, ...] = field(default=(), repr=False)
    attempts: tuple[Attempt, ...] = ()
    """By index."""
    own_witnesses: Witnesses | None = field(default=None, repr=False)
    peer_witnesses: Witnesses | None = field(default=None, repr=False)
    placed_at: float = field(default=0.0, eq=False)
    """When the order was on record, seconds since 1970."""
    changed_at: float = field(default=0.0, eq=False)
    out_since: float = field(default=0.0, eq=False)
    """Since when the lock is out, seconds since 1970: our lock signatures left, or a reorganisation took it back."""
    abandoned: LockAbandoned | None = None
    spent_back: Placed | None = None
    lock: Placed | None = None

    begun: tuple[RolloverBegun, ...] = ()
    """Rollovers whose points left, or may have, and that bind nobody yet."""
    own_revoked: int = 0
    """Contracts of a lower index are revoked by us."""
    peer_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """The peer's revocations, by index."""
    rollover_refusal: tuple[str, str] | None = None
    """Why the last rollover did not come about."""

    proposed: CloseProposed | None = None
    closing: CloseSigned | None = None
    close_raw: bytes | None = field(default=None, repr=False)
    closing_since: float = field(default=0.0, eq=False)
    """When our signature of the close counted as left, or a reorganisation took the close or the lock back, seconds
    since 1970."""
    close_refusal: tuple[str, str] | None = None
    """Why the last close did not come about."""

    attestations: tuple[PriceAttested, ...] = ()
    """One for each contract that pays out at an attested price."""
    publishing: CommitPublishing | None = None
    commit_seen: CommitPublished | None = None
    commit: Placed | None = None
    cet_timelock_expired: bool = False
    refund_timelock_expired: bool = False
    spend: SpendSigned | None = None
    spend_raw: bytes | None = field(default=None, repr=False)
    punish: PunishSigned | None = None
    ending: Ending | None = None
    """What was seen last; what spends the lock or the commit is one transaction only."""
    buried: bool = False
    recovered: bool = False
    """Its record may be older than what was signed (design.md, rule 7)."""
    overridden: bool = False
    """The user has its commit published all the same."""
    unknown_commit: UnknownCommitConfirmed | None = None
    """A commit in a block that this record, which is too old, does not know."""
    _plans: dict[int, tuple[Attempt, ContractPlan]] = field(factory=dict, eq=False, repr=False)
    """By index, with what they were made of; handed on from one version of the position to the next."""

    @property
    def state(self) -> State:
        return _state(self)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def over(self) -> bool:
        """Nothing is watched any more."""
        return self.buried or (self.ended and self.contract is None)

    @property
    def side(self) -> Side:
        """Ours."""
        assert self.offer is not None
        return self.offer.side if self.role is Role.MAKER else self.offer.side.other

    @property
    def contract(self) -> Attempt | None:
        """The latest that can be enforced, and so the one that we publish."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.commit_signature), None)

    @property
    def present(self) -> Attempt | None:
        """The one that pays out, as far as is known: whose commit is out, or else `contract`."""
        return self.contract if self.commit_seen is None else self.attempts[self.commit_seen.index]

    @property
    def claimable(self) -> tuple[Attempt, ...]:
        """Those whose commit may still confirm without being punished."""
        return tuple(
            each for each in self.attempts[len(self.peer_secrets) :] if each.signatures_held or each.commit_signature
        )

    @property
    def rolling(self) -> bool:
        """Whether our commit signature left for a contract that does not stand alone yet: it must be finished."""
        if not self.attempts:
            return False
        return self.attempts[-1].index > len(self.peer_secrets)  # whose revocation comes after ours

    @property
    def attested(self) -> PriceAttested | None:
        """At which the present contract pays out."""
        present = self.present
        return None if present is None else self.attested_for(present.index)

    def attested_for(self, index: int) -> PriceAttested | None:
        return next((each for each in self.attestations if each.index == index), None)

    @property
    def cheated(self) -> bool:
        """Whether the commit that is out was revoked by the peer; then it is the peer's, as ours is revoked too."""
        return self.commit_seen is not None and self.commit_seen.index < len(self.peer_secrets)

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
        """The plan of an attempt whose both sides are known; without an index that of `present`."""
        if index is None:
            assert self.present is not None, "no contract yet"
            index = self.present.index
        attempt = self.attempts[index]
        known = self._plans.get(index)
        if known is not None and known[0] is attempt:
            return known[1]
        assert attempt.peer is not None, "the peer's side is not known yet"
        plan = self.plan_of(attempt.terms, attempt.announcements, index, attempt.own, attempt.peer)
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        self._plans[index] = attempt, plan
        return plan

    def plan_of(
        self, terms: Terms, announcements: tuple[bytes, ...], index: int, own: Party, peer: Party
    ) -> ContractPlan:
        maker, taker = (own, peer) if self.role is Role.MAKER else (peer, own)
        assert self.offer is not None
        try:
            parsed = tuple(_announcement(raw, self.offer.oracle) for raw in announcements)
        except WorldError as error:  # it was verified when it was recorded
            raise LocalError("damaged_record", f"position {self.id.hex()}: {error.sentence}") from error
        return ContractPlan(self.id, index, terms, maker, taker, parsed)

    def transactions(self, index: int | None = None) -> ContractTransactions:
        """Without an index those of `present`."""
        return transactions_of(self.plan(index))

    def keys(self, index: int, seed: bytes) -> AttemptKeys:
        """Ours of an attempt; `seed` is the node's, 64 bytes."""
        salts = self.attempts[0].salt, self.attempts[index].salt
        return attempt_keys(seed, setup_salt=salts[0], salt=salts[1], order_id=self.id, index=index)

    def commit_txid(self, attempt: Attempt) -> bytes:
        return attempt.commit_txid or self.transactions(attempt.index).commit_txid


@lru_cache(maxsize=4096)
def _announcement(raw: bytes, oracle: OracleKeys) -> Announcement:
    return parse_announcement(
        raw,
        announcement_key=oracle.announcement_key,
        attestation_key=oracle.attestation_key,
        scheme=oracle.scheme,
    )


def watched_scripts(position: Position) -> frozenset[bytes]:
    """Those in whose history on the chain everything about a signed position shows.

    The lock's script shows every commit, however old; once one is out, its own script shows what spends it.
    """
    lock = position.transactions(0)
    scripts = {lock.lock_output.script}
    present = position.present
    if present is not None:
        scripts.add(position.transactions(present.index).commit_output.script)
    if position.abandoned is not None:
        scripts.add(spent_back_to(position.abandoned))
    if position.unknown_commit is not None:
        scripts.add(position.unknown_commit.script)
    return frozenset(scripts)


def spent_back_to(abandoned: LockAbandoned) -> bytes:
    """Our script that gets what was to go into the lock."""
    return bytes(CTransaction.deserialize(abandoned.raw).vout[0].scriptPubKey)


def _state(position: Position) -> State:
    # From the end of a life to its beginning: the first that holds. Without a lock there is nothing that spends it.
    if position.lock is None:
        return _state_without_lock(position)
    if position.ending is not None:
        return _STATES[position.ending.kind][position.ending.confirmed is not None]
    if position.cheated:
        return State.PUNISHING
    if position.unknown_commit is not None:
        return State.COMMITTED
    if position.attested is not None:
        return State.SETTLING
    if position.commit is not None:
        return State.COMMITTED
    if position.publishing is not None or position.commit_seen is not None:
        return State.FORCE_CLOSING
    if position.closing is not None:
        return State.CLOSING
    return State.ROLLING_OVER if position.rolling else State.OPEN


def _state_without_lock(position: Position) -> State:
    if position.spent_back is not None:
        return State.SETUP_FAILED
    if position.abandoned is not None:
        return State.ABANDONING
    if position.refusal is not None:
        return State.SETUP_FAILED if position.failed else State.REJECTED
    if position.contract is not None:
        return State.OPENING
    return State.SETTING_UP if position.terms is not None else State.ORDERED
