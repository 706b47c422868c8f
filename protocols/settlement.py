"""``/cfd/settlement/1``: both sides end a contract together, and nobody waits for a lock or the oracle.

The close, at a price that both take::

    taker                                          maker
    ProposeClose                      →
                                      ←            Rejected, or AcceptClose
    TakerPartial                      →            after Persist(CloseSigned)
                                      ←            MakerPartial                     after Persist(CloseSigned)

The cooperative spend of a commit that is out, at the price that the oracle attested::

    ProposeSpend                      →            after Persist(SpendSigned)
                                      ←            Rejected, or AcceptSpend         after Persist(SpendSigned)

A partial signature counts as *left* from `CloseSigned` on, whether or not it was sent. From then on no other close is
signed: proposing again means the identical transaction, with fresh nonces, and price and limits are not asked about
again. The signature of a spend is the same however often it is made.
"""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import max_len

from protocols.codec import Codec, Message, Protocol, Rejected, exactly
from protocols.contract.closing import (
    NONCE_SIZE,
    PARTIAL_SIZE,
    Close,
    CloseNonce,
    Entropy,
    Spend,
    attested_outcome,
)
from protocols.contract.numbers import BadNumber
from protocols.contract.oracle import Announcement, Attestation
from protocols.contract.signing import transactions_of
from protocols.contract.terms import Role, Terms
from protocols.contract.transactions import ContractPlan
from protocols.dialogue import Ask, Compute, Fact, Persist, Send, receive
from protocols.errors import Declined, LocalError, RemoteProtocolError
from protocols.offers import ID_LENGTH

DECISION_WITHIN = 30.0
"""Seconds that a maker takes at most to decide on a price."""
MESSAGE_WITHIN = 120.0

# --- messages ---------------------------------------------------------------------------------------------------------


@frozen
class ProposeClose(Message):
    order_id: bytes = field(validator=exactly(ID_LENGTH))
    price: str = field(validator=max_len(16))
    nonce: bytes = field(validator=exactly(NONCE_SIZE))


@frozen
class AcceptClose(Message):
    nonce: bytes = field(validator=exactly(NONCE_SIZE))
    close_txid: bytes = field(validator=exactly(32))


@frozen
class TakerPartial(Message):
    signature: bytes = field(validator=exactly(PARTIAL_SIZE))


@frozen
class MakerPartial(Message):
    signature: bytes = field(validator=exactly(PARTIAL_SIZE))


@frozen
class ProposeSpend(Message):
    order_id: bytes = field(validator=exactly(ID_LENGTH))
    commit_txid: bytes = field(validator=exactly(32))
    event_id: str = field(validator=max_len(128))
    """The event whose attestation counts: the earliest one attested at a price that this contract pays out at."""
    signature: bytes = field(validator=exactly(64))


@frozen
class AcceptSpend(Message):
    signature: bytes = field(validator=exactly(64))


PROTOCOL = Protocol(
    "/cfd/settlement/1",
    Codec(ProposeClose, AcceptClose, TakerPartial, MakerPartial, ProposeSpend, AcceptSpend, limit=4096),
)

# --- what is remembered -----------------------------------------------------------------------------------------------


@frozen
class CloseSigned(Fact):
    """From here on our partial signature counts as left: no other close, no rollover, until the lock is spent.

    The position refuses one of another price or transaction; the same one again is nothing new.
    """

    order_id: bytes
    price: str
    txid: bytes
    transaction: bytes | None
    """The complete close, to be broadcast: the maker holds it here, the taker learns it with `CloseComplete`."""


@frozen
class CloseComplete(Fact):
    """The close with both sides' signatures: the taker can broadcast it too."""

    order_id: bytes
    transaction: bytes


@frozen
class SpendSigned(Fact):
    """From here on our signature of the cooperative spend counts as left; no rollover follows it."""

    order_id: bytes
    commit_txid: bytes
    event: int
    """Which of the contract's events is attested, from 0."""
    price: int
    """The price attested."""
    txid: bytes
    transaction: bytes | None
    """The complete spend, to be broadcast: the maker holds it here, the taker learns it with `SpendComplete`."""


@frozen
class SpendComplete(Fact):
    """The cooperative spend with both sides' signatures."""

    order_id: bytes
    transaction: bytes


# --- questions to the node --------------------------------------------------------------------------------------------


@frozen
class Contract:
    """Our side of a contract that is to end."""

    plan: ContractPlan
    fund: bytes = field(repr=False)
    """Our fund secret."""
    closing: CloseSigned | None = None
    """The close that our signature left for; there is no other then."""


@frozen
class FindContract(Ask[Contract | None]):
    """The complete contract of our position with this peer under this order id; None if there is none.

    Raises Declined when the position's state does not allow a close.
    """

    order_id: bytes


@frozen
class FindPublished(Ask[Contract | None]):
    """The contract of our position with this peer whose commit this is; None unless it is out in our own view.

    A commit in no mempool and no block must never be spent so: once revoked, it could be published together with the
    spend, and no lock would leave time to punish it. Raises Declined when the commit is revoked, or the position's
    state does not allow a cooperative spend.
    """

    order_id: bytes
    commit_txid: bytes


@frozen
class DecideClose(Ask[Rejected | None]):
    """Whether the maker closes at this price: by policy or by hand, within `DECISION_WITHIN`. None: accepted."""

    order_id: bytes
    price: str
    terms: Terms


@frozen
class CheckClose(Ask[None]):
    """Raises LocalError or Declined unless the price is still within our limits, by a quote that is not stale.

    The taker's is what its user allowed; the maker's, a band around its quote: less than a second passes between its
    decision and this, but up to `MESSAGE_WITHIN` when the taker waits for a better moment. Asked by either side just
    before its signature, and by the taker before it proposes.
    """

    order_id: bytes
    price: str
    terms: Terms


@frozen
class FetchAttestations(Ask[tuple[Attestation | None, ...]]):
    """What our own oracle client verified: one for each announcement, in order; None: not attested yet."""

    announcements: tuple[Announcement, ...]


# --- the two roles ----------------------------------------------------------------------------------------------------


async def taker_close(contract: Contract, price: str, entropy: Entropy) -> bytes:
    """Close at this price. Returns the complete transaction.

    Once `CloseSigned` is persisted, whatever is raised leaves the position closing: the maker may broadcast.
    """
    order_id, terms = contract.plan.order_id, contract.plan.terms
    try:
        close = Close(contract.plan, price)
    except BadNumber as error:
        raise LocalError("bad_price", str(error)) from None
    if contract.closing is None:
        await CheckClose(order_id, price, terms)
    elif not _identical(close, contract.closing):
        raise LocalError("other_close", _only(contract.closing))
    with CloseNonce(close, Role.TAKER, contract.fund, entropy) as nonce:
        await Send(ProposeClose(order_id, price, nonce.public))

        accepted = await receive(AcceptClose, within=DECISION_WITHIN + MESSAGE_WITHIN)
        if accepted.close_txid != close.txid:
            told, ours = accepted.close_txid[::-1].hex(), close.txid[::-1].hex()
            raise RemoteProtocolError(
                "other_contract",
                f"close_txid is {told}, of the contract that we hold it is {ours}: one of us has a record from before "
                "the last rollover, and does not know the fees that the close has to pay. Who has the newer one may "
                "force close; that pays both",
            )
        session = nonce.meet(accepted.nonce)
        if contract.closing is None:
            await CheckClose(order_id, price, terms)  # the maker may have waited for a better moment
        await Persist(CloseSigned(order_id, price, close.txid, None))
        partial = session.sign(contract.fund)
        await Send(TakerPartial(partial))

        answer = await receive(MakerPartial, within=MESSAGE_WITHIN)
        raw = session.complete(partial, answer.signature)
    await Persist(CloseComplete(order_id, raw))
    return raw


async def taker_spend(contract: Contract) -> bytes:
    """Spend the commit of `contract`, which is out and not revoked, together. Returns the complete transaction."""
    plan, order_id = contract.plan, contract.plan.order_id
    attested = await Compute(attested_outcome, (plan, await FetchAttestations(plan.announcements)))
    if attested is None:
        raise LocalError("not_attested", "the oracle has attested no event at a price that this contract pays out at")
    outcome, price = attested
    commit_txid, event_id = transactions_of(plan).commit_txid, plan.announcements[outcome.event].id
    spend = Spend(plan, outcome)
    signature = spend.sign(contract.fund)
    await Persist(SpendSigned(order_id, commit_txid, outcome.event, price, spend.txid, None))
    await Send(ProposeSpend(order_id, commit_txid, event_id, signature))

    answer = await receive(AcceptSpend, within=MESSAGE_WITHIN)
    raw = spend.complete(Role.TAKER, signature, answer.signature)
    await Persist(SpendComplete(order_id, raw))
    return raw


async def maker(entropy: Entropy) -> bytes:
    """Answer one proposal of either kind. Returns the complete transaction."""
    proposed = await receive(ProposeClose, ProposeSpend, within=MESSAGE_WITHIN)
    if isinstance(proposed, ProposeClose):
        return await _maker_close(proposed, entropy)
    return await _maker_spend(proposed)


async def _maker_close(proposed: ProposeClose, entropy: Entropy) -> bytes:
    order_id, price = proposed.order_id, proposed.price
    contract = await FindContract(order_id)
    if contract is None:
        raise Declined("unknown_position", "there is no open position with you under this order_id")
    terms = contract.plan.terms
    try:
        close = Close(contract.plan, price)
    except BadNumber as error:
        raise Declined("bad_price", str(error)) from None
    if contract.closing is not None and not _identical(close, contract.closing):
        raise Declined("other_close", _only(contract.closing))
    with CloseNonce(close, Role.MAKER, contract.fund, entropy) as nonce:
        session = nonce.meet(proposed.nonce)
        if contract.closing is None:
            refusal = await DecideClose(order_id, price, terms)
            if refusal is not None:
                raise Declined(refusal.code, refusal.sentence)
        await Send(AcceptClose(nonce.public, close.txid))

        answer = await receive(TakerPartial, within=MESSAGE_WITHIN)
        session.verify(answer.signature)
        if contract.closing is None:
            await CheckClose(order_id, price, terms)  # the taker may have waited for a better moment
        partial = session.sign(contract.fund)
        raw = session.complete(partial, answer.signature)
    await Persist(CloseSigned(order_id, price, close.txid, raw))
    await Send(MakerPartial(partial))
    return raw


async def _maker_spend(proposed: ProposeSpend) -> bytes:
    contract = await FindPublished(proposed.order_id, proposed.commit_txid)
    if contract is None or transactions_of(contract.plan).commit_txid != proposed.commit_txid:
        raise Declined("unknown_commit", "no commit of a position with you under this order_id and commit_txid is out")
    plan = contract.plan
    attested = await Compute(attested_outcome, (plan, await FetchAttestations(plan.announcements)))
    if attested is None:
        raise Declined("not_attested", "our oracle has attested no event at a price that this contract pays out at")
    outcome, price = attested
    event_id = plan.announcements[outcome.event].id
    if proposed.event_id != event_id:
        raise Declined("other_event", f"event_id is {proposed.event_id!r}, the event that counts is {event_id!r}")
    spend = Spend(plan, outcome)
    signature = spend.sign(contract.fund)
    raw = spend.complete(Role.MAKER, signature, proposed.signature)
    await Persist(SpendSigned(plan.order_id, proposed.commit_txid, outcome.event, price, spend.txid, raw))
    await Send(AcceptSpend(signature))
    return raw


def _identical(close: Close, signed: CloseSigned) -> bool:
    return (close.price, close.txid) == (signed.price, signed.txid)


def _only(signed: CloseSigned) -> str:
    return f"a close at {signed.price} is signed already, and is the only one that may be proposed"
