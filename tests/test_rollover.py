"""Rollover: what is agreed, who may publish and claim what after every cut, how it goes on, and every lie."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import msgpack
import pytest
from attrs import evolve
from btclib_secp256k1 import keys as curve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.regtest.consensus import check_scripts
from protocols import rollover
from protocols.codec import Codec, Message, Rejected, wire_name
from protocols.contract.keys import negated
from protocols.contract.numbers import BadNumber
from protocols.contract.oracle import OLIVIA, opening_scalar, parse_attestation, scheme_named
from protocols.contract.outcomes import covering, liquidation_price
from protocols.contract.rolling import (
    START_FROM,
    START_UNTIL,
    default_rate_bound,
    funding_for,
    liquidated_at,
    price_bounds,
)
from protocols.contract.schedule import HOUR, contract_events
from protocols.contract.sighash import TxOut
from protocols.contract.signing import (
    complete_cet,
    complete_commit,
    complete_refund,
    punish,
    recover_publish_secret,
    transactions_of,
)
from protocols.contract.terms import Role, Side
from protocols.contract_setup import FetchAnnouncements, KnownPoints, Now
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
from protocols.rollover import (
    DECISION_WITHIN,
    MESSAGE_WITHIN,
    PROTOCOL,
    Conditions,
    DecideRollover,
    FeedPrice,
    MakerCommit,
    ProposeRollover,
    Revocation,
    RevocationHeld,
    RevocationLeaves,
    RolloverBegun,
    RolloverComplete,
    RolloverHeld,
    RolloverTerms,
    TakerSignatures,
    Together,
)
from protocols.testing import End, Pair
from tests.contracts import WORKED
from tests.lies import Change, Lying, drop, edit, flip, put, same
from tests.rollovers import (
    CONDITIONS,
    EXPIRY,
    HOURS,
    NOW,
    ORDER_ID,
    Node,
    Nodes,
    contract,
)
from tests.setups import ANNOUNCEMENT_SECRET, ATTESTATION_SECRET, MAKER, OFFER, TAKER, announcement, nonces, secret
from tests.test_contract_setup import A_POINT, INFINITY, NO_POINT, commit_lies, signature_lies

OLD = contract()[0]
N, NEXT = OLD.index, OLD.index + 1

# --- what a side can do with what it wrote down -----------------------------------------------------------------------


def ends(pair: Pair) -> tuple[End, End]:
    """The taker's and the maker's."""
    return pair.a, pair.b


def rights(node: Node) -> tuple[set[int], set[int], set[int]]:
    """The contracts that it may publish, claim on, punish."""
    standing = node.standing(N)
    return set(standing.publishable), set(standing.claimable), set(standing.punishable)


@lru_cache(maxsize=1024)
def assert_rights_are_real(role: Role, facts: tuple[Fact, ...]) -> None:
    """What the records say may be published, claimed and punished is so, by the seed and the facts alone."""
    node = Node(role, list(facts))
    standing = node.standing(N)
    for index in standing.publishable:
        transactions = transactions_of(node.plan(index))
        raw = complete_commit(node.plan(index), role, node.keys(index), node.commit_signature(index))
        check_scripts(raw, [TxOut(transactions.lock_value, transactions.lock_script)])
    for index in standing.claimable:
        assert_claimable(node, index)
    for index in standing.punishable:
        assert_punished(node, index)


def assert_claimable(node: Node, index: int) -> None:
    """Whatever price is attested at whichever event, and if none is."""
    plan, fund, signatures = node.plan(index), node.keys(index).fund, node.signatures(index)
    transactions = transactions_of(plan)
    spent = [transactions.commit_outputs[0]]
    check_scripts(complete_refund(plan, node.role, fund, signatures.refund), spent)
    last = len(plan.announcements) - 1
    for event, price in ((last, 54_000), (last, 1_048_575), (0, 0)):
        outcome = covering(transactions.outcomes, event, price)
        assert outcome is not None
        named = plan.announcements[event]
        body = OLIVIA.attest(named.id, nonces(named.id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
        attestation = parse_attestation(body, named)
        assert attestation is not None
        raw = complete_cet(
            plan,
            node.role,
            fund,
            outcome,
            peer_signature=signatures.of(transactions, outcome),
            opening=opening_scalar(attestation, named, outcome.digits),
        )
        check_scripts(raw, spent)


def assert_punished(node: Node, index: int) -> None:
    """The peer publishes a contract all the same."""
    plan, cheat = node.plan(index), Node(node.role.other)
    published = complete_commit(plan, cheat.role, cheat.keys(index), cheat.commit_signature(index))
    revocation = node.about(index).revocation
    publish = recover_publish_secret(plan, node.role, published, node.given_signature(index))
    assert publish is not None
    assert revocation is not None
    raw = punish(
        plan,
        node.role,
        node.keys(index).fund,
        publish_secret=publish,
        revoke_secret=revocation.secret,
        script=plan.party(node.role).payout_script,
        fee=1_000,
    )
    check_scripts(raw, [transactions_of(plan).commit_outputs[0]])


RECORDS_BEFORE = {
    ("taker", ProposeRollover): "0",
    ("maker", RolloverTerms): "0",
    ("taker", TakerSignatures): "01",
    ("maker", MakerCommit): "012",
    ("taker", Revocation): "0123",
    ("maker", Revocation): "01234",
}
"""network.md, "Rollover": the records that are on disk before each message leaves."""


def assert_money_is_safe(nodes: Nodes, pair: Pair) -> None:
    for node, end in zip(nodes.both, ends(pair), strict=True):
        for message in end.sent:
            assert node.records().startswith(RECORDS_BEFORE[end.name, type(message)])
        assert_rights_are_real(node.role, tuple(node.facts))
    for one, other in (nodes.both, nodes.both[::-1]):
        mine, theirs = one.standing(N), other.standing(N)
        # what the other may publish we can claim on, and nobody is punished for what it may publish
        assert theirs.publishable <= mine.claimable
        assert not theirs.publishable & mine.punishable
        # an old contract that the other still holds is claimed or punished
        assert N in mine.claimable | mine.punishable
        # always one way out
        assert mine.publishable


def assert_bytes_stay(nodes: Nodes) -> None:
    """Every resent message is the same to the byte, and a pair of points has one set of terms for ever."""
    assert all(len(variants) == 1 for variants in nodes.sent.values())
    offers = [begun for begun in nodes.maker.about(N).begun if begun.next]
    for name in ("publish", "revoke"):
        assert len({getattr(begun.own, name) for begun in offers}) == len(offers)
        assert len({getattr(begun.next.plan.taker.points, name) for begun in offers if begun.next}) == len(offers)
    held = {node.about(N).held for node in nodes.both} - {None}
    assert len({each.next for each in held if each}) <= 1


def assert_rolled_over(nodes: Nodes) -> None:
    assert nodes.taker.records() == nodes.maker.records() == "01234"
    assert nodes.taker.plan(NEXT) == nodes.maker.plan(NEXT)
    for node in nodes.both:
        assert rights(node) == ({NEXT}, {NEXT}, {N})
        assert node.standing(NEXT).predecessor_revoked
        assert_rights_are_real(node.role, tuple(node.facts))
    assert_bytes_stay(nodes)


def finish(nodes: Nodes) -> Pair | None:
    """One dialogue more, without faults, brings both to the end."""
    if nodes.taker.records() == "01234":
        return None
    pair = nodes.roll()
    assert pair.a.error is None, pair.a.error
    assert pair.b.error is None, pair.b.error
    return pair


# --- all is well ------------------------------------------------------------------------------------------------------


def test_the_expiry_moves_and_the_lock_stays() -> None:
    nodes = Nodes()
    pair = nodes.roll()
    assert pair.a.error is pair.b.error is None
    assert pair.a.result == pair.b.result == nodes.taker.plan(NEXT)
    assert_rolled_over(nodes)
    assert_money_is_safe(nodes, pair)
    plan = nodes.taker.plan(NEXT)
    assert plan.announcements[-1].time == EXPIRY + HOURS * HOUR
    assert plan.announcements[0].time == NOW - NOW % HOUR + HOUR
    old, new = transactions_of(OLD), transactions_of(plan)
    assert (new.lock_txid, new.lock_value) == (old.lock_txid, old.lock_value)
    assert new.commit_txid != old.commit_txid
    for role in Role:
        assert plan.party(role).points.fund == OLD.party(role).points.fund
    held = nodes.taker.about(N).held
    assert held is not None
    assert held.commit_txid == new.commit_txid


def test_the_funding_goes_into_the_fee_account() -> None:
    """The long pays nothing at a negative rate: the maker is short, and pays 0.05 % of the long's margin per 24 h."""
    nodes = Nodes()
    nodes.roll()
    terms = nodes.taker.plan(NEXT).terms
    assert OLD.terms.margin(Role.TAKER) == 1_296_296
    assert terms == evolve(OLD.terms, reference="54321.5", maker_account=OLD.terms.maker_account - 109)  # 108.02…
    refund = transactions_of(nodes.taker.plan(NEXT)).payout.refund()
    assert refund[Role.TAKER] == 1_296_296 - OLD.terms.maker_account + 109


def test_it_rolls_over_again_and_again() -> None:
    nodes = Nodes()
    for index in range(3):
        pair = nodes.roll(index)
        assert pair.a.error is pair.b.error is None
        assert nodes.taker.index == nodes.maker.index == index + 1
        for node in nodes.both:
            node.now += HOURS * HOUR
    assert nodes.taker.plan(3).terms.maker_account == OLD.terms.maker_account - 3 * 109
    assert nodes.taker.plan(3).announcements[-1].time == EXPIRY + 3 * HOURS * HOUR
    points = [each.own for each in nodes.taker.facts if isinstance(each, RolloverBegun)]
    assert len({point for own in points for point in (own.publish, own.revoke)}) == 6
    assert_claimable(nodes.maker, 3)


def test_the_order_of_things() -> None:
    """network.md, "Rollover": every message leaves behind the record that makes it safe."""
    pair = Nodes().roll()

    def steps(end: End) -> list[str]:
        return [step for step in end.trace if step.startswith(("Persist", "Send"))]

    assert steps(pair.a) == [
        "Persist RolloverBegun",
        "Send ProposeRollover",
        "Persist RolloverHeld",
        "Send TakerSignatures",
        "Persist RolloverComplete",
        "Persist RevocationLeaves",
        "Send Revocation",
        "Persist RevocationHeld",
    ]
    assert steps(pair.b) == [
        "Persist RolloverBegun",
        "Send RolloverTerms",
        "Persist Together",
        "Send MakerCommit",
        "Persist Together",
        "Send Revocation",
    ]
    together = [[type(part) for part in fact.facts] for fact in pair.b.facts if isinstance(fact, Together)]
    assert together == [[RolloverHeld, RolloverComplete], [RevocationLeaves, RevocationHeld]]


def test_each_wait_is_as_long_as_the_protocol_says() -> None:
    assert (DECISION_WITHIN, MESSAGE_WITHIN, PROTOCOL.send_within) == (30, 60, 60)
    pair = Nodes().pair()
    within: dict[str, float] = {}
    while not (pair.a.done and pair.b.done):
        for end in ends(pair):
            if isinstance(end.step, Receive):
                within[end.step.kinds[0].__name__] = end.step.within
            pair.advance(end)
    assert within == {
        "ProposeRollover": MESSAGE_WITHIN,
        "RolloverTerms": DECISION_WITHIN + MESSAGE_WITHIN,
        "TakerSignatures": MESSAGE_WITHIN,
        "MakerCommit": MESSAGE_WITHIN,
        "Revocation": MESSAGE_WITHIN,
    }


# --- cut and crashed anywhere -----------------------------------------------------------------------------------------


@pytest.fixture
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same contracts are signed and checked again and again: the real functions, but each answer is kept."""
    for name in ("sign_contract", "verify_contract", "sign_commit", "verify_commit"):
        monkeypatch.setattr(rollover, name, lru_cache(maxsize=256)(getattr(rollover, name)))


def crash(*crashing: End) -> None:
    for end in crashing:
        if not end.done:
            end.crash()


FAULTS: dict[str, Callable[[Pair], None]] = {
    "the stream is cut, what is in flight is lost": lambda pair: pair.cut(lost=True),
    "the stream is cut behind what is in flight": lambda pair: pair.cut(lost=False),
    "the taker crashes": lambda pair: crash(pair.a),
    "the maker crashes": lambda pair: crash(pair.b),
    "both crash": lambda pair: crash(*ends(pair)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_breaks_wherever_both_finish_from_what_is_on_disk(fault: str, computed_once: None) -> None:
    steps_a, steps_b = (len(end.trace) for end in ends(Nodes().roll()))
    found: set[tuple[str, str]] = set()
    cuts = resumed = 0
    for a in range(steps_a + 1):
        for b in range(steps_b + 1):
            nodes = Nodes()
            pair = nodes.pair()
            if not pair.run_to(a, b):
                pair.a.dialogue.close()
                pair.b.dialogue.close()
                continue
            FAULTS[fault](pair)
            pair.run()
            nodes.note(pair)
            cuts += 1
            found.add((nodes.taker.records(), nodes.maker.records()))
            assert isinstance(pair.a.error, PeerGone | None)
            assert isinstance(pair.b.error, PeerGone | None)
            assert_money_is_safe(nodes, pair)
            assert_bytes_stay(nodes)
            before = set(nodes.sent)
            again = finish(nodes)
            if again is not None:
                resumed += 1
                assert_money_is_safe(nodes, again)
                kept = nodes.sent.keys() - before
                attempts = {publish for _, _, publish in nodes.sent}
                # an attempt with R1 is resumed, all others are dropped
                assert len(attempts) == 1 or all(publish not in {p for _, _, p in before} for _, _, publish in kept)
            assert_rolled_over(nodes)
    assert cuts == steps_a + steps_b + 1  # at any time one of the two waits for the other
    assert resumed >= cuts - 5
    # a crash leaves every row of the table; a cut is noticed at the next message only
    crashed = {row[:2] for row in ROWS.values()} | {("", "")}
    assert found >= crashed if fault == "both crash" else found <= crashed


ROUNDS = st.tuples(st.integers(0, 20), st.integers(0, 19), st.sampled_from(sorted(FAULTS)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROUNDS, max_size=6))
def test_however_often_it_breaks(computed_once: None, rounds: list[tuple[int, int, str]]) -> None:
    nodes = Nodes()
    for a, b, fault in rounds:
        if nodes.taker.records() == "01234":
            break
        pair = nodes.pair()
        pair.run_to(a, b)
        FAULTS[fault](pair)
        pair.run()
        nodes.note(pair)
        assert_money_is_safe(nodes, pair)
        assert_bytes_stay(nodes)
    finish(nodes)
    assert_rolled_over(nodes)


def run_to_records(nodes: Nodes, taker: str, maker: str) -> Pair:
    pair = nodes.pair()
    while (nodes.taker.records(), nodes.maker.records()) != (taker, maker):
        assert pair.advance(pair.a) | pair.advance(pair.b), "this point does not exist"
    return pair


ROWS = {
    # cut after: records of both; the taker may publish / claim on / punish; the same of the maker
    "1": ("0", "", ({N}, {N}, set()), ({N}, {N}, set())),
    "2": ("0", "0", ({N}, {N}, set()), ({N}, {N}, set())),
    "R1 of the taker (3 lost)": ("01", "0", ({N}, {N, NEXT}, set()), ({N}, {N}, set())),
    "3 (4 lost)": ("01", "012", ({N}, {N, NEXT}, set()), ({N, NEXT}, {N, NEXT}, set())),
    "4 (before R3)": ("012", "012", ({N, NEXT}, {N, NEXT}, set()), ({N, NEXT}, {N, NEXT}, set())),
    "R3 of the taker (5 lost)": ("0123", "012", ({NEXT}, {N, NEXT}, set()), ({N, NEXT}, {N, NEXT}, set())),
    "5, maker's R3+R4 (6 lost)": ("0123", "01234", ({NEXT}, {N, NEXT}, set()), ({NEXT}, {NEXT}, {N})),
    "6": ("01234", "01234", ({NEXT}, {NEXT}, {N}), ({NEXT}, {NEXT}, {N})),
}
"""The table of network.md."""


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_cuts(row: str) -> None:
    taker, maker, *both = ROWS[row]
    nodes = Nodes()
    pair = run_to_records(nodes, taker, maker)
    crash(*ends(pair))
    nodes.note(pair)
    for node, expected in zip(nodes.both, both, strict=True):
        assert rights(node) == expected
        assert_rights_are_real(node.role, tuple(node.facts))
    # on reconnect
    begun = nodes.taker.about(N).begun[-1]
    again = finish(nodes)
    if row == "6":
        assert again is None
        return
    assert again is not None
    proposal = again.a.sent[0]
    assert isinstance(proposal, ProposeRollover)
    resumed = (proposal.publish, proposal.revoke) == (begun.own.publish, begun.own.revoke)
    assert resumed == (row not in ("1", "2"))
    assert [type(message) for message in again.a.sent] == [ProposeRollover, TakerSignatures, Revocation]
    assert [type(message) for message in again.b.sent] == [RolloverTerms, MakerCommit, Revocation]
    written = {node.role: [type(fact) for fact in end.facts] for node, end in zip(nodes.both, ends(again), strict=True)}
    every = {
        Role.TAKER: [RolloverBegun, RolloverHeld, RolloverComplete, RevocationLeaves, RevocationHeld],
        Role.MAKER: [RolloverBegun, Together, Together],
    }
    if resumed:  # no record is written twice
        done = {Role.TAKER: len(taker), Role.MAKER: {"0": 1, "012": 2, "01234": 3}[maker]}
        every = {role: kinds[done[role] :] for role, kinds in every.items()}
    assert written == every
    assert_rolled_over(nodes)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("1", "2", "6")])
def test_a_resumed_attempt_asks_nothing_again(row: str) -> None:
    """Neither time nor price nor points: hours later, at another price, by the same bytes."""
    nodes = Nodes()
    pair = run_to_records(nodes, *ROWS[row][:2])
    crash(*ends(pair))
    nodes.note(pair)
    for node in nodes.both:
        for ask in (Now, FeedPrice, DecideRollover, KnownPoints, FetchAnnouncements):
            node.answers[ask] = refusing(AssertionError(f"{ask.__name__} is asked again"))
    finish(nodes)
    assert_rolled_over(nodes)


def test_the_maker_keeps_every_attempt_until_one_is_signed() -> None:
    """It cannot tell whether its terms were lost or the taker's signatures."""
    nodes = Nodes()
    for _ in range(3):
        pair = nodes.pair()
        while not pair.b.sent:
            assert pair.advance(pair.a) | pair.advance(pair.b)
        pair.cut(lost=True)
        pair.run()
        nodes.note(pair)
        nodes.taker.facts.clear()  # dropped
        assert nodes.maker.records() == "0"
    assert len(nodes.maker.about(N).begun) == 3
    pair = run_to_records(nodes, "01", "0")
    crash(pair.a)
    pair.run()
    nodes.note(pair)
    assert len(nodes.maker.about(N).begun) == 4
    finish(nodes)
    assert_rolled_over(nodes)


def test_the_maker_signs_the_first_attempt_only() -> None:
    """A taker that speaks twice at once gets two sets of terms, and one commit signature."""
    one = Nodes()
    other = Nodes(taker=Node(Role.TAKER, drawn=10), maker=one.maker)
    first, second = one.pair(), other.pair()
    for pair in (first, second):
        while not isinstance(pair.a.step, Persist) or not isinstance(pair.a.step.fact, RolloverHeld):
            assert pair.advance(pair.a) | pair.advance(pair.b)
    first.run()
    second.run()
    assert first.b.error is None
    assert isinstance(second.b.error, LocalError)
    assert second.b.error.code == "already_signed"
    assert not any(isinstance(message, MakerCommit) for message in second.b.sent)
    # nor does it when it is asked to go on with the other one, or for a third
    for nodes in (other, Nodes(taker=Node(Role.TAKER, drawn=20), maker=one.maker)):
        pair = nodes.pair()
        pair.run()
        assert isinstance(pair.b.error, Declined)
        assert pair.b.error.code == "unfinished_rollover"
        assert pair.b.sent == []


PERSISTS = [(Role.TAKER, n) for n in range(5)] + [(Role.MAKER, n) for n in range(3)]


@pytest.mark.parametrize(
    "error", [LocalError("commit_publishing", "the commit is out"), WorldError("disk", "full")], ids=["refused", "disk"]
)
@pytest.mark.parametrize(("role", "count"), PERSISTS)
def test_nothing_leaves_behind_a_fact_that_could_not_be_written(role: Role, count: int, error: CodedError) -> None:
    nodes = Nodes()
    pair = nodes.pair()
    end = pair.a if role is Role.TAKER else pair.b
    while not (isinstance(end.step, Persist) and len(end.facts) == count):
        assert pair.advance(pair.a) | pair.advance(pair.b), "this fact is never persisted"
    before = len(end.sent)

    def fails(_: Fact) -> None:
        raise error

    end.persist = fails
    pair.run()
    nodes.note(pair)
    assert end.error is error
    assert len(end.sent) == before
    assert len(end.facts) == count
    assert_money_is_safe(nodes, pair)
    finish(nodes)
    assert_rolled_over(nodes)


# --- refusals within the rules ----------------------------------------------------------------------------------------


def refusing(error: BaseException) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        raise error

    return answer


def refused(nodes: Nodes, index: int = N) -> tuple[str, type[BaseException], Nodes]:
    """The code with which the maker declines, and what the taker sees."""
    pair = nodes.pair(index)
    pair.run()
    assert isinstance(pair.b.error, Declined)
    assert isinstance(pair.a.error, Refused)
    assert (pair.a.error.code, pair.a.error.sentence) == (pair.b.error.code, pair.b.error.sentence)
    assert not any(isinstance(fact, RolloverHeld) for node in nodes.both for fact in node.facts)
    return pair.b.error.code, type(pair.a.error), nodes


@pytest.mark.parametrize(
    ("now", "hours"), [(EXPIRY - START_FROM, 1), (EXPIRY - START_FROM + 1, 2), (EXPIRY - START_UNTIL, 23)]
)
def test_a_rollover_begins_from_23_hours_to_one_hour_before_expiry(now: int, hours: int) -> None:
    nodes = Nodes(Node(Role.TAKER, now=now), Node(Role.MAKER, now=now))
    pair = nodes.roll()
    assert pair.a.error is None
    assert nodes.taker.plan(NEXT).announcements[-1].time == EXPIRY + hours * HOUR


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (EXPIRY - START_FROM - 1, "too_early"),
        (EXPIRY - START_UNTIL + 1, "too_late"),
        (EXPIRY, "too_late"),
        (EXPIRY + HOUR, "too_late"),
    ],
)
def test_at_no_other_time(now: int, code: str) -> None:
    pair = Nodes(taker=Node(Role.TAKER, now=now)).pair()
    pair.run()
    assert isinstance(pair.a.error, LocalError)
    assert pair.a.error.code == code
    assert (pair.a.sent, pair.a.facts) == ([], [])
    # a taker with another clock, or none
    nodes = Nodes(maker=Node(Role.MAKER, now=now))
    assert refused(nodes)[0] == code
    assert nodes.maker.facts == []


def test_no_second_rollover_before_both_revoked_the_first() -> None:
    nodes = Nodes()
    crash(run_to_records(nodes, "0123", "012").a)
    for node in nodes.both:
        node.now += HOURS * HOUR
    pair = nodes.pair(NEXT)
    pair.run()
    assert isinstance(pair.a.error, LocalError)
    assert pair.a.error.code == "unfinished_rollover"
    assert pair.a.sent == []
    # a taker that holds no revocation back but its own
    nodes.taker.facts.append(RevocationHeld(ORDER_ID, N, nodes.maker.keys(N).revoke))
    pair = nodes.pair(NEXT)
    pair.run()
    assert isinstance(pair.b.error, Declined)
    assert pair.b.error.code == "unfinished_rollover"
    assert nodes.maker.about(NEXT).begun == ()


def test_the_makers_decision_is_final() -> None:
    nodes = Nodes()
    nodes.maker.answers[DecideRollover] = lambda _: Rejected("no_rollover", "not today")
    assert refused(nodes)[0] == "no_rollover"
    assert nodes.maker.facts == []


@pytest.mark.parametrize(("price", "edge"), [("44000", Side.LONG), ("1048000", None)])
def test_no_contract_begins_that_the_present_price_would_end(price: str, edge: Side | None) -> None:
    """The long ×5 of 54 000 has nothing left at 44 000; the short ×1 is never liquidated."""
    conditions = evolve(CONDITIONS, price=price)
    nodes = Nodes()
    nodes.maker.answers[DecideRollover] = lambda _: conditions
    nodes.taker.answers[FeedPrice] = lambda _: Fraction(price)
    if edge is None:
        nodes.roll()
        assert nodes.taker.plan(NEXT).terms.reference == price
        return
    assert liquidated_at(OLD.terms, Fraction(price)) is edge
    assert refused(nodes)[0] == "liquidated"


@pytest.mark.parametrize(("above", "feed"), [(300, -300), (-100, 300)], ids=["feed", "maker"])
def test_the_taker_looks_at_both_prices(above: int, feed: int) -> None:
    """The maker's and its own feed's lie within 2 % of each other, on the two sides of the edge."""
    edge = liquidation_price(OLD.terms, Side.LONG)
    assert edge is not None
    nodes = Nodes()
    nodes.maker.answers[DecideRollover] = lambda _: evolve(CONDITIONS, price=str(edge + 400))
    nodes.taker.answers[FeedPrice] = lambda _: Fraction(edge + feed)
    pair = nodes.pair()
    pair.codec = LyingOnce(pair.codec, "rollover_terms", put(price=str(edge + above)))
    pair.run()
    assert isinstance(pair.a.error, Declined)
    assert pair.a.error.code == "liquidated"
    assert nodes.taker.records() == "0"


@pytest.mark.parametrize(
    ("role", "ask", "told"),
    [
        (Role.TAKER, FeedPrice, "unavailable"),
        (Role.TAKER, FetchAnnouncements, "unavailable"),
        (Role.MAKER, FetchAnnouncements, "unavailable"),
        (Role.MAKER, DecideRollover, "unavailable"),
    ],
)
def test_a_question_that_fails_ends_it_before_anything_is_signed(role: Role, ask: type[Any], told: str) -> None:
    nodes = Nodes()
    node, error = nodes.both[role is Role.MAKER], WorldError("down", "it does not answer")
    node.answers[ask] = refusing(error)
    pair = nodes.pair()
    pair.run()
    failing, other = (pair.b, pair.a) if role is Role.MAKER else (pair.a, pair.b)
    assert failing.error is error
    assert isinstance(other.error, Refused)
    assert other.error.code == told
    assert nodes.taker.records() == "0"
    del node.answers[ask]
    finish(nodes)
    assert nodes.taker.records() == nodes.maker.records() == "01234"


# --- the arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "hours", "fee"),
    [
        ("0.001", 24, 6_482),  # domain.md's worked number: the long pays, the maker is short
        ("0.001", 1, 271),  # 270.06…
        ("0.001", 23, 6_212),
        ("-0.001", 24, -1_297),  # of the long's margin, 1 296 296
        ("0", 24, 0),
        ("0.00000001", 1, 1),  # never less than one satoshi
    ],
)
def test_funding_is_paid_for_whole_hours_on_the_receiving_margin(rate: str, hours: int, fee: int) -> None:
    assert funding_for(WORKED, rate, hours) == fee
    assert funding_for(evolve(WORKED, maker_side=Side.LONG, maker_leverage=5, taker_leverage=1), rate, hours) == -fee


@pytest.mark.parametrize(
    ("opening", "bound"),
    [
        ("0", "0.001"),
        ("0.00005", "0.001"),
        ("0.0002", "0.002"),
        ("-0.0003", "0.003"),
        ("0.001", "0.005"),
        ("1", "0.005"),
    ],
)
def test_the_default_bound_on_rates(opening: str, bound: str) -> None:
    assert default_rate_bound(opening) == bound


@given(st.fractions(1, 10**6, max_denominator=10**6), st.integers(1, 10**8), st.sampled_from([-2, -1, 0, 1, 2]))
def test_the_band_around_our_feed_is_two_percent_to_the_cent(feed: Fraction, cents: int, off: int) -> None:
    low, high = price_bounds(feed)
    near = [Fraction(int(edge * 100) + off, 100) for edge in (low, high)]
    for price in (Fraction(cents, 100), *near):
        assert (low <= price <= high) == (abs(price - feed) * 50 <= feed)


@given(st.fractions(0, 2**20 - 1))
def test_what_the_present_price_would_end_is_what_the_regions_say(price: Fraction) -> None:
    outcomes = transactions_of(OLD).outcomes
    region = covering(outcomes, 0, int(price))
    side = liquidated_at(OLD.terms, price)
    assert (side is None) == (region is None)
    if region is not None:
        assert side is (Side.LONG if region.long == 0 else Side.SHORT)


def test_conditions_that_no_contract_can_have_are_not_made() -> None:
    for changes in ({"price": "0"}, {"price": "1e5"}, {"funding_rate": "2"}, {"funding_rate": "0.10"}):
        with pytest.raises(BadNumber):
            Conditions(**{"funding_rate": "0.0001", "price": "54000", **changes})


# --- everything the other side says is checked ------------------------------------------------------------------------


class LyingOnce(Lying):
    """Changes the fields of the message number `which` of its kind."""

    def __init__(self, honest: Codec, kind: str, change: Change, which: int = 0) -> None:
        super().__init__(honest, kind, change)
        self.which = which

    def encode(self, message: Message) -> bytes:
        if wire_name(type(message)) == self.kind:
            self.which -= 1
            if self.which == -1:
                return super().encode(message)
        return Codec.encode(self, message)


def point_lies(own: Role) -> list[tuple[str, Change, str]]:
    """Lies about the two points; `own` is who is lied to."""
    ours, theirs = OLD.party(own).points, OLD.party(own.other).points
    lies: list[tuple[str, Change, str]] = []
    for name in ("publish", "revoke"):
        lies += [
            (f"{name} is short", put(**{name: A_POINT[:32]}), "malformed"),
            (f"{name} is text", put(**{name: "02"}), "malformed"),
            (f"{name} off the curve", put(**{name: NO_POINT}), "bad_point"),
            (f"{name} at infinity", put(**{name: INFINITY}), "bad_point"),
            (f"{name} with a strange prefix", put(**{name: b"\x04" + A_POINT[1:]}), "bad_point"),
            *(
                (f"{name} is {whose} {old} of now", put(**{name: form(getattr(points, old))}), "bad_point")
                for whose, points, form in (
                    ("our", ours, bytes),
                    ("the peer's", theirs, bytes),
                    ("minus our", ours, negated),
                )
                for old in ("fund", "publish", "revoke")
            ),
        ]
    return [
        *lies,
        ("revoke repeats publish", same("revoke", "publish"), "bad_point"),
        ("revoke cancels publish out", same("revoke", "publish", negated), "bad_point"),
    ]


def events(now: int) -> list[str]:
    return list(contract_events("BTCUSD", now, scheme_named(OFFER.oracle.scheme)))


EVENTS = events(NOW)

PROPOSAL_LIES: list[tuple[str, Change, str]] = [
    ("order of somebody else", put(order_id=bytes(16)), "unknown_contract"),
    ("order id is short", put(order_id=bytes(15)), "malformed"),
    ("a contract to come", put(index=NEXT), "unknown_contract"),
    ("a contract far away", put(index=2**32 - 2), "unknown_contract"),
    ("an index beyond the range", put(index=2**32 - 1), "malformed"),
    ("a negative index", put(index=-1), "malformed"),
    ("an index as truth", put(index=False), "malformed"),
    ("a field more", lambda plain: plain.__setitem__("fund", A_POINT), "malformed"),
    ("a field less", drop("revoke"), "malformed"),
    ("it is no proposal", put(type="revocation"), "malformed"),
]

TERMS_LIES: list[tuple[str, Change, str]] = [
    ("no events", put(event_ids=[]), "bad_events"),
    ("an event is missing", put(event_ids=[*EVENTS[:5], *EVENTS[6:]]), "bad_events"),
    ("the events of now", put(event_ids=[each.id for each in OLD.announcements]), "bad_events"),
    ("events that are past", put(event_ids=events(NOW - 2 * HOUR)), "bad_events"),
    ("events too late", put(event_ids=events(NOW + 3 * HOUR)), "bad_events"),
    ("an hour more than is due", put(event_ids=events(NOW + HOUR)), "bad_events"),
    ("events that are none", put(event_ids=["../../etc/passwd"]), "bad_events"),
    ("events without end", edit("event_ids", lambda ids: ids * 3), "malformed"),
    ("other announcements", flip("announcements_hash"), "other_announcements"),
    ("announcements hash is short", put(announcements_hash=bytes(31)), "malformed"),
    ("rate beyond our bound", put(funding_rate="0.0051"), "bad_funding_rate"),
    ("rate beyond our bound the other way", put(funding_rate="-0.00500001"), "bad_funding_rate"),
    ("rate beyond all bounds", put(funding_rate="1.1"), "bad_funding_rate"),
    ("rate is no number", put(funding_rate="nan"), "bad_funding_rate"),
    ("rate fills a log", put(funding_rate="0" * 1000), "malformed"),
    ("rate is a float", put(funding_rate=-0.0005), "malformed"),
    ("rate of another sign", put(funding_rate="0.0005"), "wrong_funding"),
    ("rate that the fee is not of", put(funding_rate="-0.0006"), "wrong_funding"),
    ("a satoshi less", edit("funding_to_maker", lambda fee: fee - 1), "wrong_funding"),
    ("a satoshi more", edit("funding_to_maker", lambda fee: fee + 1), "wrong_funding"),
    ("funding is huge", put(funding_to_maker=2**63), "wrong_funding"),
    ("funding as text", put(funding_to_maker="0"), "malformed"),
    ("another account", edit("maker_account", lambda account: account + 1), "wrong_account"),
    ("an account without what it was", put(maker_account=-109), "wrong_account"),
    ("an account as text", put(maker_account="0"), "malformed"),
    ("price more than 2 % above our feed", put(price="55080.01"), "bad_price"),
    ("price more than 2 % below our feed", put(price="52919.99"), "bad_price"),
    ("price is zero", put(price="0"), "bad_price"),
    ("price is written otherwise", put(price="54321.50"), "bad_price"),
    ("price would move a terminal's cursor", put(price="\x1b[2J"), "bad_price"),
    ("price is a number", put(price=54_321), "malformed"),
    ("price fills a log", put(price="5" * 1000), "malformed"),
    ("a field more", lambda plain: plain.__setitem__("fund", A_POINT), "malformed"),
    ("it is no answer", put(type="maker_commit"), "malformed"),
]


def revocation_lies(liar: Role) -> list[tuple[str, Change, str]]:
    keys = Node(liar).keys(N)
    return [
        ("a bent secret", flip("secret"), "bad_revocation"),
        ("the secret of publish", put(secret=keys.publish), "bad_revocation"),
        ("the other secret of the point", put(secret=curve.prvkey_negate(keys.revoke)), "bad_revocation"),
        ("nothing", put(secret=bytes(32)), "bad_revocation"),
        ("beyond the order", put(secret=b"\xff" * 32), "bad_revocation"),
        ("short", put(secret=bytes(31)), "malformed"),
        ("text", put(secret="x"), "malformed"),
        ("a field more", lambda plain: plain.__setitem__("index", 0), "malformed"),
    ]


Lie = tuple[Role, type[Message], str, Change, str]
LIES: list[Lie] = [
    *((Role.TAKER, ProposeRollover, *lie) for lie in PROPOSAL_LIES + point_lies(Role.MAKER)),
    *((Role.MAKER, RolloverTerms, *lie) for lie in TERMS_LIES + point_lies(Role.TAKER) + signature_lies(MAKER)),
    *((Role.TAKER, TakerSignatures, *lie) for lie in signature_lies(TAKER) + commit_lies("taker")),
    *((Role.MAKER, MakerCommit, *lie) for lie in commit_lies("maker")),
    *((Role.TAKER, Revocation, *lie) for lie in revocation_lies(Role.TAKER)),
    *((Role.MAKER, Revocation, *lie) for lie in revocation_lies(Role.MAKER)),
]


@pytest.mark.parametrize(
    ("liar", "kind", "change", "code"),
    [pytest.param(role, kind, *lie, id=f"{role.value} {kind.__name__}-{what}") for role, kind, what, *lie in LIES],
)
def test_a_lie_is_refused_with_a_named_code_on_both_sides(
    liar: Role, kind: type[Message], change: Change, code: str
) -> None:
    nodes = Nodes()
    pair = nodes.pair()
    lying = LyingOnce(pair.codec, wire_name(kind), change, which=int(kind is Revocation and liar is Role.MAKER))
    pair.codec = lying
    pair.run()
    assert lying.lied
    told, victim = (pair.a, pair.b) if liar is Role.TAKER else (pair.b, pair.a)
    assert isinstance(victim.error, RemoteProtocolError | Declined)
    assert victim.error.code == code
    assert victim.error.sentence.isprintable()  # it is logged and shown
    if (liar, kind) != (Role.MAKER, Revocation):  # the maker is done by then
        assert isinstance(told.error, Refused)
        assert (told.error.code, told.error.sentence) == (code, victim.error.sentence)
    before = RECORDS_BEFORE[told.name, kind]
    honest = nodes.taker if liar is Role.MAKER else nodes.maker
    # nothing that the lie would have led to was written
    assert len(honest.records()) < 5
    assert len(honest.records()) <= len(before)
    assert_money_is_safe(nodes, pair)


def test_no_field_of_any_message_is_left_out_of_the_lies() -> None:
    """A new field needs a lie of its own above: each named field, changed, must be noticed."""
    touched: dict[type[Message], set[str]] = {}
    pair = Nodes().roll()
    honest = {type(message): message for end in ends(pair) for message in end.sent}
    for _, kind, _, change, _ in LIES:
        before, after = (msgpack.unpackb(pair.codec.encode(honest[kind])) for _ in range(2))
        change(after)
        touched.setdefault(kind, set()).update(name for name in before if before[name] != after.get(name))
    for kind, message in honest.items():
        assert set(msgpack.unpackb(pair.codec.encode(message))) - {"type"} <= touched[kind], kind


RESUMED_LIES: list[tuple[str, type[Message], Change]] = [
    ("R1 of the taker (3 lost)", RolloverTerms, put(price="54321.51")),
    ("R1 of the taker (3 lost)", RolloverTerms, put(event_ids=events(NOW + HOUR))),
    ("R1 of the taker (3 lost)", RolloverTerms, put(funding_rate="-0.0004")),
    ("R1 of the taker (3 lost)", RolloverTerms, flip("refund_signature")),
    ("R1 of the taker (3 lost)", RolloverTerms, flip("cet_signatures", 40)),
    ("R1 of the taker (3 lost)", RolloverTerms, put(publish=A_POINT)),
    ("3 (4 lost)", TakerSignatures, flip("refund_signature")),
    ("3 (4 lost)", TakerSignatures, flip("cet_signatures", 40)),
    ("3 (4 lost)", TakerSignatures, flip("commit_signature", 40)),
    ("5, maker's R3+R4 (6 lost)", TakerSignatures, flip("commit_signature", 40)),
    ("4 (before R3)", MakerCommit, flip("commit_signature", 40)),
    ("R3 of the taker (5 lost)", MakerCommit, flip("commit_signature", 40)),
]


@pytest.mark.parametrize(("row", "kind", "change"), RESUMED_LIES)
def test_a_resumed_attempt_is_the_same_to_the_byte_or_nothing(row: str, kind: type[Message], change: Change) -> None:
    nodes = Nodes()
    pair = run_to_records(nodes, *ROWS[row][:2])
    crash(*ends(pair))
    nodes.note(pair)
    records = nodes.taker.records(), nodes.maker.records()
    pair = nodes.pair()
    pair.codec = lying = LyingOnce(pair.codec, wire_name(kind), change)
    pair.run()
    assert lying.lied
    victim = pair.b if kind is TakerSignatures else pair.a
    assert isinstance(victim.error, RemoteProtocolError)
    assert victim.error.code == "other_attempt"
    assert (nodes.taker.records(), nodes.maker.records()) == records
    assert_money_is_safe(nodes, pair)
    finish(nodes)
    assert_rolled_over(nodes)


def test_a_maker_that_lost_its_record_cannot_have_another_attempt() -> None:
    """It answers with new points and terms; the taker's commit signature went with the first."""
    nodes = Nodes()
    pair = run_to_records(nodes, "01", "0")
    crash(*ends(pair))
    nodes.maker.facts.clear()
    pair = nodes.pair()
    pair.run()
    assert isinstance(pair.a.error, RemoteProtocolError)
    assert pair.a.error.code == "other_attempt"
    assert [type(message) for message in pair.a.sent] == [ProposeRollover]
    assert nodes.taker.records() == "01"


@pytest.mark.parametrize("name", ["publish", "revoke"])
@pytest.mark.parametrize("form", [bytes, negated], ids=["same", "negated"])
@pytest.mark.parametrize("role", list(Role))
def test_a_point_that_was_seen_before_is_refused(role: Role, form: Callable[[bytes], bytes], name: str) -> None:
    nodes = Nodes()
    node = nodes.both[role is Role.MAKER]
    # the fund points stay, and are known: they are no reason
    node.answers[KnownPoints] = lambda ask: frozenset({ask.points.fund, form(getattr(ask.points, name))})
    pair = nodes.pair()
    pair.run()
    victim, other = (pair.b, pair.a) if role is Role.MAKER else (pair.a, pair.b)
    assert isinstance(victim.error, RemoteProtocolError)
    assert victim.error.code == "bad_point"
    assert name in victim.error.sentence
    assert isinstance(other.error, Refused)
    assert nodes.taker.records() == "0"


def test_the_taker_bounds_the_rate_as_it_is_told() -> None:
    """The maker's rate of -0.0005 is within a bound of as much, and of no less."""
    assert Nodes(max_rate="0.0005").roll().a.error is None
    pair = Nodes(max_rate="0.0004").pair()
    pair.run()
    assert isinstance(pair.a.error, RemoteProtocolError)
    assert pair.a.error.sentence == "funding_rate is -0.0005, allowed is from -0.0004 to 0.0004 per 24 h"


def test_an_expiry_that_does_not_move_is_none() -> None:
    """At 23 h before expiry, the present events are within the rules of any new contract's but this one."""
    now = EXPIRY - START_FROM
    times = [each.id for each in OLD.announcements if each.time > now + 120]
    nodes = Nodes(Node(Role.TAKER, now=now), Node(Role.MAKER, now=now))
    pair = nodes.pair()
    pair.codec = LyingOnce(pair.codec, "rollover_terms", put(event_ids=times))
    pair.run()
    assert isinstance(pair.a.error, RemoteProtocolError)
    assert pair.a.error.code == "bad_events"
    assert "not later" in pair.a.error.sentence


def test_peers_of_two_oracles_find_out() -> None:
    def others(ask: FetchAnnouncements) -> Any:
        real = [announcement(each) for each in ask.event_ids]
        return (*real[:-1], evolve(real[-1], data=real[-1].data + b" "))

    nodes = Nodes()
    nodes.maker.answers[FetchAnnouncements] = others
    pair = nodes.pair()
    pair.run()
    assert isinstance(pair.a.error, RemoteProtocolError)
    assert pair.a.error.code == "other_announcements"


def test_no_secret_shows() -> None:
    nodes = Nodes()
    pair = nodes.roll()
    for node, end in zip(nodes.both, ends(pair), strict=True):
        salts = [fact.salt for fact in node.facts if isinstance(fact, RolloverBegun)]
        shown = repr(end.facts) + repr(end.sent) + repr(node.standing(N)) + repr(node.standing(NEXT))
        for keys in (node.keys(N), node.keys(NEXT)):
            for hidden in (*salts, keys.fund, keys.publish, keys.revoke, node.commit_signature(NEXT)):
                assert repr(hidden) not in shown
                assert hidden.hex() not in shown


def test_salts_make_keys_and_nothing_else_does() -> None:
    """Two attempts at one index share no point but the fund's."""
    node = Node(Role.TAKER)
    first, second = (node.begin(node.standing(N)).keys.points for _ in range(2))
    assert first.fund == second.fund == OLD.taker.points.fund
    assert not {first.publish, first.revoke} & {second.publish, second.revoke}
    again = node.attempt(NEXT, secret("taker", "salt", NEXT, 1)).keys.points
    assert again == first
