"""Contract setup: what is agreed, what is on disk when the stream or the process breaks anywhere, and every lie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from attrs import evolve, frozen
from btclib_secp256k1 import keys as curve
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from node.network.conversation import Host, answering, inline, speak
from node.network.endpoint import Handler
from protocols import contract_setup
from protocols.codec import Message, Rejected, wire_name
from protocols.contract import adaptor
from protocols.contract.funding import MAX_INPUTS, FundingInput
from protocols.contract.keys import AttemptKeys, attempt_keys, negated
from protocols.contract.numbers import MAX_MONEY
from protocols.contract.oracle import DLC, OLIVIA, Announcement, opening_scalar, parse_attestation, scheme_named
from protocols.contract.outcomes import covering
from protocols.contract.schedule import contract_events
from protocols.contract.signing import (
    complete_cet,
    complete_commit,
    complete_lock,
    complete_refund,
    transactions_of,
)
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import (
    DECISION_WITHIN,
    MESSAGE_WITHIN,
    PROTOCOL,
    Accepted,
    AttemptBegun,
    CheckCoins,
    CheckFeeRate,
    Decide,
    FetchAnnouncements,
    FindOffer,
    Fund,
    KnownPoints,
    LockComplete,
    MakerContract,
    MakerLock,
    Now,
    PlaceOrder,
    SetupComplete,
    SignaturesHeld,
    SignLock,
    TakerContract,
    TakerLock,
)
from protocols.dialogue import Fact, Persist, Receive
from protocols.errors import (
    CodedError,
    Declined,
    LocalError,
    PeerGone,
    Refused,
    RemoteError,
    RemoteProtocolError,
    WorldError,
)
from protocols.testing import End, Pair
from tests.endpoints import Joined, joined
from tests.lies import Change, Lying, Plain, drop, edit, flip, flipped, put, same
from tests.setups import (
    ANNOUNCEMENT_SECRET,
    ATTESTATION_SECRET,
    MAKER,
    NOW,
    OFFER,
    TAKER,
    Trader,
    announcement,
    nonces,
    order,
    points_of,
    secret,
    setup_pair,
)

TRADERS = {Role.MAKER: MAKER, Role.TAKER: TAKER}
ORDER = order()

# --- what a side can do with what it wrote down -----------------------------------------------------------------------


@frozen
class Known:
    """A side's facts, and nothing else but its seed."""

    role: Role
    begun: AttemptBegun | None
    held: SignaturesHeld | None
    complete: SetupComplete | None
    lock: LockComplete | None

    @classmethod
    def of(cls, role: Role, facts: list[Fact]) -> Known:
        """Each fact at most once, in this order, without a gap."""
        kinds = [AttemptBegun, SignaturesHeld, SetupComplete, LockComplete][: len(facts)]
        assert [type(fact) for fact in facts] == kinds
        found: list[Any] = [*facts, *[None] * (4 - len(facts))]
        return cls(role, *found)

    @property
    def keys(self) -> AttemptKeys:
        assert self.begun is not None
        salt = self.begun.salt
        order_id = self.begun.order.order_id
        return attempt_keys(TRADERS[self.role].seed, setup_salt=salt, salt=salt, order_id=order_id, index=0)

    @property
    def plan(self) -> ContractPlan:
        assert self.begun is not None
        assert self.held is not None
        own, peer = self.begun.own, self.held.peer
        assert self.begun.peer in (None, peer)
        maker, taker = (own, peer) if self.role is Role.MAKER else (peer, own)
        order_id = self.begun.order.order_id
        return ContractPlan(order_id, 0, self.begun.terms, maker, taker, self.begun.announcements)

    def assert_refund_and_cets(self) -> None:
        """Whatever price is attested at whichever event: our side can be claimed. Each is checked as it is made."""
        assert self.held is not None
        plan, fund = self.plan, self.keys.fund
        assert complete_refund(plan, self.role, fund, self.held.signatures.refund)
        transactions = transactions_of(plan)
        last = len(plan.announcements) - 1
        for event, price in ((last, 54_000), (last, 1_048_575), (0, 0)):
            outcome = covering(transactions.outcomes, event, price)
            assert outcome is not None
            named = plan.announcements[event]
            body = OLIVIA.attest(named.id, nonces(named.id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
            attestation = parse_attestation(body, named)
            assert attestation is not None
            assert complete_cet(
                plan,
                self.role,
                fund,
                outcome,
                peer_signature=self.held.signatures.of(transactions, outcome),
                opening=opening_scalar(attestation, named, outcome.digits),
            )

    def assert_commit(self) -> None:
        assert self.complete is not None
        assert complete_commit(self.plan, self.role, self.keys, self.complete.commit_signature)

    def raw_lock(self) -> bytes | None:
        """The lock with all witnesses, if this side has them."""
        if self.complete is None:
            return None
        own, peer = (
            self.complete.own_witnesses,
            self.complete.peer_witnesses or (self.lock and self.lock.peer_witnesses),
        )
        if not peer:
            return None
        both = own + peer if self.role is Role.MAKER else peer + own
        return complete_lock(self.plan, dict(enumerate(both)))


def sent(end: End, kind: type[Message]) -> bool:
    return any(isinstance(message, kind) for message in end.sent)


@lru_cache
def assert_can_claim(known: Known) -> None:
    if known.held is not None:
        known.assert_refund_and_cets()
    if known.complete is not None:
        known.assert_commit()


def assert_money_is_safe(taker: End, maker: End) -> None:
    """design.md, "Money safety rules" 1 and 2, by what each side wrote down and what left it."""
    for role, end in ((Role.TAKER, taker), (Role.MAKER, maker)):
        known = Known.of(role, end.facts)
        if sent(end, Accepted) or sent(end, TakerContract):  # our points left
            assert known.begun is not None
            assert known.keys.points == known.begun.own.points
        if sent(end, MakerContract) or sent(end, TakerLock):  # our commit signature left
            assert known.held is not None
        if sent(end, TakerLock) or sent(end, MakerLock):  # our lock signatures left
            assert known.complete is not None
        assert_can_claim(known)
    taker_knows, maker_knows = Known.of(Role.TAKER, taker.facts), Known.of(Role.MAKER, maker.facts)
    if maker_knows.complete is not None:
        assert taker_knows.complete is not None
    if taker_knows.held is not None and maker_knows.held is not None:
        assert taker_knows.plan == maker_knows.plan
    locks = {raw for raw in (taker_knows.raw_lock(), maker_knows.raw_lock()) if raw is not None}
    assert len(locks) <= 1


# --- all is well ------------------------------------------------------------------------------------------------------


def test_an_order_becomes_a_contract_that_either_side_can_enforce() -> None:
    taker, maker = setup_pair().run()
    assert taker.error is maker.error is None
    assert taker.result == maker.result
    plan: ContractPlan = taker.result
    assert plan.order_id == ORDER.order_id
    assert plan.terms == OFFER.terms(ORDER.quantity, ORDER.leverage)
    assert tuple(each.id for each in plan.announcements) == EVENTS
    assert_money_is_safe(taker, maker)
    for role, end in ((Role.TAKER, taker), (Role.MAKER, maker)):
        known = Known.of(role, end.facts)
        assert known.plan == plan
        assert known.raw_lock() is not None


def test_the_order_of_things() -> None:
    """Every message leaves behind the record that makes it safe (the picture in `protocols.contract_setup`)."""
    taker, maker = setup_pair().run()

    def steps(end: End, *wanted: str) -> list[str]:
        return [step for step in end.trace if step.startswith(("Persist", "Send", "SignLock", *wanted))]

    assert steps(taker) == [
        "Send PlaceOrder",
        "Persist AttemptBegun",
        "Send TakerContract",
        "Persist SignaturesHeld",
        "SignLock",
        "Persist SetupComplete",
        "Send TakerLock",
        "Persist LockComplete",
    ]
    assert steps(maker, "CheckCoins", "Decide") == [
        "Decide",
        "Persist AttemptBegun",
        "Send Accepted",
        "CheckCoins",
        "Persist SignaturesHeld",
        "Send MakerContract",
        "CheckCoins",
        "SignLock",
        "Persist SetupComplete",
        "Send MakerLock",
    ]


def test_each_wait_is_as_long_as_the_protocol_says() -> None:
    pair = setup_pair()
    within: dict[str, float] = {}
    while not (pair.a.done and pair.b.done):
        for end in (pair.a, pair.b):
            if isinstance(end.step, Receive):
                within[end.step.kinds[0].__name__] = end.step.within
            pair.advance(end)
    assert within == {
        "PlaceOrder": MESSAGE_WITHIN,
        "Accepted": DECISION_WITHIN + MESSAGE_WITHIN,
        "TakerContract": MESSAGE_WITHIN,
        "MakerContract": MESSAGE_WITHIN,
        "TakerLock": MESSAGE_WITHIN,
        "MakerLock": MESSAGE_WITHIN,
    }


def test_every_message_of_an_attempt_can_be_made_again_byte_for_byte() -> None:
    first, second = setup_pair(), setup_pair()
    codec = first.codec
    transactions_of.cache_clear()
    first.run()
    transactions_of.cache_clear()
    second.run()
    for one, other in ((first.a, second.a), (first.b, second.b)):
        assert [codec.encode(message) for message in one.sent] == [codec.encode(message) for message in other.sent]
        assert len(one.sent) == 3


def test_two_setups_of_one_order_share_no_key() -> None:
    """The order id is the taker's choice; the salt is not."""
    first = MAKER.attempt(ORDER.order_id, secret("first"))
    second = MAKER.attempt(ORDER.order_id, secret("second"))
    assert not {point for _, point in first.keys.points.each()} & {point for _, point in second.keys.points.each()}


# --- cut and crashed anywhere -----------------------------------------------------------------------------------------


def reachable() -> Iterator[tuple[int, int]]:
    """Every pair of (steps of the taker, steps of the maker) that some schedule passes through."""
    length_a, length_b = (len(end.trace) for end in setup_pair().run())
    for a in range(length_a + 1):
        for b in range(length_b + 1):
            yield a, b


@pytest.fixture
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same contract is signed and checked again and again: the real functions, but each answer is kept."""
    for name in ("sign_contract", "verify_contract", "sign_commit", "verify_commit"):
        monkeypatch.setattr(contract_setup, name, lru_cache(getattr(contract_setup, name)))


def test_wherever_the_stream_is_cut_nobody_loses_money(computed_once: None) -> None:
    cuts = complete = 0
    for steps_a, steps_b in reachable():
        for lost in (True, False):
            pair = setup_pair()
            if not pair.run_to(steps_a, steps_b):
                close(pair)
                break
            pair.cut(lost=lost)
            taker, maker = pair.run()
            cuts += 1
            complete += taker.error is None
            assert isinstance(taker.error, PeerGone | None)
            assert isinstance(maker.error, PeerGone | None)
            assert_money_is_safe(taker, maker)
            if taker.error is None:
                assert maker.error is None
    assert cuts > 80
    assert complete > 0


def close(pair: Pair) -> None:
    for end in (pair.a, pair.b):
        end.dialogue.close()


PERSISTS = [(Role.TAKER, n) for n in range(4)] + [(Role.MAKER, n) for n in range(3)]
LAST = Role.TAKER, 3
"""The maker is done by then."""


def run_to_persist(pair: Pair, role: Role, count: int) -> End:
    """Until that end is about to persist its fact number `count`."""
    end = pair.a if role is Role.TAKER else pair.b
    while not (isinstance(end.step, Persist) and len(end.facts) == count):
        moved = pair.advance(end) or pair.advance(pair.b if end is pair.a else pair.a)
        assert moved, "this fact is never persisted"
    return end


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("role", "count"), PERSISTS)
def test_a_crash_at_a_persist_leaves_what_is_needed(role: Role, count: int, written: bool) -> None:
    pair = setup_pair()
    end = run_to_persist(pair, role, count)
    if written:
        assert isinstance(end.step, Persist)
        end.facts.append(end.step.fact)
    end.crash()
    taker, maker = pair.run()
    assert len(end.facts) == count + written
    assert_money_is_safe(taker, maker)
    survivor = maker if end is taker else taker
    assert (survivor.error is None) if (role, count) == LAST else isinstance(survivor.error, PeerGone)


@pytest.mark.parametrize(
    "error", [LocalError("already_signed", "one attempt"), WorldError("disk", "full")], ids=["refused", "disk"]
)
@pytest.mark.parametrize(("role", "count"), PERSISTS)
def test_nothing_leaves_behind_a_fact_that_could_not_be_written(role: Role, count: int, error: CodedError) -> None:
    pair = setup_pair()
    end = run_to_persist(pair, role, count)
    before = len(end.sent)

    def fails(_: Fact) -> None:
        raise error

    end.persist = fails
    taker, maker = pair.run()
    assert end.error is error
    assert len(end.sent) == before
    assert len(end.facts) == count
    assert_money_is_safe(taker, maker)
    survivor = maker if end is taker else taker
    if (role, count) != LAST:
        assert isinstance(survivor.error, Refused)
        assert survivor.error.code in ("declined", "unavailable")
        assert str(error) not in str(survivor.error)


# --- refusals within the rules ----------------------------------------------------------------------------------------


def refusing(error: Exception) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        raise error

    return answer


def answered_by(role: Role, answers: dict[Any, Any]) -> Pair:
    """A setup in which this role's node answers otherwise."""
    return setup_pair(maker_answers=answers) if role is Role.MAKER else setup_pair(taker_answers=answers)


def test_the_makers_decision_is_final() -> None:
    taker, maker = setup_pair(maker_answers={Decide: lambda _: Rejected("max_exposure", "no more today")}).run()
    assert isinstance(taker.error, Refused)
    assert (taker.error.code, taker.error.sentence) == ("max_exposure", "no more today")
    assert taker.facts == maker.facts == []
    assert isinstance(maker.error, Declined)


def test_an_offer_that_does_not_stand_is_unknown() -> None:
    taker, maker = setup_pair(maker_answers={FindOffer: lambda _: None}).run()
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "unknown_offer"
    assert taker.facts == maker.facts == []


@pytest.mark.parametrize(
    ("ask", "told"),
    [(FetchAnnouncements, "unavailable"), (Fund, "declined"), (CheckCoins, "bad_input"), (SignLock, "unavailable")],
)
@pytest.mark.parametrize("role", list(Role))
def test_a_question_that_fails_ends_it_before_our_lock_signatures_are_made(
    role: Role, ask: type[Any], told: str
) -> None:
    error: CodedError = {
        FetchAnnouncements: WorldError("oracle_down", "the oracle does not answer"),
        Fund: LocalError("insufficient_funds", "have 5 sat, need 6"),
        CheckCoins: RemoteProtocolError("bad_input", "an input is spent"),
        SignLock: WorldError("wallet", "the wallet is away"),
    }[ask]
    answers = {ask: refusing(error)}
    pair = answered_by(role, answers)
    taker, maker = pair.run()
    failing, other = (maker, taker) if role is Role.MAKER else (taker, maker)
    assert failing.error is error
    assert isinstance(other.error, Refused)
    assert other.error.code == told
    assert not any(isinstance(fact, SetupComplete) for fact in failing.facts)
    assert_money_is_safe(taker, maker)


def test_coins_are_looked_at_again_before_the_makers_signatures_leave() -> None:
    """Between the two looks the taker may have spent them."""
    looks: list[CheckCoins] = []

    def look(ask: CheckCoins) -> None:
        looks.append(ask)
        if len(looks) == 2:
            raise RemoteProtocolError("bad_input", "an input is spent")

    taker, maker = setup_pair(maker_answers={CheckCoins: look}).run()
    assert looks[0] == looks[1]
    assert isinstance(maker.error, RemoteProtocolError)
    assert not sent(maker, MakerLock)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "bad_input"


# --- everything the other side says is checked ------------------------------------------------------------------------


def coin(**fields: Any) -> Change:
    """Of the first input."""

    def change(plain: Plain) -> None:
        plain["inputs"][0].update(fields)

    return change


def events(now: int) -> tuple[str, ...]:
    return contract_events("BTCUSD", now, scheme_named(OFFER.oracle.scheme))


EVENTS = events(NOW)
OP_RETURN = b"\x6a\x02hi"
P2SH = b"\xa9\x14" + bytes(20) + b"\x87"
NO_POINT = b"\x02" + bytes(31) + b"\x05"  # no point of the curve has this x
INFINITY = bytes(33)
A_POINT = curve.pubkey_from_prvkey(secret("anybody"))


def party_lies(own: Trader) -> list[tuple[str, Change, str]]:
    """Lies of the two messages that carry a party; `own` is who is lied to."""
    points = points_of(own, ORDER.order_id)
    lies: list[tuple[str, Change, str]] = []
    for name in ("fund", "publish", "revoke"):
        lies += [
            (f"{name} is short", put(**{name: A_POINT[:32]}), "malformed"),
            (f"{name} is text", put(**{name: "02"}), "malformed"),
            (f"{name} off the curve", put(**{name: NO_POINT}), "bad_point"),
            (f"{name} at infinity", put(**{name: INFINITY}), "bad_point"),
            (f"{name} with a strange prefix", put(**{name: b"\x04" + A_POINT[1:]}), "bad_point"),
            (f"{name} is our fund", put(**{name: points.fund}), "bad_point"),
            (f"{name} is our publish", put(**{name: points.publish}), "bad_point"),
            (f"{name} is our revoke", put(**{name: points.revoke}), "bad_point"),
            (f"{name} is our {name} negated", put(**{name: negated(getattr(points, name))}), "bad_point"),
        ]
    lies += [
        ("revoke repeats publish", same("revoke", "publish"), "bad_point"),
        ("revoke cancels publish out", same("revoke", "publish", negated), "bad_point"),
        ("publish repeats fund", same("publish", "fund"), "bad_point"),
        ("no inputs", put(inputs=[]), "malformed"),
        ("too many inputs", edit("inputs", lambda inputs: inputs * (MAX_INPUTS + 1)), "malformed"),
        ("an input twice", edit("inputs", lambda inputs: inputs * 2), "bad_input"),
        ("an input of ours", put(inputs=[wire(own.coin())]), "bad_input"),
        ("an input without value", coin(value=0), "malformed"),
        ("an input of all money and more", coin(value=MAX_MONEY + 1), "malformed"),
        ("an input that pays too little", coin(value=1_000), "underfunded"),
        ("an input of another kind", coin(script=P2SH), "bad_input"),
        ("an input with a long script", coin(script=bytes(35)), "malformed"),
        ("an input without script", coin(script=b""), "bad_input"),
        ("an input with a short txid", coin(txid=bytes(31)), "malformed"),
        ("an input with a negative index", coin(vout=-1), "malformed"),
        ("an input with a huge index", coin(vout=1 << 32), "malformed"),
        ("an input with a field more", coin(sequence=0), "malformed"),
        ("inputs as a map", put(inputs={}), "malformed"),
        ("change and payout are one", same("change_script", "payout_script"), "bad_script"),
    ]
    for name in ("change_script", "payout_script"):
        lies += [
            (f"{name} pays nobody", put(**{name: OP_RETURN}), "bad_script"),
            (f"{name} is P2SH", put(**{name: P2SH}), "bad_script"),
            (f"{name} is empty", put(**{name: b""}), "bad_script"),
            (f"{name} is long", put(**{name: bytes(35)}), "malformed"),
            (f"{name} is our payout", put(**{name: own.script("payout")}), "bad_script"),
            (f"{name} is our change", put(**{name: own.script("change")}), "bad_script"),
            (f"{name} is our coin's", put(**{name: own.coin().script}), "bad_script"),
            (f"{name} is the lock's", put(**{name: LOCK_SCRIPT}), "bad_script"),
            (f"{name} is the commit's", put(**{name: COMMIT_SCRIPT}), "bad_script"),
        ]
    return lies


def wire(coin: FundingInput) -> Plain:
    return {"txid": coin.txid, "vout": coin.vout, "value": coin.value, "script": coin.script}


def signature_lies(theirs: Trader) -> list[tuple[str, Change, str]]:
    """Lies of the two messages that carry signatures; `theirs` are those of the liar."""
    return [
        ("refund signature is bent", flip("refund_signature", 40), "bad_signature"),
        ("refund signature of another nonce", flip("refund_signature", 5), "bad_signature"),
        ("refund signature is nothing", put(refund_signature=bytes(64)), "bad_signature"),
        ("refund signature is short", put(refund_signature=bytes(63)), "malformed"),
        ("first CET signature is bent", flip("cet_signatures", 40), "bad_signature"),
        ("first CET signature claims the other parity", flip("cet_signatures", 0), "bad_signature"),
        ("last CET signature is bent", edit("cet_signatures", _last_bent), "bad_signature"),
        ("a CET signature is missing", edit("cet_signatures", lambda s: [*s[:-1], s[-1][:-65]]), "bad_signature"),
        ("a CET signature too many", edit("cet_signatures", lambda s: [*s[:-1], s[-1] + s[-1][:65]]), "bad_signature"),
        ("two CETs are swapped", edit("cet_signatures", _swapped), "bad_signature"),
        ("an event is missing", edit("cet_signatures", lambda s: s[1:]), "bad_signature"),
        ("an event too many", edit("cet_signatures", lambda s: [s[0], *s]), "bad_signature"),
        ("two events are swapped", edit("cet_signatures", lambda s: [s[1], s[0], *s[2:]]), "bad_signature"),
        ("no CET signatures", put(cet_signatures=[]), "bad_signature"),
        ("CET signatures of too many events", put(cet_signatures=[b""] * 65), "malformed"),
        ("CET signatures as text", put(cet_signatures=["x"]), "malformed"),
        ("CET signatures as one string", put(cet_signatures=b"x"), "malformed"),
    ]


def _last_bent(signatures: list[bytes]) -> list[bytes]:
    return [*signatures[:-1], signatures[-1][:-1] + bytes([signatures[-1][-1] ^ 1])]


def _swapped(signatures: list[bytes]) -> list[bytes]:
    first, *rest = signatures
    *events, last = rest
    return [first, *events, last[65:130] + last[:65] + last[130:]]


def commit_lies(kind: str) -> list[tuple[str, Change, str]]:
    other = adaptor.sign(secret("fund"), bytes(32), A_POINT)
    return [
        (f"{kind}: commit signature is bent", flip("commit_signature", 40), "bad_signature"),
        (f"{kind}: commit signature of the other parity", flip("commit_signature", 0), "bad_signature"),
        (f"{kind}: commit signature of somebody else", put(commit_signature=other), "bad_signature"),
        (f"{kind}: commit signature is infinity", put(commit_signature=bytes(65)), "bad_signature"),
        (f"{kind}: commit signature beyond the order", put(commit_signature=A_POINT + b"\xff" * 32), "bad_signature"),
        (f"{kind}: commit signature is short", put(commit_signature=bytes(64)), "malformed"),
    ]


WITNESS_LIES: list[tuple[str, Change, str]] = [
    ("no witnesses", put(witnesses=[]), "malformed"),
    ("a witness too many", edit("witnesses", lambda w: w * 2), "bad_witness"),
    ("too many witnesses", edit("witnesses", lambda w: w * (MAX_INPUTS + 1)), "malformed"),
    ("an empty witness", put(witnesses=[[]]), "bad_witness"),
    ("a witness with a second item", edit("witnesses", lambda w: [[*w[0], b""]]), "bad_witness"),
    ("a witness with an annex", edit("witnesses", lambda w: [[*w[0], b"\x50"]]), "bad_witness"),
    ("a witness of another hash type", edit("witnesses", lambda w: [[w[0][0] + b"\x01"]]), "bad_witness"),
    ("a witness that signs one output", edit("witnesses", lambda w: [[w[0][0] + b"\x83"]]), "bad_witness"),
    ("a bent witness", flip("witnesses", 40), "bad_witness"),
    ("a witness of nothing", put(witnesses=[[bytes(64)]]), "bad_witness"),
    ("a witness as text", put(witnesses=[["x"]]), "malformed"),
]

ORDER_LIES: list[tuple[str, Change, str]] = [
    ("order id is short", put(order_id=bytes(15)), "malformed"),
    ("order id is missing", drop("order_id"), "malformed"),
    ("offer id of nothing", put(offer_id=bytes(16)), "unknown_offer"),
    ("offer id is long", put(offer_id=bytes(17)), "malformed"),
    ("quantity is no lot", put(quantity=3_501), "bad_quantity"),
    ("quantity is zero", put(quantity=0), "bad_quantity"),
    ("quantity is negative", put(quantity=-100), "bad_quantity"),
    ("quantity above the limit", put(quantity=10_100), "bad_quantity"),
    ("quantity is huge", put(quantity=2**64 - 1), "bad_quantity"),
    ("quantity is text", put(quantity="3500"), "malformed"),
    ("leverage not offered", put(leverage=3), "bad_leverage"),
    ("leverage is zero", put(leverage=0), "bad_leverage"),
    ("leverage is true", put(leverage=True), "malformed"),
    ("price is another", put(price="53999"), "wrong_price"),
    ("price is written otherwise", put(price="54000.0"), "wrong_price"),
    ("price is a number", put(price=54_000), "malformed"),
    ("price would move a terminal's cursor", put(price="\x1b[2J"), "wrong_price"),
    ("price fills a log", put(price="5" * 1000), "malformed"),
    ("a field more", lambda plain: plain.__setitem__("side", "long"), "malformed"),
    ("it is no order", put(type="maker_lock"), "malformed"),
]

TERMS_LIES: list[tuple[str, Change, str]] = [
    ("no events", put(event_ids=[]), "bad_events"),
    ("an event is missing", put(event_ids=[*EVENTS[:5], *EVENTS[6:]]), "bad_events"),
    ("an event twice", put(event_ids=[EVENTS[0], *EVENTS]), "bad_events"),
    ("events in another order", put(event_ids=list(reversed(EVENTS))), "bad_events"),
    ("an event that is past", put(event_ids=list(events(NOW - 2 * 3600))), "bad_events"),
    ("events too late", put(event_ids=list(events(NOW + 3 * 3600))), "bad_events"),
    ("the last event too early", put(event_ids=list(EVENTS[:-3])), "bad_events"),
    ("the first events left out", put(event_ids=list(EVENTS[2:])), "bad_events"),
    (
        "events off the hour",
        edit("event_ids", lambda ids: [each.replace(":00:00", ":30:00") for each in ids]),
        "bad_events",
    ),
    (
        "events of another price",
        edit("event_ids", lambda ids: [each.replace("BXBT", "BETH") for each in ids]),
        "bad_events",
    ),
    ("events of another scheme", put(event_ids=list(contract_events("BTCUSD", NOW, DLC))), "bad_events"),
    ("events that are none", put(event_ids=["../../etc/passwd"]), "bad_events"),
    ("events without end", edit("event_ids", lambda ids: ids * 3), "malformed"),
    ("other announcements", flip("announcements_hash"), "other_announcements"),
    ("announcements hash is short", put(announcements_hash=bytes(31)), "malformed"),
    ("another fee rate", put(fee_rate=3), "wrong_fee_rate"),
    ("fee rate is negative", put(fee_rate=-2), "wrong_fee_rate"),
]

PLAN: ContractPlan = setup_pair().run()[0].result
LOCK_SCRIPT = transactions_of(PLAN).lock_script
COMMIT_SCRIPT = transactions_of(PLAN).commit_script

LIES: list[tuple[type[Message], str, Change, str]] = [
    *((PlaceOrder, *lie) for lie in ORDER_LIES),
    *((Accepted, *lie) for lie in TERMS_LIES + party_lies(TAKER)),
    *((TakerContract, *lie) for lie in party_lies(MAKER) + signature_lies(TAKER)),
    *((MakerContract, *lie) for lie in signature_lies(MAKER) + commit_lies("maker")),
    *((TakerLock, *lie) for lie in commit_lies("taker") + WITNESS_LIES),
    *((MakerLock, *lie) for lie in WITNESS_LIES),
]


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [pytest.param(kind, change, code, id=f"{kind.__name__}-{what}") for kind, what, change, code in LIES],
)
def test_a_lie_is_refused_with_a_named_code_on_both_sides(kind: type[Message], change: Change, code: str) -> None:
    pair = setup_pair()
    pair.codec = lying = Lying(pair.codec, wire_name(kind), change)
    taker, maker = pair.run()
    assert lying.lied
    liar, victim = (taker, maker) if kind in (PlaceOrder, TakerContract, TakerLock) else (maker, taker)
    assert isinstance(victim.error, RemoteProtocolError | Declined)
    assert victim.error.code == code
    assert victim.error.sentence.isprintable()  # it is logged and shown
    if kind is not MakerLock:  # the maker is done by then
        assert isinstance(liar.error, Refused)
        assert (liar.error.code, liar.error.sentence) == (code, victim.error.sentence)
        assert not any(isinstance(fact, SetupComplete) for fact in victim.facts)
    assert not any(isinstance(fact, LockComplete) for fact in victim.facts)
    if kind in (PlaceOrder, Accepted):
        assert victim.facts == []
    assert_money_is_safe(taker, maker)


def test_no_field_of_any_message_is_left_out_of_the_lies() -> None:
    """A new field needs a lie of its own above: each named field, changed, must be noticed."""
    touched: dict[type[Message], set[str]] = {}
    honest = {type(message): message for end in setup_pair().run() for message in end.sent}
    codec = setup_pair().codec
    for kind, _, change, _ in LIES:
        before = msgpack.unpackb(codec.encode(honest[kind]))
        after = msgpack.unpackb(codec.encode(honest[kind]))
        change(after)
        touched.setdefault(kind, set()).update(name for name in before if before[name] != after.get(name))
    for kind, message in honest.items():
        fields = set(msgpack.unpackb(codec.encode(message))) - {"type"}
        assert fields <= touched[kind], kind


@pytest.mark.parametrize("name", ["fund", "publish", "revoke"])
@pytest.mark.parametrize("form", [bytes, negated], ids=["same", "negated"])
@pytest.mark.parametrize("role", list(Role))
def test_a_point_that_was_seen_before_is_refused(role: Role, form: Callable[[bytes], bytes], name: str) -> None:
    def known(ask: KnownPoints) -> frozenset[bytes]:
        return frozenset({form(getattr(ask.points, name))})

    taker, maker = answered_by(role, {KnownPoints: known}).run()
    victim, other = (maker, taker) if role is Role.MAKER else (taker, maker)
    assert isinstance(victim.error, RemoteProtocolError)
    assert victim.error.code == "bad_point"
    assert name in victim.error.sentence
    assert isinstance(other.error, Refused)
    assert not any(isinstance(fact, SignaturesHeld) for fact in [*taker.facts, *maker.facts])


def test_a_fee_rate_beyond_our_own_estimate_is_refused() -> None:
    told = RemoteProtocolError("bad_fee_rate", "fee_rate is 2 sat/vB, allowed is half to three times our own, 9")
    taker, maker = setup_pair(taker_answers={CheckFeeRate: refusing(told)}).run()
    assert taker.error is told
    assert isinstance(maker.error, Refused)
    assert maker.error.code == "bad_fee_rate"
    assert taker.facts == []


def test_a_maker_that_takes_an_hour_is_no_cheat_but_two_are_too_many() -> None:
    """An hour may begin while the maker decides."""
    slow, _ = setup_pair(maker_answers={Now: lambda _: NOW + 3600}, taker_answers={Now: clock(3600)}).run()
    assert slow.error is None
    slower, _ = setup_pair(maker_answers={Now: lambda _: NOW + 7200}, taker_answers={Now: clock(7200)}).run()
    assert isinstance(slower.error, RemoteProtocolError)
    assert slower.error.code == "bad_events"


def clock(passed: int) -> Callable[[Now], int]:
    times = iter([NOW, NOW + passed])
    return lambda _: next(times)


def test_peers_of_two_oracles_find_out() -> None:
    """One oracle, two announcements of one event: the hashes differ."""

    def others(ask: FetchAnnouncements) -> Any:
        real = [announcement(each) for each in ask.event_ids]
        return (*real[:-1], evolve(real[-1], data=real[-1].data + b" "))

    taker, maker = setup_pair(maker_answers={FetchAnnouncements: others}).run()
    assert isinstance(taker.error, RemoteProtocolError)
    assert taker.error.code == "other_announcements"
    assert isinstance(maker.error, Refused)


@pytest.mark.parametrize("role", list(Role))
def test_no_secret_shows_in_a_fact_or_an_attempt(role: Role) -> None:
    taker, maker = setup_pair().run()
    end = maker if role is Role.MAKER else taker
    attempt = TRADERS[role].attempt(ORDER.order_id)
    shown = repr(end.facts) + repr(attempt)
    for hidden in (attempt.salt, attempt.keys.fund, attempt.keys.publish, attempt.keys.revoke):
        assert repr(hidden) not in shown
        assert hidden.hex() not in shown


values: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=5)
    | st.binary(max_size=70)
    | st.just([])
    | st.just({})
)


def bend(plain: Plain, draw: Callable[[Any], Any]) -> None:
    """One value of a message, at any depth, is replaced, bent, repeated or left out."""
    at: Any = plain
    while True:
        key = draw(st.sampled_from(sorted(at.keys() - {"type"}) if isinstance(at, dict) else range(len(at))))
        value = at[key]
        if not (isinstance(value, dict | list) and value and draw(st.booleans())):
            break
        at = value
    if isinstance(value, bytes) and value and draw(st.booleans()):
        at[key] = flipped(value, draw(st.integers(0, len(value) - 1)))
    elif isinstance(value, list) and value and draw(st.booleans()):
        at[key] = draw(st.sampled_from([value[1:], value[:-1], value + value[:1], value[::-1]]))
    elif isinstance(value, int) and draw(st.booleans()):
        at[key] = value + draw(st.sampled_from([-100, -1, 1, 100]))
    else:
        at[key] = draw(values)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([PlaceOrder, Accepted, TakerContract, MakerContract, TakerLock, MakerLock]), st.data())
def test_whatever_is_changed_on_its_way_no_contract_comes_of_it(kind: type[Message], data: st.DataObject) -> None:
    """Whoever takes the bent message may not notice, but then its peer does, and nobody has given too much."""

    def change(plain: Plain) -> None:
        before = msgpack.packb(plain)
        bend(plain, data.draw)
        assume(msgpack.packb(plain) != before)

    def chain(ask: CheckCoins) -> None:
        if not set(ask.inputs) <= {MAKER.coin(), TAKER.coin()}:
            raise RemoteProtocolError("bad_input", "there is no such coin")

    pair = setup_pair(maker_answers={CheckCoins: chain}, taker_answers={CheckCoins: chain})
    pair.codec = Lying(pair.codec, wire_name(kind), change)
    taker, maker = pair.run()
    assert isinstance(taker.error, RemoteError)
    assert isinstance(maker.error, RemoteError) or kind is MakerLock
    assert not any(isinstance(fact, LockComplete) for fact in taker.facts)
    assert_money_is_safe(taker, maker)


# --- on a network -----------------------------------------------------------------------------------------------------


def host(role: Role, facts: list[Fact], **more: Any) -> Host:
    async def persist(fact: Fact) -> None:
        await trio.sleep(0.01)
        facts.append(fact)

    def asynchronous(answer: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        async def later(ask: Any) -> Any:
            await trio.sleep(0.1)
            return answer(ask)

        return later

    answers = {ask: asynchronous(answer) for ask, answer in {**TRADERS[role].answers(), **more}.items()}
    return Host(answers=answers, persist=persist, compute=inline)


def makes(facts: list[Fact]) -> Handler:
    return answering(PROTOCOL, lambda _: (contract_setup.maker(MAKER.attempt), host(Role.MAKER, facts)))


async def test_it_runs_between_two_endpoints(autojump_clock: trio.testing.MockClock) -> None:
    facts: dict[Role, list[Fact]] = {role: [] for role in Role}
    handler = makes(facts[Role.MAKER])
    async with joined({PROTOCOL.path: handler}) as pair:
        dialogue = contract_setup.taker(ORDER, TAKER.attempt(ORDER.order_id))
        plan = await speak(pair.at_taker, PROTOCOL, dialogue, host(Role.TAKER, facts[Role.TAKER]))
        await trio.sleep(1)
        assert pair.maker.crashes == 0
    assert plan == PLAN
    for role in Role:
        known = Known.of(role, facts[role])
        assert known.plan == PLAN
        assert known.raw_lock() is not None


async def test_a_connection_that_breaks_at_any_time_leaves_what_is_needed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The pair above cuts between steps; here it is cut while they wait."""
    ends = set()
    for tenths in range(1, 24):
        facts: dict[Role, list[Fact]] = {role: [] for role in Role}
        handler = makes(facts[Role.MAKER])
        async with joined({PROTOCOL.path: handler}) as pair, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cut(pair: Joined = pair, after: float = tenths / 10 + 0.005) -> None:
                await trio.sleep(after)
                await pair.at_maker.aclose()

            dialogue = contract_setup.taker(ORDER, TAKER.attempt(ORDER.order_id))
            try:
                await speak(pair.at_taker, PROTOCOL, dialogue, host(Role.TAKER, facts[Role.TAKER]))
            except PeerGone as gone:
                ends.add(gone.code)
            else:
                ends.add("complete")
            await trio.sleep(1)
            assert pair.maker.crashes == pair.taker.crashes == 0
        taker, maker = (Known.of(role, facts[role]) for role in (Role.TAKER, Role.MAKER))
        assert_can_claim(taker)
        assert_can_claim(maker)
        assert maker.complete is None or taker.complete is not None
    assert ends == {"peer_gone", "complete"}


@pytest.mark.parametrize("side", ["taker_answers", "maker_answers"])
def test_an_oracle_that_uses_a_nonce_twice_settles_nothing(side: str) -> None:
    """In the dlc scheme a digit of one event would open what was encrypted to the other's."""

    def twice(ask: FetchAnnouncements) -> tuple[Announcement, ...]:
        first, *rest = (announcement(each) for each in ask.event_ids)
        return (first, *(evolve(each, nonces=first.nonces) for each in rest))

    answers: dict[str, Any] = {side: {FetchAnnouncements: twice}}
    taking, making = setup_pair(None, **answers).run()
    refused = taking if side == "taker_answers" else making
    assert isinstance(refused.error, WorldError)
    assert refused.error.code == "bad_announcement"
    for end in (taking, making):
        assert not any(isinstance(fact, AttemptBegun) for fact in (end.facts if end is refused else []))
        assert not any(isinstance(fact, SetupComplete) for fact in end.facts)
