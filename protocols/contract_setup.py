"""``/cfd/contract_setup/1``: from an order to a contract that either side can enforce.

::

    taker                                          maker
    PlaceOrder                        →
                                      ←            Rejected, or Accepted            after Persist(AttemptBegun)
    TakerContract                     →            after Persist(AttemptBegun)
                                      ←            MakerContract                    after Persist(SignaturesHeld)
    TakerLock                         →            after Persist(SignaturesHeld), Persist(SetupComplete)
                                      ←            MakerLock                        after Persist(SetupComplete)

Each message is checked in full before the next leaves. A commit signature leaves only after the peer's refund and CET
signatures are verified and on disk (`SignaturesHeld`); from `SetupComplete` on, our signatures on the lock count as
*left*, whether or not they were sent. A setup is never resumed: one that breaks before `SetupComplete` has failed.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen
from attrs.validators import and_, ge, le, max_len, min_len

from protocols.codec import Codec, Message, Protocol, Rejected, exactly
from protocols.contract.funding import MAX_INPUTS, FundingInput
from protocols.contract.keys import AttemptKeys, Points, check_points
from protocols.contract.numbers import MAX_MONEY, BadNumber
from protocols.contract.oracle import Announcement, announcements_hash, check_nonces, scheme_named
from protocols.contract.parties import check_party, check_scripts
from protocols.contract.schedule import check_events, contract_events
from protocols.contract.signing import (
    Signatures,
    sign_commit,
    sign_contract,
    verify_commit,
    verify_contract,
    verify_lock_witness,
)
from protocols.contract.terms import Role, Terms
from protocols.contract.transactions import ContractPlan, Party
from protocols.dialogue import Ask, Compute, Fact, Persist, Send, receive
from protocols.errors import Declined, RemoteProtocolError
from protocols.offers import ID_LENGTH, Offer, OracleKeys

DECISION_WITHIN = 60.0
"""Seconds that a maker takes at most to decide on an order."""
MESSAGE_WITHIN = 120.0

# --- messages ---------------------------------------------------------------------------------------------------------


@frozen
class Input:
    """A confirmed output of the sender that funds the lock; `txid` in internal order."""

    txid: bytes = field(validator=exactly(32))
    vout: int = field(validator=and_(ge(0), le(0xFFFF_FFFF)))
    value: int = field(validator=and_(ge(1), le(MAX_MONEY)))
    script: bytes = field(validator=max_len(34))


@frozen
class PlaceOrder(Message):
    order_id: bytes = field(validator=exactly(ID_LENGTH))
    offer_id: bytes = field(validator=exactly(ID_LENGTH))
    quantity: int
    leverage: int
    price: str = field(validator=max_len(16))
    """The price that the taker saw; a different one is refused."""


@frozen
class Accepted(Message):
    event_ids: tuple[str, ...] = field(validator=max_len(64))
    announcements_hash: bytes = field(validator=exactly(32))
    fee_rate: int
    fund: bytes = field(validator=exactly(33))
    publish: bytes = field(validator=exactly(33))
    revoke: bytes = field(validator=exactly(33))
    inputs: tuple[Input, ...] = field(validator=and_(min_len(1), max_len(MAX_INPUTS)))
    change_script: bytes = field(validator=max_len(34))
    payout_script: bytes = field(validator=max_len(34))


@frozen
class TakerContract(Message):
    fund: bytes = field(validator=exactly(33))
    publish: bytes = field(validator=exactly(33))
    revoke: bytes = field(validator=exactly(33))
    inputs: tuple[Input, ...] = field(validator=and_(min_len(1), max_len(MAX_INPUTS)))
    change_script: bytes = field(validator=max_len(34))
    payout_script: bytes = field(validator=max_len(34))
    refund_signature: bytes = field(validator=exactly(64))
    cet_signatures: tuple[bytes, ...] = field(validator=max_len(64))
    """One byte string per event, 65 bytes per CET in the order of the locally generated CETs."""


@frozen
class MakerContract(Message):
    refund_signature: bytes = field(validator=exactly(64))
    cet_signatures: tuple[bytes, ...] = field(validator=max_len(64))
    commit_signature: bytes = field(validator=exactly(65))


@frozen
class TakerLock(Message):
    commit_signature: bytes = field(validator=exactly(65))
    witnesses: tuple[tuple[bytes, ...], ...] = field(validator=and_(min_len(1), max_len(MAX_INPUTS)))
    """One witness stack for each of the taker's inputs."""


@frozen
class MakerLock(Message):
    witnesses: tuple[tuple[bytes, ...], ...] = field(validator=and_(min_len(1), max_len(MAX_INPUTS)))


PROTOCOL = Protocol(
    "/cfd/contract_setup/1",
    Codec(PlaceOrder, Accepted, TakerContract, MakerContract, TakerLock, MakerLock, limit=1 << 18),
)

# --- what is remembered -----------------------------------------------------------------------------------------------


@frozen
class Attempt:
    """Fresh randomness for one setup and the keys that follow from it."""

    salt: bytes = field(repr=False)
    keys: AttemptKeys = field(repr=False)


@frozen
class Order:
    """A taker's wish to take an offer."""

    order_id: bytes
    offer: Offer
    quantity: int
    leverage: int


@frozen
class AttemptBegun(Fact):
    """Recorded before our points leave: the terms, the salt, our coins; the maker's side too if it is known."""

    order: Order
    role: Role
    terms: Terms
    announcements: tuple[Announcement, ...]
    salt: bytes = field(repr=False)
    own: Party
    peer: Party | None


@frozen
class SignaturesHeld(Fact):
    """The peer's refund and CET signatures, verified. From here on our commit signature counts as given."""

    order_id: bytes
    index: int
    peer: Party
    signatures: Signatures = field(repr=False)


@frozen
class SetupComplete(Fact):
    """Everything that enforces the contract. From here on our lock signatures count as left."""

    order_id: bytes
    commit_signature: bytes = field(repr=False)
    """The peer's, encrypted to our publish point."""
    own_witnesses: tuple[tuple[bytes, ...], ...]
    peer_witnesses: tuple[tuple[bytes, ...], ...] | None
    """The maker holds the taker's here; the taker learns the maker's with `LockComplete`."""


@frozen
class LockComplete(Fact):
    """The maker's witnesses: the taker can publish the lock too."""

    order_id: bytes
    peer_witnesses: tuple[tuple[bytes, ...], ...]


# --- questions to the node --------------------------------------------------------------------------------------------


@frozen
class Now(Ask[int]):
    """The oracle's calendar, seconds since 1970."""


@frozen
class FindOffer(Ask[Offer | None]):
    """The maker's offer of this id if it stands and is not stale."""

    offer_id: bytes


@frozen
class Decide(Ask[Rejected | None]):
    """Whether the maker takes the order: by policy or by hand, within `DECISION_WITHIN`. None: accepted."""

    order: Order
    terms: Terms


@frozen
class CheckFeeRate(Ask[None]):
    """Raises RemoteProtocolError unless the rate (sat/vB) lies within [½, 3] × our own estimate."""

    fee_rate: int


@frozen
class FetchAnnouncements(Ask[tuple[Announcement, ...]]):
    """Our own oracle client's verified announcements of these events."""

    oracle: OracleKeys
    event_ids: tuple[str, ...]


@frozen
class Funding:
    """Our coins for the lock, reserved until the setup has failed or the lock is spent, and fresh scripts of ours."""

    inputs: tuple[FundingInput, ...]
    change_script: bytes
    payout_script: bytes


@frozen
class Fund(Ask[Funding]):
    """Confirmed coins of ours worth what `role` must bring to this contract, and our share of the lock's fee."""

    order_id: bytes
    role: Role
    terms: Terms
    peer_payout: bytes | None
    """The peer's payout script, once it is known: the fees of the transactions that pay to it depend on it."""


@frozen
class KnownPoints(Ask[frozenset[bytes]]):
    """Which of these points were seen before, in any attempt of any position."""

    points: Points


@frozen
class CheckCoins(Ask[None]):
    """Raises RemoteProtocolError unless, in our own view of the chain, the peer's inputs are what it says, confirmed,
    mature and unspent, and neither they nor the scripts are ours."""

    inputs: tuple[FundingInput, ...]
    scripts: tuple[bytes, ...]


@frozen
class SignLock(Ask[tuple[tuple[bytes, ...], ...]]):
    """Witnesses for our own inputs of the plan's lock, in their order."""

    plan: ContractPlan


# --- the two roles ----------------------------------------------------------------------------------------------------


async def taker(order: Order, attempt: Attempt) -> ContractPlan:
    """Take an offer. Returns the plan of the contract once the lock can be published by either side."""
    offer = order.offer
    terms = offer.check_order(order.quantity, order.leverage)
    asked_at = await Now()
    await Send(PlaceOrder(order.order_id, offer.id, order.quantity, order.leverage, offer.price))

    accepted = await receive(Accepted, within=DECISION_WITHIN + MESSAGE_WITHIN)
    if accepted.fee_rate != offer.fee_rate:
        raise RemoteProtocolError("wrong_fee_rate", f"fee_rate is {accepted.fee_rate}, the offer says {offer.fee_rate}")
    await CheckFeeRate(accepted.fee_rate)
    check_events(
        offer.symbol, accepted.event_ids, scheme_named(offer.oracle.scheme), asked_at=asked_at, now=await Now()
    )
    announcements = await FetchAnnouncements(offer.oracle, accepted.event_ids)
    check_nonces(announcements)
    if accepted.announcements_hash != announcements_hash(announcements):
        raise RemoteProtocolError("other_announcements", "announcements_hash differs from that of our oracle's events")
    maker_points = Points(accepted.fund, accepted.publish, accepted.revoke)
    maker_party = await _check_party(maker_points, accepted, attempt.keys.points)
    funding = await Fund(order.order_id, Role.TAKER, terms, accepted.payout_script)
    own = _party(attempt, funding)
    plan = ContractPlan(
        order_id=order.order_id, index=0, terms=terms, maker=maker_party, taker=own, announcements=announcements
    )
    check_party(plan, Role.MAKER)
    await Persist(AttemptBegun(order, Role.TAKER, terms, announcements, attempt.salt, own, maker_party))
    signatures = await Compute(sign_contract, (plan, Role.TAKER, attempt.keys.fund))
    await Send(
        TakerContract(
            fund=own.points.fund,
            publish=own.points.publish,
            revoke=own.points.revoke,
            inputs=_wire_inputs(own),
            change_script=own.change_script,
            payout_script=own.payout_script,
            refund_signature=signatures.refund,
            cet_signatures=signatures.cets,
        )
    )

    answer = await receive(MakerContract, within=MESSAGE_WITHIN)
    held = Signatures(answer.refund_signature, answer.cet_signatures)
    await Compute(verify_contract, (plan, Role.MAKER, held))
    await Compute(verify_commit, (plan, Role.MAKER, answer.commit_signature))
    await Persist(SignaturesHeld(order.order_id, 0, maker_party, held))
    commit_signature = await Compute(sign_commit, (plan, Role.TAKER, attempt.keys.fund))
    witnesses = await SignLock(plan)
    await Persist(SetupComplete(order.order_id, answer.commit_signature, witnesses, None))
    await Send(TakerLock(commit_signature, witnesses))

    lock = await receive(MakerLock, within=MESSAGE_WITHIN)
    check_lock_witnesses(plan, Role.MAKER, lock.witnesses)
    await Persist(LockComplete(order.order_id, lock.witnesses))
    return plan


async def maker(begin: Callable[[bytes], Attempt]) -> ContractPlan:
    """Answer one order. Returns the plan of the contract once the lock can be published.

    `begin` gives an order id its attempt; the id is the taker's choice, the salt is not.
    """
    placed = await receive(PlaceOrder, within=MESSAGE_WITHIN)
    offer = await FindOffer(placed.offer_id)
    if offer is None:
        raise Declined("unknown_offer", "no such offer stands; it may have been changed or withdrawn")
    if placed.price != offer.price:
        raise Declined("wrong_price", f"price is {placed.price!r}, the offer's is {offer.price}")
    try:
        terms = offer.check_order(placed.quantity, placed.leverage)
    except BadNumber as error:
        raise Declined(f"bad_{error.field}" if error.field.isidentifier() else "bad_order", str(error)) from None
    order = Order(placed.order_id, offer, placed.quantity, placed.leverage)
    refusal = await Decide(order, terms)
    if refusal is not None:
        raise Declined(refusal.code, refusal.sentence)

    attempt = begin(placed.order_id)
    event_ids = contract_events(offer.symbol, await Now(), scheme_named(offer.oracle.scheme))
    announcements = await FetchAnnouncements(offer.oracle, event_ids)
    check_nonces(announcements)
    funding = await Fund(order.order_id, Role.MAKER, terms, None)
    own = _party(attempt, funding)
    await Persist(AttemptBegun(order, Role.MAKER, terms, announcements, attempt.salt, own, None))
    await Send(
        Accepted(
            event_ids=event_ids,
            announcements_hash=announcements_hash(announcements),
            fee_rate=terms.fee_rate,
            fund=own.points.fund,
            publish=own.points.publish,
            revoke=own.points.revoke,
            inputs=_wire_inputs(own),
            change_script=own.change_script,
            payout_script=own.payout_script,
        )
    )

    proposal = await receive(TakerContract, within=MESSAGE_WITHIN)
    taker_points = Points(proposal.fund, proposal.publish, proposal.revoke)
    taker_party = await _check_party(taker_points, proposal, attempt.keys.points)
    plan = ContractPlan(
        order_id=order.order_id, index=0, terms=terms, maker=own, taker=taker_party, announcements=announcements
    )
    check_party(plan, Role.TAKER)
    held = Signatures(proposal.refund_signature, proposal.cet_signatures)
    await Compute(verify_contract, (plan, Role.TAKER, held))
    await Persist(SignaturesHeld(order.order_id, 0, taker_party, held))
    signatures = await Compute(sign_contract, (plan, Role.MAKER, attempt.keys.fund))
    commit_signature = await Compute(sign_commit, (plan, Role.MAKER, attempt.keys.fund))
    await Send(MakerContract(signatures.refund, signatures.cets, commit_signature))

    lock = await receive(TakerLock, within=MESSAGE_WITHIN)
    await Compute(verify_commit, (plan, Role.TAKER, lock.commit_signature))
    check_lock_witnesses(plan, Role.TAKER, lock.witnesses)
    # The peer's coins may have been spent meanwhile; ours must not be signed away into a lock that cannot confirm.
    await CheckCoins(taker_party.inputs, (taker_party.change_script, taker_party.payout_script))
    witnesses = await SignLock(plan)
    await Persist(SetupComplete(order.order_id, lock.commit_signature, witnesses, lock.witnesses))
    await Send(MakerLock(witnesses))
    return plan


# --- checks that both roles make --------------------------------------------------------------------------------------


def _party(attempt: Attempt, funding: Funding) -> Party:
    return Party(attempt.keys.points, funding.inputs, funding.change_script, funding.payout_script)


def _wire_inputs(party: Party) -> tuple[Input, ...]:
    return tuple(Input(coin.txid, coin.vout, coin.value, coin.script) for coin in party.inputs)


async def _check_party(points: Points, said: Accepted | TakerContract, own: Points) -> Party:
    """The peer's side of the contract, once its points, scripts and coins are checked each for itself."""
    check_points(own, points, await KnownPoints(points))
    inputs = tuple(FundingInput(coin.txid, coin.vout, coin.value, coin.script) for coin in said.inputs)
    party = Party(points, inputs, said.change_script, said.payout_script)
    check_scripts(party)
    await CheckCoins(inputs, (said.change_script, said.payout_script))
    return party


def check_lock_witnesses(plan: ContractPlan, role: Role, witnesses: tuple[tuple[bytes, ...], ...]) -> None:
    """Raises RemoteProtocolError unless these are valid witnesses for all of `role`'s inputs of the lock."""
    inputs = plan.party(role).inputs
    if len(witnesses) != len(inputs):
        raise RemoteProtocolError("bad_witness", f"{len(witnesses)} witnesses for {len(inputs)} inputs")
    first = 0 if role is Role.MAKER else len(plan.maker.inputs)
    for index, witness in enumerate(witnesses, first):
        verify_lock_witness(plan, index, witness)
