"""An oracle that attests an event twice, and differently: the proof, and what a client makes of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import trio.testing
from attrs import evolve
from btclib_secp256k1 import xonly
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node.errors import Conflict, NotFound
from node.oracle.client import OracleClient
from node.oracle.records import Kind
from protocols.contract import schnorr, signing
from protocols.contract.contradictions import (
    MAX_PROOF,
    Attested,
    Contradiction,
    Opening,
    contradiction,
    digits_of,
    price_range,
    read_proof,
    write_proof,
)
from protocols.contract.dlc import DLC, DLC_SHA256, Dlc
from protocols.contract.numbers import DIGITS, ORDER, PRICE_LIMIT, tagged_hash
from protocols.contract.oracle import (
    OLIVIA,
    SCHEMES,
    Announcement,
    Attestation,
    Scheme,
    opening_scalar,
    parse_attestation,
    price_digits,
)
from protocols.contract.outcomes import covering
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractTransactions, completed, txid
from protocols.errors import LocalError, WorldError
from tests.contracts import WORKED
from tests.deals import ANNOUNCEMENT_SECRET, FIRST_EVENT, announcement, attestation, deal, opening, x_only
from tests.test_oracle_client import CONFIG, EVENT, Oracles, Reports

Jumping = trio.testing.MockClock
FIRST, SECOND = 54_000, 44_000
ANNOUNCEMENT_KEY = x_only(ANNOUNCEMENT_SECRET)
ALL: list[Scheme] = [DLC, DLC_SHA256, OLIVIA]


@pytest.fixture(params=ALL, ids=lambda scheme: scheme.name)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    found: Scheme = request.param
    return found


@pytest.fixture
async def oracle() -> Oracles:
    """Needs the jumping clock in the same test."""
    return Oracles()


def opened(price: int, digits: int, scheme: Scheme) -> Opening:
    """What a CET gives away of so many digits of a price."""
    known = price_digits(price)[:digits]
    scalar = opening_scalar(attestation(0, price, scheme), announcement(0, scheme), known)
    return Opening.checked(announcement(0, scheme), known, scalar)


def found_by(second: Attested, scheme: Scheme, first: int = FIRST) -> Contradiction:
    found = contradiction(announcement(0, scheme), ANNOUNCEMENT_KEY, attestation(0, first, scheme), second)
    assert found is not None
    return found


# --- the proof --------------------------------------------------------------------------------------------------------


def test_two_prices_contradict_each_other_and_one_twice_does_not(scheme: Scheme) -> None:
    found = found_by(attestation(0, SECOND, scheme), scheme)
    assert found.sentence == f"the oracle attested {found.announcement.id} as 54000, and also as 44000"
    again = contradiction(announcement(0, scheme), ANNOUNCEMENT_KEY, found.first, attestation(0, FIRST, scheme))
    assert again is None


def test_beyond_the_digits_all_prices_are_one() -> None:
    """Olivia names the market's price although its digits end below: the scalars are the same."""
    first = attestation(0, PRICE_LIMIT + 5)
    assert contradiction(announcement(0), ANNOUNCEMENT_KEY, first, attestation(0, PRICE_LIMIT * 2)) is None


@given(first=st.integers(0, PRICE_LIMIT - 1), second=st.integers(0, PRICE_LIMIT - 1), digits=st.integers(1, DIGITS))
def test_an_opening_contradicts_a_price_that_begins_otherwise(first: int, second: int, digits: int) -> None:
    told = opened(second, digits, OLIVIA)
    found = contradiction(announcement(0), ANNOUNCEMENT_KEY, attestation(0, first), told)
    low, high = price_range(told)
    assert low <= second <= high
    assert (found is None) == (low <= first <= high)


def test_a_scalar_of_other_digits_is_no_opening(scheme: Scheme) -> None:
    told = opened(SECOND, 7, scheme)
    for digits, scalar in (
        (told.digits[:-1], told.scalar),
        (told.digits + "0", told.scalar),
        ("", told.scalar),
        (told.digits, bytes(32)),
        (told.digits, told.scalar[1:]),
    ):
        with pytest.raises(ValueError, match=r"scalar|digits"):
            Opening.checked(announcement(0, scheme), digits, scalar)


@pytest.mark.parametrize("second", [attestation, opened], ids=["answer", "cet"])
def test_a_proof_is_read_as_it_was_written(scheme: Scheme, second: Any) -> None:
    other = opened(SECOND, 9, scheme) if second is opened else attestation(0, SECOND, scheme)
    found = found_by(other, scheme)
    raw = write_proof(found)
    read = read_proof(raw)
    assert read == found
    assert write_proof(read) == raw
    assert len(raw) < MAX_PROOF / 10
    told = json.loads(raw)
    assert bytes.fromhex(told["announcement"]) == found.announcement.raw
    assert bytes.fromhex(told["first"]["attestation"]) == found.first.raw


def without(members: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key != name}


DOCTORED: dict[str, Any] = {
    "another format": (lambda p: p | {"format": "oracle-contradiction/2"}, "format is"),
    "no scheme": (lambda p: without(p, "scheme"), "scheme is 'None', allowed is a string"),
    "an unknown scheme": (lambda p: p | {"scheme": "dlc-2"}, "known are"),
    "another scheme": (lambda p: p | {"scheme": DLC.name}, "announcement is refused"),
    "a key that is a number": (lambda p: p | {"announcement_key": 7}, "announcement_key is '7'"),
    "another oracle's signature": (lambda p: p | {"announcement_key": p["attestation_key"]}, "its signature"),
    "another attestation key": (lambda p: p | {"attestation_key": p["announcement_key"]}, "bad_attestation"),
    "another event": (lambda p: p | {"event": p["event"] + "0"}, "the announcement is that of"),
    "no hex": (lambda p: p | {"announcement": "0x00"}, "announcement is not hex"),
    "the announcement of another event": (lambda p: p | {"announcement": announcement(1).raw.hex()}, "event is"),
    "nothing attested first": (lambda p: p | {"first": {"attestation": p["announcement"]}}, "answer without one"),
    "first no object": (lambda p: p | {"first": [1]}, "first is"),
    "second missing": (lambda p: without(p, "second"), "second is"),
    "one attestation twice": (lambda p: p | {"second": p["first"]}, "54000 and 54000 may both be true"),
    "another event's attestation": (
        lambda p: p | {"second": {"attestation": attestation(1, SECOND).raw.hex()}},
        "scalar 0 is not that of price 44000",
    ),
    "another scalar": (lambda p: p | {"second": {"digits": "1", "scalar": "01" * 32}}, "the scalar is not that"),
    "digits that agree": (
        lambda p: p | {"second": {"digits": "0000", "scalar": opened(SECOND, 4, OLIVIA).scalar.hex()}},
        "54000 and 0 to 65535 may both be true",
    ),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_proof_is_refused(name: str) -> None:
    doctor, words = DOCTORED[name]
    proof = json.loads(write_proof(found_by(attestation(0, SECOND), OLIVIA)))
    with pytest.raises(WorldError, match=words) as refused:
        read_proof(json.dumps(doctor(proof)).encode())
    assert refused.value.code == "bad_proof"


@pytest.mark.parametrize("raw", [b"", b"no json", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_PROOF + 1)])
def test_what_is_no_proof_is_refused(raw: bytes) -> None:
    with pytest.raises(WorldError) as refused:
        read_proof(raw)
    assert refused.value.code == "bad_proof"


def derived(found: Contradiction, scheme: Scheme) -> bytes:
    """The oracle's attestation key, x-only, from a proof alone.

    Over the digits that the second tells, both sums have the same nonces. Plain BIP340 scalars are r + e·p: the nonces
    cancel. Olivia's are p + (b + 1)·r: each nonce is (s − p) / (b + 1) by the first attestation.
    """
    announced, second, digits = found.announcement, found.second, digits_of(found.second)
    known = range(len(digits))
    scalars = [int.from_bytes(found.first.scalars[index], "big") for index in known]
    weights = [scheme.weight(announced, index) for index in known]
    bits = [(int(one), int(other)) for one, other in zip(digits_of(found.first), digits, strict=False)]
    told = int.from_bytes(
        opening_scalar(second, announced, digits) if isinstance(second, Attestation) else second.scalar, "big"
    )
    difference = told - sum(weight * scalar for weight, scalar in zip(weights, scalars, strict=True))
    if isinstance(scheme, Dlc):
        slope = sum(
            challenge(announced, i, new, scheme) - challenge(announced, i, old, scheme)
            for i, (old, new) in zip(known, bits, strict=True)
        )
        secret = difference * pow(slope, -1, ORDER)
    else:
        parts = [weights[i] * (new - old) * pow(old + 1, -1, ORDER) for i, (old, new) in zip(known, bits, strict=True)]
        # difference = Σ part·(s − p)
        told_by_first = sum(part * scalar for part, scalar in zip(parts, scalars, strict=True))
        secret = (told_by_first - difference) * pow(sum(parts), -1, ORDER)
    return xonly.from_prvkey((secret % ORDER).to_bytes(32, "big"))[0]


def challenge(announced: Announcement, index: int, digit: int, scheme: Dlc) -> int:
    message = scheme.outcome_digest(str(digit))
    return int.from_bytes(tagged_hash("BIP0340/challenge", announced.nonces[index] + announced.key + message), "big")


def test_the_oracles_key_follows_from_every_proof(scheme: Scheme) -> None:
    """What makes the proof one that nobody but the oracle, or a thief of its key, can have brought about."""
    for second in (attestation(0, SECOND, scheme), attestation(0, FIRST + 1, scheme), opened(SECOND, 9, scheme)):
        found = read_proof(write_proof(found_by(second, scheme)))
        assert derived(found, scheme) == found.announcement.key


def test_every_scheme_is_looked_at() -> None:
    assert {each.name for each in ALL} == set(SCHEMES)


# --- what a CET gives away --------------------------------------------------------------------------------------------


TERMS = evolve(WORKED, tolerance_near="0.05", tolerance_far="0.1")
AT_ONCE, LIQUIDATED, SETTLED = (0, 30_000), (1, 30_000), (1, 60_000)
"""Events and prices: of the first two the CETs pay alike, and several prefixes of either share one transaction."""


@pytest.mark.parametrize("publisher", Role)
@pytest.mark.parametrize(("event", "price"), [AT_ONCE, LIQUIDATED, SETTLED])
def test_a_published_cet_tells_its_outcome_to_the_other_side_alone(
    publisher: Role, event: int, price: int, scheme: Scheme
) -> None:
    made = deal(TERMS, scheme=scheme)
    transactions, secrets = ContractTransactions(made.plan), {role: made.keys[role].fund for role in Role}
    outcome = covering(transactions.outcomes, event, price)
    assert outcome is not None
    held = signing.sign_contract(made.plan, publisher.other, secrets[publisher.other])
    scalar = opening(outcome, price, scheme)
    raw = signing.complete_cet(
        made.plan,
        publisher,
        secrets[publisher],
        outcome,
        peer_signature=held.of(transactions, outcome),
        opening=scalar,
    )
    told = signing.recover_opening(made.plan, publisher.other, raw, secrets[publisher.other])
    assert told == (outcome, scalar)
    assert Opening.checked(announcement(event, scheme), outcome.digits, scalar) == Opening(outcome.digits, scalar)
    assert signing.recover_opening(made.plan, publisher, raw, secrets[publisher]) is None


def test_outcomes_that_share_a_cet_are_told_apart() -> None:
    """As the test above would not, were there none."""
    transactions = ContractTransactions(deal(TERMS).plan)
    alike = [txid(transactions.cet(each)) for each in transactions.outcomes]
    assert max(Counter(alike).values()) > 2


def test_what_is_no_cet_tells_nothing() -> None:
    made = deal(TERMS)
    fund = made.keys[Role.MAKER].fund
    refund = signing.complete_refund(
        made.plan, Role.TAKER, made.keys[Role.TAKER].fund, signing.sign_contract(made.plan, Role.MAKER, fund).refund
    )
    assert signing.recover_opening(made.plan, Role.MAKER, refund, fund) is None


def test_a_witness_that_does_not_hold_is_refused() -> None:
    """Else a server that sends another one could hide what the real one tells."""
    made = deal(TERMS)
    transactions, fund = ContractTransactions(made.plan), made.keys[Role.MAKER].fund
    outcome = transactions.outcomes[0]
    cet = transactions.cet(outcome)
    leaf = transactions.commit_output.leaf
    foreign = schnorr.sign(fund, transactions.refund_hash)
    for witness in ((), (leaf.witness(foreign, foreign),), ((foreign,),), (leaf.witness(b"", b""),)):
        raw = completed(cet, witness) if witness else cet.serialize()
        with pytest.raises(ValueError, match="does not hold our signature"):
            signing.recover_opening(made.plan, Role.MAKER, raw, fund)


# --- the client -------------------------------------------------------------------------------------------------------


async def attested(oracle: Oracles, price: int = FIRST) -> tuple[Announcement, Attestation]:
    announced = await oracle.client.announcement(EVENT)
    oracle.price, oracle.attested_at = price, FIRST_EVENT - 1000
    first = await oracle.client.attestation(announced)
    assert first is not None
    return announced, first


def alarms(reports: Reports) -> list[str]:
    return [reason for reason in reports if reason is not None and "and also as" in reason]


async def test_the_first_attestation_is_kept_and_stands_after_a_restart(
    autojump_clock: Jumping, oracle: Oracles
) -> None:
    announced, first = await attested(oracle)
    assert oracle.store.all[Kind.ATTESTATION, EVENT] == first.raw
    oracle.price = SECOND
    again = oracle.another()
    asked = len(oracle.asked)
    assert await again.attestation(announced) == first
    assert await again.wait_attestation(announced) == first
    assert len(oracle.asked) == asked


async def test_an_attestation_that_is_not_on_disk_is_not_used(autojump_clock: Jumping, oracle: Oracles) -> None:
    """Else a restart could act on another one."""
    announced = await oracle.client.announcement(EVENT)
    oracle.price, oracle.attested_at = FIRST, FIRST_EVENT - 1000
    put = oracle.store.put

    async def full(kind: Kind, event: str, raw: bytes) -> None:
        raise WorldError("disk", "the disk is full")

    oracle.store.put = full  # type: ignore[method-assign]
    with pytest.raises(WorldError, match="disk is full"):
        await oracle.client.attestation(announced)
    oracle.store.put, oracle.price = put, SECOND  # type: ignore[method-assign]
    second = await oracle.client.attestation(announced)
    assert second is not None
    assert second.price == SECOND
    assert oracle.client.contradictions == ()


async def test_asking_again_finds_out(autojump_clock: Jumping, oracle: Oracles) -> None:
    announced, first = await attested(oracle)
    await oracle.client.ask_again(announced)
    oracle.client.check_trusted()
    assert oracle.reports == []
    oracle.price = SECOND
    with capture_logs() as logged:
        await oracle.client.ask_again(announced)
        await oracle.client.ask_again(announced)
    assert [entry["log_level"] for entry in logged] == ["error"]
    with pytest.raises(Conflict, match="as 54000, and also as 44000") as refused:
        oracle.client.check_trusted()
    assert refused.value.code == "oracle_contradicted"
    assert oracle.client.contradicted(announced.key)
    assert not oracle.client.contradicted(ANNOUNCEMENT_KEY)
    # running contracts go on with what was first
    assert await oracle.client.attestation(announced) == first
    found = read_proof(oracle.client.proof(EVENT))
    assert (found.first, found.announcement) == (first, announced)
    assert oracle.store.all[Kind.CONTRADICTION, EVENT] == oracle.client.proof(EVENT)


async def test_no_good_answer_makes_up_for_it(autojump_clock: Jumping, oracle: Oracles) -> None:
    announced, _ = await attested(oracle)
    oracle.price = SECOND
    await oracle.client.ask_again(announced)
    oracle.price = FIRST
    await oracle.client.ask_again(announced)
    oracle.nonce_salt = "another"
    with pytest.raises(WorldError):
        await oracle.client.ask_again(announced)
    (reason,) = oracle.reports
    assert reason is not None
    assert "no contract is set up or rolled over with this oracle any more" in reason


async def test_it_is_remembered_after_a_restart(autojump_clock: Jumping, oracle: Oracles) -> None:
    announced, _ = await attested(oracle)
    oracle.price = SECOND
    await oracle.client.ask_again(announced)
    proof = oracle.client.proof(EVENT)
    oracle.reports.clear()
    again = oracle.another()
    again.check_trusted()
    await again.load()
    assert len(alarms(oracle.reports)) == 1
    with pytest.raises(Conflict):
        again.check_trusted()
    assert again.proof(EVENT) == proof
    with trio.fail_after(1):
        await again.wait_distrusted()


async def test_who_waits_for_it_is_told_at_once(
    autojump_clock: Jumping, oracle: Oracles, nursery: trio.Nursery
) -> None:
    announced, _ = await attested(oracle)
    told = trio.Event()

    async def wait() -> None:
        await oracle.client.wait_distrusted()
        told.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not told.is_set()
    oracle.price = SECOND
    await oracle.client.ask_again(announced)
    await trio.testing.wait_all_tasks_blocked()
    assert told.is_set()


async def test_a_damaged_record_keeps_nobody_from_starting(autojump_clock: Jumping, oracle: Oracles) -> None:
    oracle.store.all[Kind.CONTRADICTION, EVENT] = b"{}"
    with capture_logs() as logged:
        await oracle.client.load()
    assert [(entry["log_level"], entry["oracle_event"]) for entry in logged] == [("error", EVENT)]
    oracle.client.check_trusted()


async def test_what_a_cet_tells_is_weighed_once_the_oracle_has_spoken(
    autojump_clock: Jumping, oracle: Oracles, nursery: trio.Nursery
) -> None:
    announced = await oracle.client.announcement(EVENT)

    def told(price: int) -> Opening:
        said = parse_attestation(oracle.body(FIRST_EVENT, price), announced)
        assert said is not None
        known = price_digits(price)[:7]
        return Opening.checked(announced, known, opening_scalar(said, announced, known))

    agrees, differs = told(FIRST), told(4 * SECOND)
    oracle.price, oracle.attested_at = FIRST, FIRST_EVENT + 30
    nursery.start_soon(oracle.client.compare, announced, agrees)
    nursery.start_soon(oracle.client.compare, announced, differs)
    await trio.sleep(110)
    oracle.client.check_trusted()
    await trio.sleep(100)
    (found,) = oracle.client.contradictions
    assert found.second == differs


async def test_a_proof_that_a_peer_found_is_taken_as_our_own(autojump_clock: Jumping, oracle: Oracles) -> None:
    announced, _ = await attested(oracle)
    oracle.price = SECOND
    await oracle.client.ask_again(announced)
    proof = oracle.client.proof(EVENT)
    other = Oracles()
    found = await other.client.import_proof(proof)
    assert other.client.contradictions == (found,)
    assert len(alarms(other.reports)) == 1
    assert other.client.proof(EVENT) == proof


async def test_a_proof_against_another_oracle_says_nothing_of_ours(autojump_clock: Jumping, oracle: Oracles) -> None:
    announced, _ = await attested(oracle)
    oracle.price = SECOND
    await oracle.client.ask_again(announced)
    proof = oracle.client.proof(EVENT)
    config = evolve(CONFIG, attestation_key=CONFIG.announcement_key)
    elsewhere = OracleClient(config, oracle.http, clock=oracle.clock, store=oracle.store, report=oracle.reports)
    with pytest.raises(LocalError, match="another oracle"):
        await elsewhere.import_proof(proof)
    with pytest.raises(LocalError) as refused:
        await elsewhere.import_proof(proof[:-9])
    assert refused.value.code == "bad_proof"
    # what was found against the oracle of an earlier configuration is still shown, and keeps nothing from being done
    await elsewhere.load()
    elsewhere.check_trusted()
    assert elsewhere.contradicted(announced.key)
    assert elsewhere.proof(EVENT) == proof
    with pytest.raises(NotFound):
        elsewhere.proof(EVENT + "0")
