"""What happened to a position: facts in the past tense, with exactly the data needed to act on them.

Names and versions in the store are those given to `CODEC.event` and never change (:mod:`node.eventstore.codec`). The
large signature sets are blobs beside `CommitSignatureGiven` and `RolloverHeld`; see `signatures_blob`.

The records of a rollover, R0 to R4 of network.md, are RolloverBegun, RolloverHeld, RolloverSigned, Revoking and
RevocationReceived.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from attrs import field, frozen

from node.eventstore.codec import SHARED, EventCodec, unchanged
from protocols.contract.keys import Points
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


@CODEC.event("SetupStarted", upcasters=(unchanged,))
@frozen
class SetupStarted:
    """The maker accepted; these are the terms and the oracle's announcements, byte for byte as received."""

    terms: Terms
    announcements: tuple[bytes, ...] = field(repr=False, metadata=SHARED)


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
    """The commit was seen, by whomever it was published; the newest of these is the one that stands."""

    index: int
    txid: bytes
    raw: bytes = field(repr=False)
    """As it was seen: its witness tells the publish secret of whoever published it."""


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


@frozen
class Published:
    """A transaction that ends the position was seen. Payouts are the outputs as they stand there."""

    txid: bytes
    maker_payout: int
    taker_payout: int


@frozen
class Confirmed:
    """Final: deep enough in the chain. Payouts are the outputs as they stand there."""

    txid: bytes
    height: int
    block: bytes
    maker_payout: int
    taker_payout: int


@CODEC.event("CetPublished")
@frozen
class CetPublished(Published):
    pass


@CODEC.event("CetConfirmed")
@frozen
class CetConfirmed(Confirmed):
    pass


@CODEC.event("RefundTimelockExpired")
@frozen
class RefundTimelockExpired:
    height: int


@CODEC.event("RefundPublished")
@frozen
class RefundPublished(Published):
    pass


@CODEC.event("RefundConfirmed")
@frozen
class RefundConfirmed(Confirmed):
    pass


# --- rollover ---------------------------------------------------------------------------------------------------------


@frozen
class Following:
    """The contract that is to follow, but for our own points."""

    terms: Terms
    announcements: tuple[bytes, ...] = field(repr=False, metadata=SHARED)
    funding_rate: str
    """By which its fee account is carried on, per 24 h."""
    peer: Points


@CODEC.event("RolloverBegun", upcasters=(unchanged,))
@frozen
class RolloverBegun:
    """R0: recorded before our points left. Nothing binds us yet; another attempt has another salt."""

    index: int
    """Of the contract that is to follow."""
    salt: bytes = field(repr=False)
    own: Points
    following: Following | None
    """None with the taker, who learns it from the maker's answer."""


@CODEC.event("RolloverHeld", upcasters=(unchanged,))
@frozen
class RolloverHeld:
    """R1: the peer's refund and CET signatures are held and verified (a blob beside this event). From here on our
    commit signature counts as given: this attempt is the next contract for ever, and its commit is watched for."""

    index: int
    own: Points
    """Of which attempt."""
    following: Following | None
    """None with the maker: it is that of the attempt."""
    commit_signature: bytes = field(repr=False)
    """Ours, encrypted to the peer's publish point."""
    commit_txid: bytes


@CODEC.event("RolloverSigned")
@frozen
class RolloverSigned:
    """R2: the next contract can be enforced."""

    index: int
    commit_signature: bytes = field(repr=False)
    """The peer's, encrypted to our publish point."""


@CODEC.event("Revoking")
@frozen
class Revoking:
    """R3: our revocation of this contract counts as left; we never publish its commit."""

    index: int


@CODEC.event("RevocationReceived")
@frozen
class RevocationReceived:
    """R4: the peer's revocation of this contract, checked: a commit of it that the peer publishes is punished."""

    index: int
    secret: bytes = field(repr=False)


@CODEC.event("RolloverRejected")
@frozen
class RolloverRejected:
    """The peer said no."""

    code: str
    sentence: str


@CODEC.event("RolloverFailed")
@frozen
class RolloverFailed:
    """A rollover broke, or we said no. What is on record of it stands."""

    code: str
    sentence: str


# --- close ------------------------------------------------------------------------------------------------------------


@CODEC.event("CloseProposed")
@frozen
class CloseProposed:
    """The user wants the position closed, at this price or one that is no worse than the limit."""

    price: str
    limit: str


@CODEC.event("CloseRejected")
@frozen
class CloseRejected:
    """The peer said no."""

    code: str
    sentence: str


@CODEC.event("CloseFailed")
@frozen
class CloseFailed:
    """A close broke, or we said no. Once our signature left, the lock decides."""

    code: str
    sentence: str


@CODEC.event("CloseSigned")
@frozen
class CloseSigned:
    """From here on our partial signature counts as left: no other close and no rollover until the lock is spent."""

    price: str
    txid: bytes
    raw: bytes | None = field(repr=False)
    """The complete close, if we have it."""


@CODEC.event("CloseCompleted")
@frozen
class CloseCompleted:
    """The close with both sides' signatures: we can broadcast it too."""

    raw: bytes = field(repr=False)


@CODEC.event("ClosePublished")
@frozen
class ClosePublished(Published):
    pass


@CODEC.event("CloseConfirmed")
@frozen
class CloseConfirmed(Confirmed):
    pass


# --- the cooperative spend of a commit --------------------------------------------------------------------------------


@CODEC.event("SpendSigned")
@frozen
class SpendSigned:
    """From here on our signature of the cooperative spend counts as left."""

    index: int
    event: int
    """Which of the contract's events is attested, from 0."""
    price: int
    txid: bytes
    raw: bytes | None = field(repr=False)
    """The complete spend, if we have it."""


@CODEC.event("SpendCompleted")
@frozen
class SpendCompleted:
    """The cooperative spend with both sides' signatures: we can broadcast it too."""

    raw: bytes = field(repr=False)


@CODEC.event("SpendPublished")
@frozen
class SpendPublished(Published):
    pass


@CODEC.event("SpendConfirmed")
@frozen
class SpendConfirmed(Confirmed):
    pass


# --- a revoked commit -------------------------------------------------------------------------------------------------


@CODEC.event("RevokedCommitSeen")
@frozen
class RevokedCommitSeen:
    """The peer published a commit that it had revoked."""

    index: int
    txid: bytes


@CODEC.event("PunishSigned")
@frozen
class PunishSigned:
    """Recorded before it is broadcast. A later one replaces it, with a higher fee."""

    txid: bytes
    raw: bytes = field(repr=False)


@CODEC.event("PunishPublished")
@frozen
class PunishPublished(Published):
    pass


@CODEC.event("PunishConfirmed")
@frozen
class PunishConfirmed(Confirmed):
    pass


# --- what is rarer ----------------------------------------------------------------------------------------------------


@CODEC.event("ConfirmationLost")
@frozen
class ConfirmationLost:
    """A reorganisation took this transaction out of the block that it was in."""

    txid: bytes


@CODEC.event("Buried")
@frozen
class Buried:
    """What ended the position is so deep in the chain that nothing is watched any more."""

    height: int


@CODEC.event("Recovered")
@frozen
class Recovered:
    """This node's record may be older than what it has signed: it publishes no commit of its own accord any more."""

    reason: str


@CODEC.event("RecoveryOverridden")
@frozen
class RecoveryOverridden:
    """The user knows what a commit of an old record may cost, and wants this one's published all the same."""


@CODEC.event("UnknownCommitConfirmed")
@frozen
class UnknownCommitConfirmed:
    """The lock is spent by a commit that is not on record. What spends that one ends the position."""

    txid: bytes
    script: bytes
    """Of its first output: what spends it shows there."""
    height: int
    block: bytes


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
    | RolloverBegun
    | RolloverHeld
    | RolloverSigned
    | Revoking
    | RevocationReceived
    | RolloverRejected
    | RolloverFailed
    | CloseProposed
    | CloseRejected
    | CloseFailed
    | CloseSigned
    | CloseCompleted
    | ClosePublished
    | CloseConfirmed
    | SpendSigned
    | SpendCompleted
    | SpendPublished
    | SpendConfirmed
    | RevokedCommitSeen
    | PunishSigned
    | PunishPublished
    | PunishConfirmed
    | ConfirmationLost
    | Buried
    | Recovered
    | RecoveryOverridden
    | UnknownCommitConfirmed
)


def signatures_blob(index: int) -> str:
    """The kind under which the peer's refund and CET signatures of an attempt are stored."""
    return f"signatures/{index}"


STREAM = "position/"
"""What the names of positions' streams begin with; the order id follows in hex."""


def stream_of(order_id: bytes) -> str:
    return STREAM + order_id.hex()


def order_of(stream: str) -> bytes:
    return bytes.fromhex(stream.removeprefix(STREAM))


def points_of(events: Iterable[Event]) -> Iterator[bytes]:
    """All points that these name, 33 bytes each."""
    for event in events:
        for points in _named(event):
            for _, point in points.each():
                yield point


def _named(event: Event) -> list[Points]:
    match event:
        case AttemptStarted():
            return [event.own.points, *([event.peer.points] if event.peer else [])]
        case CommitSignatureGiven():
            return [event.peer.points]
        case RolloverBegun():
            return [event.own, *([event.following.peer] if event.following else [])]
        case RolloverHeld():
            return [event.following.peer] if event.following else []
        case _:
            return []
