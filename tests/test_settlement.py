"""Settlement: what is signed and on disk when the stream or the process breaks anywhere, and every lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from attrs import evolve
from bitcoin.core import CTransaction
from btclib_secp256k1 import keys as curve

from node.regtest.consensus import check_scripts
from protocols import settlement
from protocols.codec import Message, Rejected, wire_name
from protocols.contract.closing import Close, CloseNonce, Spend
from protocols.contract.numbers import ORDER
from protocols.contract.sighash import TxOut
from protocols.contract.terms import Role
from protocols.contract.transactions import txid
from protocols.dialogue import Fact, Persist, Receive
from protocols.errors import (
    CodedError,
    Declined,
    LocalError,
    PeerGone,
    Refused,
    RemoteProtocolError,
    WorldError,
)
from protocols.settlement import (
    DECISION_WITHIN,
    MESSAGE_WITHIN,
    AcceptClose,
    AcceptSpend,
    CheckClose,
    CloseComplete,
    CloseSigned,
    Contract,
    DecideClose,
    FetchAttestations,
    FindContract,
    FindPublished,
    MakerPartial,
    ProposeClose,
    ProposeSpend,
    SpendComplete,
    SpendSigned,
    TakerPartial,
)
from protocols.testing import End, Pair

from .deals import attestation, deal, keys_of
from .lies import Change, Lying, drop, flip, put
from .opened import PRICE, TERMS, TOO_LOW
from .settlements import ATTESTED, CLOSING, DEAL, PLAN, TRANSACTIONS, Trader, Two

CLOSE_TXID = Close(PLAN, CLOSING).txid
LOCK = TxOut(TRANSACTIONS.lock_value, TRANSACTIONS.lock_script)
COMMIT = TRANSACTIONS.commit_outputs[0]

Begin = Callable[..., Pair]
BOTH_KINDS = pytest.mark.parametrize("begin", [Two.close, Two.spend], ids=["close", "spend"])


def refusing(error: Exception) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        raise error

    return answer


def never(ask: Any) -> Any:
    raise AssertionError(f"{ask} is not to be asked")


def sent(end: End, kind: type[Message]) -> bool:
    return any(isinstance(message, kind) for message in end.sent)


def transactions(trader: Trader) -> set[bytes]:
    """All complete transactions that this side wrote down."""
    raws = [getattr(fact, "transaction", None) for fact in trader.facts]
    return {raw for raw in raws if raw is not None}


def assert_safe(two: Two, taker: End, maker: End) -> None:
    """Nothing left before it was written down; what was written down is one transaction, and valid."""
    for trader, end, partial, signature in (
        (two.taker, taker, TakerPartial, ProposeSpend),
        (two.maker, maker, MakerPartial, AcceptSpend),
    ):
        if sent(end, partial):
            assert trader.closing is not None
        if sent(end, signature):
            assert any(isinstance(fact, SpendSigned) for fact in trader.facts)
        for fact in trader.facts:
            if isinstance(fact, CloseSigned):
                assert (fact.price, fact.txid) == (CLOSING, CLOSE_TXID)
                assert (fact.transaction is not None) == (trader.role is Role.MAKER)
        for raw in transactions(trader):
            tx = CTransaction.deserialize(raw)
            closes = txid(tx) == CLOSE_TXID
            assert closes or txid(tx) == SPEND_TXID
            check_scripts(raw, [LOCK if closes else COMMIT])


SETTLING = next(each for each in TRANSACTIONS.by_event[1] if each.low <= PRICE <= each.high)
SPEND_TXID = Spend(PLAN, SETTLING).txid


# --- all is well ------------------------------------------------------------------------------------------------------


def test_a_close_is_complete_on_both_sides() -> None:
    two = Two()
    taker, maker = two.close().run()
    assert taker.error is maker.error is None
    assert taker.result == maker.result
    raw: bytes = taker.result
    assert two.taker.facts == [
        CloseSigned(PLAN.order_id, CLOSING, CLOSE_TXID, None),
        CloseComplete(PLAN.order_id, raw),
    ]
    assert two.maker.facts == [CloseSigned(PLAN.order_id, CLOSING, CLOSE_TXID, raw)]
    assert_safe(two, taker, maker)


@pytest.mark.parametrize(
    ("attested", "event", "price"),
    [
        (ATTESTED, 1, PRICE),
        ((attestation(0, TOO_LOW), None), 0, TOO_LOW),
        ((attestation(0, TOO_LOW), attestation(1, PRICE)), 0, TOO_LOW),
        ((attestation(0, PRICE), attestation(1, TOO_LOW)), 1, TOO_LOW),
    ],
)
def test_a_commit_is_spent_at_the_attested_price_that_counts(attested: Any, event: int, price: int) -> None:
    two = Two()
    answers = {FetchAttestations: lambda _: attested}
    taker, maker = two.spend(taker=answers, maker=answers).run()
    assert taker.error is maker.error is None
    assert taker.result == maker.result
    raw: bytes = taker.result
    check_scripts(raw, [COMMIT])
    outcome = next(each for each in TRANSACTIONS.by_event[event] if each.low <= price <= each.high)
    tx = CTransaction.deserialize(raw)
    assert [(out.nValue, bytes(out.scriptPubKey)) for out in tx.vout] == [
        (out.value, out.script) for out in TRANSACTIONS.outputs(outcome.long)
    ]
    signed = SpendSigned(PLAN.order_id, TRANSACTIONS.commit_txid, event, price, txid(tx), None)
    assert two.taker.facts == [signed, SpendComplete(PLAN.order_id, raw)]
    assert two.maker.facts == [evolve(signed, transaction=raw)]
    message = taker.sent[0]
    assert isinstance(message, ProposeSpend)
    assert message.event_id == PLAN.announcements[event].id


def test_the_order_of_things() -> None:
    """Every signature leaves behind the record of it (the picture in `protocols.settlement`)."""

    def steps(end: End) -> list[str]:
        return [step for step in end.trace if not step.startswith("Receive")]

    taker, maker = Two().close().run()
    assert steps(taker) == [
        "CheckClose",
        "Send ProposeClose",
        "CheckClose",
        "Persist CloseSigned",
        "Send TakerPartial",
        "Persist CloseComplete",
    ]
    assert steps(maker) == [
        "FindContract",
        "DecideClose",
        "Send AcceptClose",
        "CheckClose",
        "Persist CloseSigned",
        "Send MakerPartial",
    ]
    taker, maker = Two().spend().run()
    assert steps(taker) == [
        "FetchAttestations",
        "Compute",
        "Persist SpendSigned",
        "Send ProposeSpend",
        "Persist SpendComplete",
    ]
    assert steps(maker) == ["FindPublished", "FetchAttestations", "Compute", "Persist SpendSigned", "Send AcceptSpend"]


def test_each_wait_is_as_long_as_the_protocol_says() -> None:
    within: dict[str, float] = {}
    for pair in (Two().close(), Two().spend()):
        while not (pair.a.done and pair.b.done):
            for end in (pair.a, pair.b):
                if isinstance(end.step, Receive):
                    within[" ".join(kind.__name__ for kind in end.step.kinds)] = end.step.within
                pair.advance(end)
    assert within == {
        "ProposeClose ProposeSpend": MESSAGE_WITHIN,
        "AcceptClose": DECISION_WITHIN + MESSAGE_WITHIN,
        "TakerPartial": MESSAGE_WITHIN,
        "MakerPartial": MESSAGE_WITHIN,
        "AcceptSpend": MESSAGE_WITHIN,
    }


# --- cut and crashed anywhere -----------------------------------------------------------------------------------------


def reachable(begin: Begin) -> Iterator[tuple[int, int]]:
    """Every pair of (steps of the taker, steps of the maker) that some schedule may pass through."""
    length_a, length_b = (len(end.trace) for end in begin(Two()).run())
    for a in range(length_a + 1):
        for b in range(length_b + 1):
            yield a, b


def discard(pair: Pair) -> None:
    for end in (pair.a, pair.b):
        end.dialogue.close()


def again(two: Two, begin: Begin) -> tuple[End, End]:
    """The same proposed anew from what each side wrote down; whoever signed a close is not asked about it."""
    unasked: dict[str, Any] = {
        trader.role.value: {DecideClose: never, CheckClose: never} for trader in two.each() if trader.closing
    }
    taker, maker = begin(two, **unasked).run()
    assert taker.error is maker.error is None
    assert taker.result == maker.result
    assert_safe(two, taker, maker)
    return taker, maker


class Watched(CloseNonce):
    """Counts which nonces were made, and which were wiped by their block's end."""

    made: list[CloseNonce] = []  # noqa: RUF012  one list for a test
    wiped: list[CloseNonce] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made.append(self)

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.wiped.append(self)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(settlement, "CloseNonce", Watched)
    monkeypatch.setattr(Watched, "made", [])
    monkeypatch.setattr(Watched, "wiped", [])
    return Watched


@BOTH_KINDS
def test_wherever_the_stream_is_cut_one_transaction_comes_of_it(begin: Begin, watched: type[Watched]) -> None:
    cuts = complete = 0
    for steps_a, steps_b in reachable(begin):
        for lost in (True, False):
            two = Two()
            pair = begin(two)
            if not pair.run_to(steps_a, steps_b):
                discard(pair)
                break
            pair.cut(lost=lost)
            taker, maker = pair.run()
            cuts += 1
            complete += taker.error is None
            assert isinstance(taker.error, PeerGone | None)
            assert isinstance(maker.error, PeerGone | None)
            assert_safe(two, taker, maker)
            if transactions(two.taker):  # the taker can broadcast only what the maker can
                assert transactions(two.taker) == transactions(two.maker)
            again(two, begin)
            assert len(set(two.taker.drawn)) == len(two.taker.drawn)
    assert cuts > 20
    assert complete > 0
    nonces = [each.public for each in watched.made]
    assert len(watched.wiped) == len(nonces)
    assert (len(nonces) > 0) == (begin is Two.close)


def run_to_persist(pair: Pair, role: Role, count: int) -> End:
    """Until that end is about to persist its fact number `count`."""
    end = pair.a if role is Role.TAKER else pair.b
    while not (isinstance(end.step, Persist) and len(end.facts) == count):
        moved = pair.advance(end) or pair.advance(pair.b if end is pair.a else pair.a)
        assert moved, "this fact is never persisted"
    return end


PERSISTS = pytest.mark.parametrize(
    ("role", "count"), [(Role.TAKER, 0), (Role.TAKER, 1), (Role.MAKER, 0)], ids=["taker-0", "taker-1", "maker-0"]
)


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@PERSISTS
@BOTH_KINDS
def test_a_crash_at_a_persist_leaves_what_is_needed(
    begin: Begin, role: Role, count: int, written: bool, watched: type[Watched]
) -> None:
    two = Two()
    pair = begin(two)
    end = run_to_persist(pair, role, count)
    if written:
        assert isinstance(end.step, Persist)
        end.persist(end.step.fact)
    end.crash()
    taker, maker = pair.run()
    assert_safe(two, taker, maker)
    again(two, begin)
    assert len(watched.wiped) == len(watched.made)


@pytest.mark.parametrize(
    "error", [LocalError("commit_published", "too late"), WorldError("disk", "full")], ids=["refused", "disk"]
)
@PERSISTS
@BOTH_KINDS
def test_nothing_leaves_behind_a_fact_that_could_not_be_written(
    begin: Begin, role: Role, count: int, error: CodedError
) -> None:
    two = Two()
    pair = begin(two)
    end = run_to_persist(pair, role, count)
    before = len(end.sent)

    def fails(_: Fact) -> None:
        raise error

    end.persist = fails
    taker, maker = pair.run()
    assert end.error is error
    assert len(end.sent) == before
    assert len(end.facts) == count
    assert_safe(two, taker, maker)
    survivor = maker if end is taker else taker
    if (role, count) != (Role.TAKER, 1):  # the maker is done by then
        assert isinstance(survivor.error, Refused)
        assert survivor.error.code in ("declined", "unavailable")


# --- once a signature left, there is one close ------------------------------------------------------------------------


def test_the_maker_signs_no_other_close() -> None:
    two = Two()
    two.close().run()
    two.taker.facts.clear()  # as if the taker had forgotten, or wished for a better price
    taker, maker = two.close("60001").run()
    assert isinstance(maker.error, Declined)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == maker.error.code == "other_close"
    assert CLOSING in taker.error.sentence
    assert not sent(maker, AcceptClose)
    assert not two.taker.facts


def test_the_taker_proposes_no_other_close() -> None:
    two = Two()
    pair = two.close()
    run_to_persist(pair, Role.MAKER, 0)
    pair.cut(lost=True)
    pair.run()
    taker, _ = two.close("59999").run()
    assert isinstance(taker.error, LocalError)
    assert taker.error.code == "other_close"
    assert not taker.sent


def test_of_two_closes_at_once_the_maker_signs_one() -> None:
    """Both begin before either is signed: what is on disk decides, not what was read before."""
    two = Two()
    forgetful = Two(maker=two.maker)
    first, second = two.close(), forgetful.close("61000")
    for pair in (first, second):
        run_to_persist(pair, Role.MAKER, 0)
    first.run()
    taker, maker = second.run()
    assert isinstance(maker.error, LocalError)
    assert isinstance(taker.error, Refused)
    assert not sent(maker, MakerPartial)
    assert [fact.price for fact in two.maker.facts if isinstance(fact, CloseSigned)] == [CLOSING]


def test_a_close_that_was_signed_of_another_contract_is_not_proposed() -> None:
    """The plan is not the one that was signed for: nothing of this may leave."""
    signed = CloseSigned(PLAN.order_id, CLOSING, bytes(32), None)
    two = Two()
    two.taker.facts.append(signed)
    taker, _ = two.close().run()
    assert isinstance(taker.error, LocalError)
    assert not taker.sent


def test_two_sides_that_hold_different_contracts_find_out() -> None:
    """One has rolled over and the other has not: nobody signs."""
    rolled = deal(evolve(TERMS, maker_account=12_000), attempt=1).plan
    plan = evolve(PLAN, terms=rolled.terms)
    two = Two()
    held = Contract(plan, DEAL.keys[Role.MAKER].fund)
    taker, maker = two.close(maker={FindContract: lambda _: held}).run()
    assert isinstance(taker.error, RemoteProtocolError)
    assert isinstance(maker.error, Refused)
    assert taker.error.code == maker.error.code == "other_contract"
    assert two.taker.facts == two.maker.facts == []


def test_a_price_changed_on_its_way_is_found_out() -> None:
    two = Two()
    pair = two.close()
    pair.codec = Lying(pair.codec, "propose_close", put(price="59999"))
    taker, maker = pair.run()
    assert isinstance(taker.error, RemoteProtocolError)
    assert isinstance(maker.error, Refused)
    assert taker.error.code == "other_contract"
    assert two.taker.facts == two.maker.facts == []


@pytest.mark.parametrize("nonce", ["other", "echo"])
def test_a_nonce_changed_on_its_way_to_the_taker_makes_no_signature(nonce: str) -> None:
    two = Two()
    pair = two.close()
    other = CloseNonce(Close(PLAN, CLOSING), Role.MAKER, DEAL.keys[Role.MAKER].fund, two.maker.entropy).public

    def change(plain: dict[str, Any]) -> None:
        first = pair.a.sent[0]
        assert isinstance(first, ProposeClose)
        plain["nonce"] = other if nonce == "other" else first.nonce

    pair.codec = Lying(pair.codec, "accept_close", change)
    taker, maker = pair.run()
    assert isinstance(maker.error, RemoteProtocolError)
    assert isinstance(taker.error, Refused)
    assert maker.error.code == "bad_signature"
    assert not two.maker.facts
    again(two, Two.close)


# --- refusals within the rules ----------------------------------------------------------------------------------------


def test_the_makers_decision_is_final() -> None:
    two = Two()
    taker, maker = two.close(maker={DecideClose: lambda _: Rejected("bad_price", "the bid is 59 000")}).run()
    assert isinstance(taker.error, Refused)
    assert (taker.error.code, taker.error.sentence) == ("bad_price", "the bid is 59 000")
    assert isinstance(maker.error, Declined)
    assert two.taker.facts == two.maker.facts == []


STALE = LocalError("no_quote", "the quote is older than two minutes")


@pytest.mark.parametrize(("look", "proposed"), [(1, False), (2, True)])
def test_the_taker_looks_at_the_price_before_it_proposes_and_before_it_signs(look: int, proposed: bool) -> None:
    looks: list[CheckClose] = []

    def check(ask: CheckClose) -> None:
        looks.append(ask)
        if len(looks) == look:
            raise STALE

    two = Two()
    taker, maker = two.close(taker={CheckClose: check}).run()
    assert looks == [CheckClose(PLAN.order_id, CLOSING, PLAN.terms)] * look
    assert taker.error is STALE
    assert sent(taker, ProposeClose) == proposed
    assert isinstance(maker.error, Refused)
    assert two.taker.facts == two.maker.facts == []


def test_the_maker_looks_at_the_price_before_it_signs() -> None:
    """A taker that waits for a better moment with its signature finds that the offer is gone; it may propose again."""
    two = Two()
    gone = Declined("stale_price", "the price has moved")
    taker, maker = two.close(maker={CheckClose: refusing(gone)}).run()
    assert maker.error is gone
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "stale_price"
    assert not two.maker.facts
    assert two.taker.closing is not None
    again(two, Two.close)


@pytest.mark.parametrize(
    ("role", "ask", "begin", "told"),
    [
        (Role.MAKER, FindContract, Two.close, "closing"),
        (Role.MAKER, DecideClose, Two.close, "closing"),
        (Role.MAKER, FindPublished, Two.spend, "closing"),
        (Role.MAKER, FetchAttestations, Two.spend, "closing"),
        (Role.TAKER, FetchAttestations, Two.spend, None),
    ],
)
def test_a_question_that_fails_ends_it_before_anything_is_signed(
    role: Role, ask: type[Any], begin: Begin, told: str | None
) -> None:
    for error, code in (
        (Declined("closing", "its state does not allow that"), told),
        (WorldError("oracle_down", "the oracle does not answer"), told and "unavailable"),
    ):
        two = Two()
        answers: dict[str, Any] = {role.value: {ask: refusing(error)}}
        taker, maker = begin(two, **answers).run()
        failing, other = (maker, taker) if role is Role.MAKER else (taker, maker)
        assert failing.error is error
        if code is not None:
            assert isinstance(other.error, Refused)
            assert other.error.code == code
        assert not two.maker.facts
        assert not sent(maker, AcceptSpend)
        assert not sent(maker, AcceptClose)


def test_what_is_not_attested_is_not_spent() -> None:
    unattested = {FetchAttestations: lambda _: (attestation(0, PRICE), None)}
    two = Two()
    taker, _ = two.spend(taker=unattested).run()
    assert isinstance(taker.error, LocalError)
    assert taker.error.code == "not_attested"
    assert not taker.sent
    assert not two.taker.facts
    taker, maker = two.spend(maker=unattested).run()
    assert isinstance(maker.error, Declined)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "not_attested"
    assert not two.maker.facts


def test_peers_that_know_of_different_events_find_out() -> None:
    """The maker knows an earlier one that liquidated; its oracle's word is what it signs by."""
    earlier = {FetchAttestations: lambda _: (attestation(0, TOO_LOW), attestation(1, PRICE))}
    two = Two()
    taker, maker = two.spend(maker=earlier).run()
    assert isinstance(maker.error, Declined)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "other_event"
    assert PLAN.announcements[0].id in taker.error.sentence
    assert not two.maker.facts


def test_an_oracle_that_said_two_things_gets_no_signature() -> None:
    """Of one event two prices are attested: the signatures are of different transactions."""
    two = Two()
    taker, maker = two.spend(maker={FetchAttestations: lambda _: (None, attestation(1, 70_000))}).run()
    assert isinstance(maker.error, RemoteProtocolError)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "bad_signature"
    assert not two.maker.facts


def test_a_commit_that_is_not_out_is_never_spent_together() -> None:
    """contract.md: once revoked, it could be published and spent before it is punished."""
    two = Two()
    taker, maker = two.spend(maker={FindPublished: lambda _: None}).run()
    assert isinstance(maker.error, Declined)
    assert isinstance(taker.error, Refused)
    assert taker.error.code == "unknown_commit"
    another = evolve(PLAN, index=1)
    taker, maker = two.spend(maker={FindPublished: lambda _: Contract(another, DEAL.keys[Role.MAKER].fund)}).run()
    assert isinstance(maker.error, Declined)
    assert maker.error.code == "unknown_commit"
    assert not two.maker.facts


def test_no_price_no_close() -> None:
    taker, _ = Two().close("60000.001").run()
    assert isinstance(taker.error, LocalError)
    assert taker.error.code == "bad_price"
    assert not taker.sent


# --- everything the other side says is checked ------------------------------------------------------------------------

OTHER_NONCE = CloseNonce(
    Close(PLAN, CLOSING), Role.TAKER, DEAL.keys[Role.TAKER].fund, Trader(Role.MAKER).entropy
).public
A_POINT = curve.pubkey_from_prvkey(keys_of(Role.MAKER, 3).fund)

ID_LIES: list[tuple[str, Change, str]] = [
    ("order id is short", put(order_id=bytes(15)), "malformed"),
    ("order id is missing", drop("order_id"), "malformed"),
    ("order id is text", put(order_id="x" * 16), "malformed"),
]


def signature_lies(size: int) -> list[tuple[str, Change, str]]:
    return [
        ("signature is bent", flip("signature"), "bad_signature"),
        ("last bit of the signature is bent", flip("signature", size - 1), "bad_signature"),
        ("signature is nothing", put(signature=bytes(size)), "bad_signature"),
        ("signature beyond the order", put(signature=ORDER.to_bytes(size, "big")), "bad_signature"),
        ("signature is all ones", put(signature=b"\xff" * size), "bad_signature"),
        ("signature is short", put(signature=bytes(size - 1)), "malformed"),
        ("signature is long", put(signature=bytes(size + 1)), "malformed"),
        ("signature is text", put(signature="x" * size), "malformed"),
        ("signature is missing", drop("signature"), "malformed"),
        ("a field more", lambda plain: plain.__setitem__("price", "1"), "malformed"),
    ]


NONCE_LIES: list[tuple[str, Change, str]] = [
    ("nonce is nothing", put(nonce=bytes(66)), "bad_nonce"),
    ("nonce off the curve", put(nonce=A_POINT + b"\x02" + bytes(31) + b"\x05"), "bad_nonce"),
    ("first point of the nonce off the curve", put(nonce=b"\x02" + bytes(31) + b"\x05" + A_POINT), "bad_nonce"),
    ("nonce with a strange prefix", put(nonce=b"\x04" + A_POINT[1:] + A_POINT), "bad_nonce"),
    ("nonce is short", put(nonce=A_POINT), "malformed"),
    ("nonce is long", put(nonce=bytes(67)), "malformed"),
    ("nonce is text", put(nonce="x" * 66), "malformed"),
]

LIES: list[tuple[type[Message], str, Change, str]] = [
    *((ProposeClose, *lie) for lie in ID_LIES + NONCE_LIES),
    (ProposeClose, "order id of nobody", put(order_id=bytes(16)), "unknown_position"),
    (ProposeClose, "nonce is another", put(nonce=OTHER_NONCE), "bad_signature"),
    (ProposeClose, "price is zero", put(price="0"), "bad_price"),
    (ProposeClose, "price is negative", put(price="-60000"), "bad_price"),
    (ProposeClose, "price is written otherwise", put(price="60000.0"), "bad_price"),
    (ProposeClose, "price is finer than a cent", put(price="60000.001"), "bad_price"),
    (ProposeClose, "price is beyond the oracle's", put(price="1048576"), "bad_price"),
    (ProposeClose, "price would move a terminal's cursor", put(price="\x1b[2J"), "bad_price"),
    (ProposeClose, "price is a number", put(price=60_000), "malformed"),
    (ProposeClose, "price fills a log", put(price="6" * 17), "malformed"),
    (ProposeClose, "it is no proposal", put(type="accept_close"), "malformed"),
    *((AcceptClose, *lie) for lie in NONCE_LIES),
    (AcceptClose, "txid is another", flip("close_txid"), "other_contract"),
    (AcceptClose, "txid is reversed", put(close_txid=CLOSE_TXID[::-1]), "other_contract"),
    (AcceptClose, "txid is short", put(close_txid=bytes(31)), "malformed"),
    (AcceptClose, "txid is missing", drop("close_txid"), "malformed"),
    *((TakerPartial, *lie) for lie in signature_lies(32)),
    (TakerPartial, "it is the maker's to say", put(type="maker_partial"), "unexpected_message"),
    *((MakerPartial, *lie) for lie in signature_lies(32)),
    (MakerPartial, "it is the taker's to say", put(type="taker_partial"), "unexpected_message"),
    *((ProposeSpend, *lie) for lie in ID_LIES + signature_lies(64)),
    (ProposeSpend, "order id of nobody", put(order_id=bytes(16)), "unknown_commit"),
    (ProposeSpend, "commit is another", flip("commit_txid"), "unknown_commit"),
    (ProposeSpend, "commit is the lock", put(commit_txid=TRANSACTIONS.lock_txid), "unknown_commit"),
    (ProposeSpend, "commit is short", put(commit_txid=bytes(31)), "malformed"),
    (ProposeSpend, "event is another", put(event_id=PLAN.announcements[0].id), "other_event"),
    (ProposeSpend, "event is none", put(event_id="\x1b[2J"), "other_event"),
    (ProposeSpend, "event fills a log", put(event_id="x" * 129), "malformed"),
    (ProposeSpend, "event is a number", put(event_id=1), "malformed"),
    *((AcceptSpend, *lie) for lie in signature_lies(64)),
]


def begun(kind: type[Message]) -> tuple[Two, Pair]:
    """The settlement that this message belongs to."""
    two = Two()
    return two, two.spend() if kind in (ProposeSpend, AcceptSpend) else two.close()


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [pytest.param(kind, change, code, id=f"{kind.__name__}-{what}") for kind, what, change, code in LIES],
)
def test_a_lie_is_refused_with_a_named_code_on_both_sides(kind: type[Message], change: Change, code: str) -> None:
    two, pair = begun(kind)
    pair.codec = lying = Lying(pair.codec, wire_name(kind), change)
    taker, maker = pair.run()
    assert lying.lied
    from_taker = kind in (ProposeClose, TakerPartial, ProposeSpend)
    liar, victim = (taker, maker) if from_taker else (maker, taker)
    assert isinstance(victim.error, RemoteProtocolError | Declined)
    assert victim.error.code == code
    assert victim.error.sentence.isprintable()  # it is logged and shown
    if kind not in (MakerPartial, AcceptSpend):  # the maker is done by then
        assert isinstance(liar.error, Refused)
        assert (liar.error.code, liar.error.sentence) == (code, victim.error.sentence)
    if from_taker:
        assert not two.maker.facts
    else:
        assert not any(isinstance(fact, CloseComplete | SpendComplete) for fact in two.taker.facts)
    if kind is AcceptClose:
        assert not two.taker.facts
    if kind is TakerPartial:
        assert "CheckClose" not in maker.trace  # nothing is asked, let alone signed, before the peer's part is valid
    assert_safe(two, taker, maker)


def test_no_field_of_any_message_is_left_out_of_the_lies() -> None:
    """A new field needs a lie of its own above: each named field, changed, must be noticed."""
    pairs = (Two().close(), Two().spend())
    codec = pairs[0].codec
    honest = {type(message): message for pair in pairs for end in pair.run() for message in end.sent}
    assert len(honest) == 6
    touched: dict[type[Message], set[str]] = {}
    for kind, _, change, _ in LIES:
        before = msgpack.unpackb(codec.encode(honest[kind]))
        after = msgpack.unpackb(codec.encode(honest[kind]))
        change(after)
        touched.setdefault(kind, set()).update(name for name in before if before[name] != after.get(name))
    for kind, message in honest.items():
        fields = set(msgpack.unpackb(codec.encode(message))) - {"type"}
        assert fields <= touched[kind], kind


def test_no_secret_shows() -> None:
    two = Two()
    contract = two.taker.contract
    taker, _ = two.close().run()
    shown = repr(contract) + repr(two.taker.facts) + repr(taker.trace)
    for hidden in (contract.fund, *two.taker.drawn):
        assert repr(hidden) not in shown
        assert hidden.hex() not in shown
