"""What happened to a position: facts in the past tense, with exactly the data needed to act on them.

Names and versions in the store are those given to `CODEC.event` and never change (:mod:`node.eventstore.codec`). The
large signature sets are blobs beside `CommitSignatureGiven`; see `signatures_blob`.
"""

from typing import TypeAlias

from attrs import field, frozen

from node.eventstore.codec import EventCodec
from protocols.contract.terms import Role, Terms
from protocols.contract.transactions import Party
from protocols.offers import Offer

CODEC = EventCodec()

Witnesses: TypeAlias = tuple[tuple[bytes, ...], ...]


@CODEC.event("OrderPlaced")
@frozen
class OrderPlaced:
    """The position exists: this node (taker) or its peer (maker's view) took an offer."""

    role: Role
    """Ours."""
    peer: bytes
    """The counterparty's identity, 32 bytes."""
    offer: Offer
    quantity: int
    leverage: int
    """The taker's."""


@CODEC.event("OrderRejected")
@frozen
class OrderRejected:
    code: str
    sentence: str


@CODEC.event("SetupStarted")
@frozen
class SetupStarted:
    """The maker accepted; these are the terms and the oracle's announcements, byte for byte as received."""

    terms: Terms
    announcements: tuple[bytes, ...] = field(repr=False)


@CODEC.event("AttemptStarted")
@frozen
class AttemptStarted:
    """Recorded before our points left. The keys follow from the seed and the salt; the coins are reserved from here."""

    index: int
    salt: bytes = field(repr=False)
    own: Party
    peer: Party | None


@CODEC.event("CommitSignatureGiven")
@frozen
class CommitSignatureGiven:
    """The peer's refund and CET signatures are held and verified (a blob beside this event); from here on our own
    commit signature counts as given, and this attempt's commit is watched for."""

    index: int
    peer: Party


@CODEC.event("ContractSigned")
@frozen
class ContractSigned:
    """The contract can be enforced. From here on our lock signatures count as left."""

    index: int
    commit_signature: bytes = field(repr=False)
    """The peer's, encrypted to our publish point."""
    own_witnesses: Witnesses
    peer_witnesses: Witnesses | None


@CODEC.event("LockSigned")
@frozen
class LockSigned:
    """The taker learned the maker's witnesses: it can publish the lock as well."""

    peer_witnesses: Witnesses


@CODEC.event("SetupFailed")
@frozen
class SetupFailed:
    """The setup broke before our lock signatures left; our coins are free again."""

    code: str
    sentence: str


@CODEC.event("LockAbandoned")
@frozen
class LockAbandoned:
    """The lock was in no mempool for too long: one of its inputs is spent back to us, so that it never can be again.

    A later one replaces it, with a higher fee."""

    txid: bytes
    raw: bytes = field(repr=False)
    """The transaction that spends it back, complete."""


@CODEC.event("SetupAbandoned")
@frozen
class SetupAbandoned:
    """What was spent back is deep enough in the chain: the lock is impossible, and our coins are free again."""

    txid: bytes
    height: int
    block: bytes


@CODEC.event("LockConfirmed")
@frozen
class LockConfirmed:
    txid: bytes
    height: int
    block: bytes


@CODEC.event("PriceAttested")
@frozen
class PriceAttested:
    """The oracle attested a price that this contract pays out at; `raw` is its answer, byte for byte."""

    index: int
    """The attempt whose contract pays out."""
    event: int
    """Which of its events, from 0."""
    price: int
    raw: bytes = field(repr=False)


@CODEC.event("CommitPublishing")
@frozen
class CommitPublishing:
    """Recorded before the commit is broadcast for the first time."""

    index: int
    reason: str


@CODEC.event("CommitPublished")
@frozen
class CommitPublished:
    """The commit was seen, by whomever it was published."""

    index: int
    txid: bytes


@CODEC.event("CommitConfirmed")
@frozen
class CommitConfirmed:
    index: int
    txid: bytes
    height: int
    block: bytes


@CODEC.event("CetTimelockExpired")
@frozen
class CetTimelockExpired:
    """The CET for the attested price is valid in the next block."""

    height: int


@CODEC.event("CetPublished")
@frozen
class CetPublished:
    txid: bytes
    maker_payout: int
    taker_payout: int


@CODEC.event("CetConfirmed")
@frozen
class CetConfirmed:
    """Final: deep enough in the chain. Payouts are the outputs as they stand there."""

    txid: bytes
    height: int
    block: bytes
    maker_payout: int
    taker_payout: int


@CODEC.event("RefundTimelockExpired")
@frozen
class RefundTimelockExpired:
    height: int


@CODEC.event("RefundPublished")
@frozen
class RefundPublished:
    txid: bytes
    maker_payout: int
    taker_payout: int


@CODEC.event("RefundConfirmed")
@frozen
class RefundConfirmed:
    txid: bytes
    height: int
    block: bytes
    maker_payout: int
    taker_payout: int


Event: TypeAlias = (
    OrderPlaced
    | OrderRejected
    | SetupStarted
    | AttemptStarted
    | CommitSignatureGiven
    | ContractSigned
    | LockSigned
    | SetupFailed
    | LockAbandoned
    | SetupAbandoned
    | LockConfirmed
    | PriceAttested
    | CommitPublishing
    | CommitPublished
    | CommitConfirmed
    | CetTimelockExpired
    | CetPublished
    | CetConfirmed
    | RefundTimelockExpired
    | RefundPublished
    | RefundConfirmed
)


def signatures_blob(index: int) -> str:
    """The kind under which the peer's refund and CET signatures of an attempt are stored."""
    return f"signatures/{index}"
