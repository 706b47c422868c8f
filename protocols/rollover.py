"""``/cfd/rollover/1``: from contract n to contract n + 1, whose expiry is later; the lock stays where it is.

::

    taker                                       maker
    ProposeRollover                →                                R0 of the taker: its salt
                                   ←            RolloverTerms       R0 of the maker: its salt and the terms
    TakerSignatures                →                                R1: we can claim on n + 1, and sign its commit
                                   ←            MakerCommit         R1 and R2 in one: n + 1 is complete
    Revocation of n                →                                R2, then R3: we never publish n again
                                   ←            Revocation of n     R3 and R4 in one
                                                                    R4 of the taker: a published n is punished

Each record is on disk before the message beside it leaves: `RolloverBegun` (R0), `RolloverHeld` (R1),
`RolloverComplete` (R2), `RevocationLeaves` (R3), `RevocationHeld` (R4).

Up to R1 an attempt is dropped when the stream breaks, and the next one has a new salt. From R1 on the attempt *is*
n + 1: the taker opens the stream again and both go through all messages once more, the same to the byte, comparing
with their records instead of asking about times, prices and points again. The maker cannot tell a lost `RolloverTerms`
from lost `TakerSignatures`; so it keeps each of its attempts until one has R1, and signs the commit of that one only.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

from attrs import evolve, field, frozen
from attrs.validators import and_, ge, le, max_len

from protocols.codec import Codec, Message, Protocol, Rejected, exactly
from protocols.contract.keys import AttemptKeys, Points, check_points, check_revocation, negated
from protocols.contract.numbers import PRICE_PLACES, BadNumber, format_decimal, parse_price, parse_rate
from protocols.contract.oracle import Announcement, announcements_hash, scheme_named
from protocols.contract.rolling import check_start, funding_for, liquidated_at, price_bounds, rolled_terms
from protocols.contract.schedule import HOUR, check_events, contract_events
from protocols.contract.signing import Signatures, sign_commit, sign_contract, verify_commit, verify_contract
from protocols.contract.terms import Role, Terms
from protocols.contract.transactions import ContractPlan, ContractTransactions
from protocols.contract_setup import Attempt, FetchAnnouncements, KnownPoints, Now
from protocols.dialogue import Ask, Compute, Fact, Persist, Send, receive
from protocols.errors import Declined, LocalError, RemoteProtocolError
from protocols.offers import ID_LENGTH, OracleKeys

DECISION_WITHIN = 30.0
"""Seconds that a maker takes at most to decide on a rollover."""
MESSAGE_WITHIN = 60.0

# --- messages ---------------------------------------------------------------------------------------------------------


@frozen
class ProposeRollover(Message):
    order_id: bytes = field(validator=exactly(ID_LENGTH))
    index: int = field(validator=and_(ge(0), le(0xFFFF_FFFE)))
    """Of the contract that stands, n."""
    publish: bytes = field(validator=exactly(33))
    revoke: bytes = field(validator=exactly(33))


@frozen
class RolloverTerms(Message):
    event_ids: tuple[str, ...] = field(validator=max_len(64))
    announcements_hash: bytes = field(validator=exactly(32))
    funding_rate: str = field(validator=max_len(16))
    """Per 24 h; positive: long pays short."""
    price: str = field(validator=max_len(16))
    """The present one, USD; near it payouts are split finely."""
    funding_to_maker: int
    """Satoshis for the hours by which the expiry moves; negative: to the taker."""
    maker_account: int
    """Satoshis owed to the maker in the next contract."""
    publish: bytes = field(validator=exactly(33))
    revoke: bytes = field(validator=exactly(33))
    refund_signature: bytes = field(validator=exactly(64))
    cet_signatures: tuple[bytes, ...] = field(validator=max_len(64))
    """One byte string per event, 65 bytes per CET in the order of the locally generated CETs."""


@frozen
class TakerSignatures(Message):
    refund_signature: bytes = field(validator=exactly(64))
    cet_signatures: tuple[bytes, ...] = field(validator=max_len(64))
    commit_signature: bytes = field(validator=exactly(65))


@frozen
class MakerCommit(Message):
    commit_signature: bytes = field(validator=exactly(65))


@frozen
class Revocation(Message):
    """The secret of the sender's revoke point of contract n."""

    secret: bytes = field(validator=exactly(32), repr=False)


PROTOCOL = Protocol(
    "/cfd/rollover/1",
    Codec(ProposeRollover, RolloverTerms, TakerSignatures, MakerCommit, Revocation, limit=1 << 18),
    send_within=MESSAGE_WITHIN,
)

# --- what is remembered -----------------------------------------------------------------------------------------------


@frozen
class NextContract:
    """The contract that follows, as one pair of attempts fixes it for ever."""

    plan: ContractPlan
    funding_rate: str
    """By which its fee account was carried on."""


@frozen
class RolloverBegun(Fact):
    """R0: recorded before our points leave. The maker's also holds what it offers for the peer's points."""

    order_id: bytes
    index: int
    """Of the contract that is to follow, n + 1."""
    salt: bytes = field(repr=False)
    own: Points
    next: NextContract | None
    """None with the taker, who learns it from the maker's answer."""


@frozen
class RolloverHeld(Fact):
    """R1: the peer's refund and CET signatures of n + 1, verified. From here on our commit signature counts as given:
    the attempt is n + 1 for ever, and its commit is watched for."""

    order_id: bytes
    index: int
    next: NextContract
    signatures: Signatures = field(repr=False)
    commit_signature: bytes = field(repr=False)
    """Ours, encrypted to the peer's publish point."""
    commit_txid: bytes
    """Internal order."""


@frozen
class RolloverComplete(Fact):
    """R2: with the peer's commit signature, encrypted to our publish point, n + 1 can be enforced."""

    order_id: bytes
    index: int
    commit_signature: bytes = field(repr=False)


@frozen
class RevocationLeaves(Fact):
    """R3: from here on our revocation of contract `index`, n, counts as left; we never publish it again."""

    order_id: bytes
    index: int


@frozen
class RevocationHeld(Fact):
    """R4: the peer's revocation of contract `index`, n, checked: if the peer publishes it, it is punished."""

    order_id: bytes
    index: int
    secret: bytes = field(repr=False)


@frozen
class Together(Fact):
    """Several facts of one position that are written all or none."""

    facts: tuple[Fact, ...]


@frozen
class Progress:
    """How far the rollover of one contract has come, by what is on disk."""

    begun: tuple[RolloverBegun, ...] = ()
    """Every attempt whose points left, or may have."""
    held: RolloverHeld | None = None
    complete: RolloverComplete | None = None
    leaves: RevocationLeaves | None = None
    revocation: RevocationHeld | None = None

    def attempt(self, own: Points) -> RolloverBegun:
        """The attempt that began with these points of ours."""
        return next(each for each in self.begun if each.own == own)

    def offered(self, taker: Points) -> RolloverBegun | None:
        """The maker's answer to these points of the taker, if there was one."""
        return next((each for each in self.begun if each.next and each.next.plan.taker.points == taker), None)


@frozen
class Standing:
    """A contract n, and what is on disk of the one that follows: a dialogue begins with it, or is resumed from it."""

    plan: ContractPlan
    keys: AttemptKeys = field(repr=False)
    """Ours of contract n."""
    oracle: OracleKeys
    predecessor_revoked: bool
    """Whether we hold the peer's revocation of n - 1 and gave ours; True for the first contract."""
    progress: Progress = Progress()

    @property
    def publishable(self) -> frozenset[int]:
        """The contracts whose commit we may publish: n until our revocation leaves, n + 1 once it is complete."""
        return self._those(old=self.progress.leaves is None, following=self.progress.complete is not None)

    @property
    def claimable(self) -> frozenset[int]:
        """The contracts of which we can claim our payout when their commit confirms, whoever published it.

        n is one of them as long as the peer may publish it: until its revocation is held.
        """
        return self._those(old=self.progress.revocation is None, following=self.progress.held is not None)

    @property
    def punishable(self) -> frozenset[int]:
        """The contracts whose commit is punished when the peer publishes it."""
        return self._those(old=self.progress.revocation is not None, following=False)

    def _those(self, *, old: bool, following: bool) -> frozenset[int]:
        index = self.plan.index
        return frozenset(each for each, wanted in ((index, old), (index + 1, following)) if wanted)


Begin: TypeAlias = Callable[[Standing], Attempt]
"""Our keys of the contract that follows, from a new salt; `fund` stays the setup's. A resumed attempt signs with that
alone, so it needs no salt."""

# --- questions to the node --------------------------------------------------------------------------------------------


@frozen
class FindStanding(Ask[Standing | None]):
    """The maker's contract `index` of this order with the peer that asks; None unless it is complete and either
    stands or is the one before that, whose rollover may have to be finished."""

    order_id: bytes
    index: int


@frozen
class Conditions:
    """At what a maker rolls over. Raises `BadNumber` when made of what no contract can have."""

    funding_rate: str
    """Per 24 h; positive: long pays short."""
    price: str
    """The present one, USD."""

    def __attrs_post_init__(self) -> None:
        parse_rate(self.funding_rate, "funding_rate")
        parse_price(self.price)


@frozen
class DecideRollover(Ask[Conditions | Rejected]):
    """Whether and at what the maker rolls this contract over: by policy or by hand, within `DECISION_WITHIN`."""

    plan: ContractPlan


@frozen
class FeedPrice(Ask[Fraction]):
    """The present price (USD) by the taker's own feed. Raises WorldError when there is no fresh one."""


# --- the two roles ----------------------------------------------------------------------------------------------------


async def taker(standing: Standing, begin: Begin, max_rate: str) -> ContractPlan:
    """Roll a contract over, or finish the rollover that is on record. Returns the plan of contract n + 1 once both
    have revoked n.

    `max_rate`: the largest |funding rate| that is accepted; see `default_rate_bound`.
    """
    old, progress, held = standing.plan, standing.progress, standing.progress.held
    if held is None:
        held = await _agree(standing, begin, max_rate)
    else:
        own = held.next.plan.taker.points
        await Send(ProposeRollover(old.order_id, old.index, own.publish, own.revoke))
        again = await receive(RolloverTerms, within=DECISION_WITHIN + MESSAGE_WITHIN)
        _compare(again, _terms_message(old, held.next, held.signatures))
    signatures = await Compute(sign_contract, (held.next.plan, Role.TAKER, standing.keys.fund))
    await Send(TakerSignatures(signatures.refund, signatures.cets, held.commit_signature))

    answer = await receive(MakerCommit, within=MESSAGE_WITHIN)
    if progress.complete is None:
        await Compute(verify_commit, (held.next.plan, Role.MAKER, answer.commit_signature))
        await Persist(RolloverComplete(old.order_id, held.index, answer.commit_signature))
    else:
        _compare(answer, MakerCommit(progress.complete.commit_signature))
    if progress.leaves is None:
        await Persist(RevocationLeaves(old.order_id, old.index))
    await Send(Revocation(standing.keys.revoke))

    revocation = await receive(Revocation, within=MESSAGE_WITHIN)
    check_revocation(old.maker.points.revoke, revocation.secret)
    if progress.revocation is None:
        await Persist(RevocationHeld(old.order_id, old.index, revocation.secret))
    return held.next.plan


async def maker(begin: Begin) -> ContractPlan:
    """Answer one proposal, new or resumed. Returns the plan of contract n + 1 once both have revoked n."""
    proposal = await receive(ProposeRollover, within=MESSAGE_WITHIN)
    standing = await FindStanding(proposal.order_id, proposal.index)
    if standing is None:
        raise Declined("unknown_contract", f"contract {proposal.index} of this order is not one to be rolled over")
    old, progress, held = standing.plan, standing.progress, standing.progress.held
    theirs = Points(old.taker.points.fund, proposal.publish, proposal.revoke)
    if held is not None and held.next.plan.taker.points != theirs:
        raise Declined("unfinished_rollover", "another attempt is signed: finish it with the points that it began with")
    begun = progress.offered(theirs) if held is None else progress.attempt(held.next.plan.maker.points)
    if begun is None:
        following = await _offer(standing, begin, theirs)
    else:
        assert begun.next is not None
        following = begun.next
    signatures = await Compute(sign_contract, (following.plan, Role.MAKER, standing.keys.fund))
    await Send(_terms_message(old, following, signatures))

    answer = await receive(TakerSignatures, within=MESSAGE_WITHIN)
    if held is None or progress.complete is None:
        received = Signatures(answer.refund_signature, answer.cet_signatures)
        await Compute(verify_contract, (following.plan, Role.TAKER, received))
        await Compute(verify_commit, (following.plan, Role.TAKER, answer.commit_signature))
        held = await _hold(following, Role.MAKER, received, standing.keys)
        await Persist(Together((held, RolloverComplete(old.order_id, held.index, answer.commit_signature))))
    else:
        _compare(
            answer, TakerSignatures(held.signatures.refund, held.signatures.cets, progress.complete.commit_signature)
        )
    await Send(MakerCommit(held.commit_signature))

    revocation = await receive(Revocation, within=MESSAGE_WITHIN)
    check_revocation(old.taker.points.revoke, revocation.secret)
    if progress.revocation is None:
        leaves = RevocationLeaves(old.order_id, old.index)
        await Persist(Together((leaves, RevocationHeld(old.order_id, old.index, revocation.secret))))
    await Send(Revocation(standing.keys.revoke))
    return following.plan


# --- what is agreed on ------------------------------------------------------------------------------------------------


async def _agree(standing: Standing, begin: Begin, max_rate: str) -> RolloverHeld:
    """The taker's part of a new attempt, up to R1."""
    old = standing.plan
    asked_at = await Now()
    _check_predecessor(standing, LocalError)
    check_start(old.announcements[-1].time, asked_at, LocalError)
    attempt = begin(standing)
    own = attempt.keys.points
    await Persist(RolloverBegun(old.order_id, old.index + 1, attempt.salt, own, None))
    await Send(ProposeRollover(old.order_id, old.index, own.publish, own.revoke))

    said = await receive(RolloverTerms, within=DECISION_WITHIN + MESSAGE_WITHIN)
    theirs = Points(old.maker.points.fund, said.publish, said.revoke)
    await _check_points(old, own, theirs)
    expiry = check_events(
        old.terms.symbol, said.event_ids, scheme_named(standing.oracle.scheme), asked_at=asked_at, now=await Now()
    )[-1]
    hours = (expiry - old.announcements[-1].time) // HOUR
    if hours <= 0:
        raise RemoteProtocolError("bad_events", f"the last event, {said.event_ids[-1]}, is not later than before")
    announcements = await FetchAnnouncements(standing.oracle, said.event_ids)
    if said.announcements_hash != announcements_hash(announcements):
        raise RemoteProtocolError("other_announcements", "announcements_hash differs from that of our oracle's events")
    terms = _check_terms(old.terms, said, hours=hours, max_rate=max_rate, feed=await FeedPrice())
    plan = _following(old, terms, announcements, maker=theirs, taker=own)
    signatures = Signatures(said.refund_signature, said.cet_signatures)
    await Compute(verify_contract, (plan, Role.MAKER, signatures))
    held = await _hold(NextContract(plan, said.funding_rate), Role.TAKER, signatures, standing.keys)
    await Persist(held)
    return held


async def _offer(standing: Standing, begin: Begin, theirs: Points) -> NextContract:
    """The maker's part of a new attempt, up to its terms being on disk."""
    old = standing.plan
    _check_predecessor(standing, Declined)
    check_start(old.announcements[-1].time, await Now(), Declined)
    attempt = begin(standing)
    own = attempt.keys.points
    await _check_points(old, own, theirs)
    conditions = await DecideRollover(old)
    if isinstance(conditions, Rejected):
        raise Declined(conditions.code, conditions.sentence)
    event_ids = contract_events(old.terms.symbol, await Now(), scheme_named(standing.oracle.scheme))
    announcements = await FetchAnnouncements(standing.oracle, event_ids)
    hours = (announcements[-1].time - old.announcements[-1].time) // HOUR
    terms = rolled_terms(old.terms, rate=conditions.funding_rate, price=conditions.price, hours=hours)
    _check_alive(terms, parse_price(conditions.price))
    plan = _following(old, terms, announcements, maker=own, taker=theirs)
    following = NextContract(plan, conditions.funding_rate)
    await Persist(RolloverBegun(old.order_id, plan.index, attempt.salt, own, following))
    return following


def _following(
    old: ContractPlan, terms: Terms, announcements: tuple[Announcement, ...], *, maker: Points, taker: Points
) -> ContractPlan:
    """Contract n + 1: inputs and scripts, and with them the lock, are those of n."""
    return evolve(
        old,
        index=old.index + 1,
        terms=terms,
        announcements=announcements,
        maker=evolve(old.maker, points=maker),
        taker=evolve(old.taker, points=taker),
    )


async def _hold(following: NextContract, role: Role, theirs: Signatures, keys: AttemptKeys) -> RolloverHeld:
    """R1, with our own commit signature in it; it is made here, and leaves only when this is on disk."""
    plan = following.plan
    commit_signature = await Compute(sign_commit, (plan, role, keys.fund))
    commit_txid = ContractTransactions(plan).commit_txid
    return RolloverHeld(plan.order_id, plan.index, following, theirs, commit_signature, commit_txid)


def _terms_message(old: ContractPlan, following: NextContract, signatures: Signatures) -> RolloverTerms:
    """The maker's second message; the same for the same record."""
    plan, points = following.plan, following.plan.maker.points
    return RolloverTerms(
        event_ids=tuple(each.id for each in plan.announcements),
        announcements_hash=announcements_hash(plan.announcements),
        funding_rate=following.funding_rate,
        price=plan.terms.reference,
        funding_to_maker=plan.terms.maker_account - old.terms.maker_account,
        maker_account=plan.terms.maker_account,
        publish=points.publish,
        revoke=points.revoke,
        refund_signature=signatures.refund,
        cet_signatures=signatures.cets,
    )


# --- checks that both roles make --------------------------------------------------------------------------------------


def _check_predecessor(standing: Standing, refusal: type[LocalError] | type[Declined]) -> None:
    """No n + 2 before both have revoked n."""
    if not standing.predecessor_revoked:
        sentence = f"contract {standing.plan.index - 1} is not revoked by both: finish that rollover first"
        raise refusal("unfinished_rollover", sentence)


def _check_terms(old: Terms, said: RolloverTerms, *, hours: int, max_rate: str, feed: Fraction) -> Terms:
    """The next contract's terms, once the maker's rate, price, fee and account are what our own say."""
    try:
        price = parse_price(said.price, "price")
        rate = parse_rate(said.funding_rate, "funding_rate")
        funding = funding_for(old, said.funding_rate, hours)
        terms = rolled_terms(old, rate=said.funding_rate, price=said.price, hours=hours)
    except BadNumber as error:
        raise RemoteProtocolError(f"bad_{error.field}", str(error)) from None
    if abs(rate) > parse_rate(max_rate, "max_rate"):
        allowed = f"from -{max_rate} to {max_rate} per 24 h"
        raise RemoteProtocolError("bad_funding_rate", f"funding_rate is {said.funding_rate}, allowed is {allowed}")
    if said.funding_to_maker != funding:
        due = f"due for {hours} h is {funding}"
        raise RemoteProtocolError("wrong_funding", f"funding_to_maker is {said.funding_to_maker} sat, {due}")
    if said.maker_account != terms.maker_account:
        ours = f"by our own account it is {terms.maker_account}"
        raise RemoteProtocolError("wrong_account", f"maker_account is {said.maker_account} sat, {ours}")
    low, high = price_bounds(feed)
    if not low <= price <= high:
        allowed = f"from {format_decimal(low, PRICE_PLACES)} to {format_decimal(high, PRICE_PLACES)}"
        raise RemoteProtocolError("bad_price", f"price is {said.price}, allowed is {allowed}: 2 % around our own feed")
    _check_alive(terms, price)
    _check_alive(terms, feed)
    return terms


async def _check_points(old: ContractPlan, own: Points, theirs: Points) -> None:
    funds = (old.maker.points.fund, old.taker.points.fund)
    known = await KnownPoints(theirs)
    check_points(own, theirs, known - {*funds, *map(negated, funds)})


def _check_alive(terms: Terms, price: Fraction) -> None:
    """Neither side begins a contract that the present price would end at once."""
    if side := liquidated_at(terms, price):
        raise Declined("liquidated", f"at the present price the next contract would liquidate the {side.value} side")


def _compare(said: Message, recorded: Message) -> None:
    """A resumed attempt is the same to the byte."""
    if said != recorded:
        raise RemoteProtocolError("other_attempt", f"{type(said).__name__} differs from what is on record of it")
