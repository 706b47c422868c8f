"""The oracle: contract.md, "Oracle", with the real event of the vectors and a hostile oracle's announcements."""

import calendar
import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import pytest
from attrs import evolve
from btclib_secp256k1 import keys, ssa, xonly
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract.numbers import ORDER, tagged_hash
from protocols.contract.oracle import (
    OLIVIA,
    Announcement,
    Anticipation,
    Attestation,
    announcements_hash,
    opening_scalar,
    parse_announcement,
    parse_attestation,
    price_digits,
)
from protocols.errors import WorldError

from .vectors import vector

EVENT = 1633384800  # 2021-10-04T22:00:00
ID = OLIVIA.event_id("BTCUSD", EVENT)
ATTESTATION_SECRET = tagged_hash("test", b"attestation")
ANNOUNCEMENT_SECRET = tagged_hash("test", b"announcement")
ATTESTATION_KEY = xonly.from_prvkey(ATTESTATION_SECRET)[0]
ANNOUNCEMENT_KEY = xonly.from_prvkey(ANNOUNCEMENT_SECRET)[0]
NONCES = [tagged_hash("test/nonce", bytes([index])) for index in range(20)]

Json = dict[str, Any]


def announced(raw: bytes, attestation_key: bytes = ATTESTATION_KEY) -> Announcement:
    return parse_announcement(
        raw, announcement_key=ANNOUNCEMENT_KEY, attestation_key=attestation_key, scheme=OLIVIA.name
    )


def attested(announcement: Announcement, price: int) -> Attestation:
    raw = OLIVIA.attest(ID, NONCES, ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
    attestation = parse_attestation(raw, announcement)
    assert attestation is not None
    return attestation


def signed(said: object, **changes: object) -> bytes:
    """An answer of an oracle that signs whatever it likes."""
    data = said if isinstance(said, str) else json.dumps(said)
    signature = ssa.sign_custom(b"DLC/announcement".ljust(64, b"\0") + data.encode(), ANNOUNCEMENT_SECRET, bytes(32))
    announcement = {"oracle_event": {"encoding": "json", "data": data}, "signature": signature.hex()} | changes
    return json.dumps({"announcement": announcement, "attestation": None}).encode()


RAW = OLIVIA.announce(ID, NONCES, ATTESTATION_SECRET, ANNOUNCEMENT_SECRET)
ANNOUNCEMENT = announced(RAW)


@pytest.fixture
def said() -> Json:
    """What the oracle signed, to be changed by the test."""
    data: Json = json.loads(ANNOUNCEMENT.data)
    return data


# --- ids


def test_event_ids() -> None:
    assert OLIVIA.event_id("BTCUSD", EVENT) == "/x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=20"
    assert OLIVIA.parse_event("/x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=20") == ("BTCUSD", EVENT)
    assert OLIVIA.event_id("ETHUSD", EVENT) == "/x/BitMEX/BETH/2021-10-04T22:00:00.price?n=20"
    assert OLIVIA.parse_event("/x/BitMEX/BETH/2021-10-04T22:00:00.price?n=20") == ("ETHUSD", EVENT)
    assert OLIVIA.parse_event(OLIVIA.event_id("BTCUSD", 0)) == ("BTCUSD", 0)


@given(st.integers(0, 253_402_300_799))
def test_event_ids_follow_the_calendar(seconds: int) -> None:
    name = OLIVIA.event_id("BTCUSD", seconds)
    assert OLIVIA.parse_event(name) == ("BTCUSD", seconds)
    assert calendar.timegm(time.strptime(name, "/x/BitMEX/BXBT/%Y-%m-%dT%H:%M:%S.price?n=20")) == seconds


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/x/BitMEX/BXBT/2021-10-04T22:00:00.price[n:20]",
        "/x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=21",
        "/x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=20\n",
        "/x/BitMEX/BXBT/2021-02-29T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-06-31T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-13-01T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-00-01T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-10-00T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-10-04T24:00:00.price?n=20",
        "/x/BitMEX/BXBT/2021-10-04T22:60:00.price?n=20",
        "/x/BitMEX/BXBT/9999-12-31T99:00:00.price?n=20",
        "/x/BitMEX/BXBT/0000-10-04T22:00:00.price?n=20",
        "/x/BitMEX/BXBT/٢٠٢١-10-04T22:00:00.price?n=20",
    ],
)
def test_bad_event_ids(name: str) -> None:
    with pytest.raises(ValueError, match="event id is"):
        OLIVIA.parse_event(name)


# --- announcements


def test_an_announcement_is_read_back() -> None:
    assert ANNOUNCEMENT.id == OLIVIA.event_id("BTCUSD", EVENT)
    assert (ANNOUNCEMENT.time, ANNOUNCEMENT.scheme, ANNOUNCEMENT.digits) == (EVENT, "olivia-v1", 20)
    assert ANNOUNCEMENT.key == ATTESTATION_KEY
    assert ANNOUNCEMENT.nonces == tuple(xonly.from_prvkey(nonce)[0] for nonce in NONCES)
    assert ANNOUNCEMENT.raw == RAW


def test_an_announcement_stays_the_same_when_its_attestation_comes() -> None:
    raw = OLIVIA.attest(ID, NONCES, ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, 49_262)
    assert raw != RAW
    assert announced(raw) == ANNOUNCEMENT


def test_the_signature_counts_not_the_spelling(said: Json) -> None:
    # Olivia may write its members in any order and add others
    again = announced(signed(dict(reversed(said.items())) | {"more": 1}))
    assert (again.nonces, again.id) == (ANNOUNCEMENT.nonces, ANNOUNCEMENT.id)
    assert again != ANNOUNCEMENT  # and yet it is a second announcement for that id


def without(name: str) -> Callable[[Json], object]:
    return lambda said: {key: value for key, value in said.items() if key != name}


def descriptor(**changes: object) -> Callable[[Json], object]:
    return lambda said: said | {"descriptor": said["descriptor"] | changes}


def nonces(change: Callable[[list[Any]], object]) -> Callable[[Json], object]:
    return lambda said: said | {"schemes": {"olivia-v1": {"nonces": change(said["schemes"]["olivia-v1"]["nonces"])}}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("id"), "id is None"),
        (lambda said: said | {"id": "/x/FTX"}, "event id is '/x/FTX'"),
        (lambda said: said | {"id": 5}, "id is 5"),
        (
            lambda said: said | {"id": OLIVIA.event_id("BTCUSD", EVENT + 3600)},
            "expected-outcome-time is '2021-10-04T22:00:00'",
        ),
        (without("expected-outcome-time"), "expected-outcome-time is None"),
        (without("descriptor"), "descriptor is None"),
        (descriptor(n_digits=19), "descriptor.n_digits is 19, allowed is 20"),
        (descriptor(n_digits=20.0), "descriptor.n_digits is 20.0"),
        (descriptor(base=10), "descriptor.base is 10, allowed is 2"),
        (descriptor(is_signed=True), "descriptor.is_signed is True"),
        (descriptor(type="enum"), "descriptor.type is 'enum'"),
        (without("schemes"), "schemes is None"),
        (lambda said: said | {"schemes": {"ecdsa-v1": {}}}, "schemes.olivia-v1 is None"),
        (nonces(lambda old: old[1:]), "a list of 20"),
        (nonces(lambda old: [*old, old[0]]), "a list of 20"),
        (nonces("".join), "a list of 20"),
        (nonces(lambda old: [5, *old[1:]]), "nonces is 5"),
        (nonces(lambda old: [old[0].upper(), *old[1:]]), "allowed are 64 hex digits"),
        (nonces(lambda old: [old[0][:-2], *old[1:]]), "allowed are 64 hex digits"),
        (nonces(lambda old: [f"{5:064x}", *old[1:]]), "is not the x of a point"),
        (nonces(lambda old: [old[1], *old[1:]]), "not distinct"),
        (nonces(lambda old: [ATTESTATION_KEY.hex(), *old[1:]]), "not distinct"),
        (lambda said: [said], "oracle_event.data is"),
        (lambda said: json.dumps(said)[:-1], "refused"),
        pytest.param(lambda said: "[" * 100_000, "refused", id="nested"),
    ],
)
def test_what_is_signed_is_checked_in_full(said: Json, change: Callable[[Json], object], sentence: str) -> None:
    with pytest.raises(WorldError) as refused:
        announced(signed(change(said)))
    assert refused.value.code == "bad_announcement"
    assert sentence in refused.value.sentence
    assert len(refused.value.sentence) < 400


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"announcement": 1}',
        pytest.param(b"[" * 100_000, id="nested"),
        RAW.replace(b'"encoding":"json"', b'"encoding":"tlv"'),
        RAW.replace(b"22:00:00", b"23:00:00"),
        RAW.replace(b'"signature":"', b'"signature":"00'),
        signed(json.loads(ANNOUNCEMENT.data), signature=64 * "00"),
        signed(json.loads(ANNOUNCEMENT.data), signature="xyz"),
        signed(json.loads(ANNOUNCEMENT.data), signature=None),
        signed(json.loads(ANNOUNCEMENT.data), oracle_event={"encoding": "json", "data": "\ud800"}),
    ],
)
def test_an_answer_that_is_none(raw: bytes) -> None:
    with pytest.raises(WorldError) as refused:
        announced(raw)
    assert refused.value.code == "bad_announcement"


def test_another_oracles_announcement_is_refused() -> None:
    with pytest.raises(WorldError, match="not by the oracle's announcement key"):
        parse_announcement(RAW, announcement_key=ATTESTATION_KEY, attestation_key=ATTESTATION_KEY, scheme=OLIVIA.name)


def test_a_nonce_that_cancels_the_key_is_refused() -> None:
    # P + 2·R is infinity for R = −½·P, which the oracle can announce when that has an even y
    for number in range(1, 50):
        secret = number.to_bytes(32, "big")
        key, odd = xonly.from_prvkey(secret)
        even = ORDER - number if odd else number
        nonce = (-even * pow(2, -1, ORDER) % ORDER).to_bytes(32, "big")
        if xonly.from_prvkey(nonce)[1] == 0:
            break
    else:
        pytest.fail("no such key among fifty")
    with pytest.raises(WorldError, match=r"nonce 1 of .* cancels the oracle's key") as refused:
        announced(OLIVIA.announce(ID, [NONCES[0], nonce, *NONCES[2:]], secret, ANNOUNCEMENT_SECRET), key)
    assert refused.value.code == "bad_announcement"


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(WorldError, match=r"attestation key 00.* is not the x of a point"):
        announced(RAW, bytes(32))


def test_the_hash_of_announcements_is_that_of_the_specification() -> None:
    later = announced(
        OLIVIA.announce(OLIVIA.event_id("BTCUSD", EVENT + 3600), NONCES[::-1], ATTESTATION_SECRET, ANNOUNCEMENT_SECRET)
    )
    events = b"".join(len(each.data).to_bytes(4, "big") + each.data for each in (ANNOUNCEMENT, later))
    assert announcements_hash([ANNOUNCEMENT, later]) == tagged_hash(
        "cfd/announcements", b"olivia-v1" + ATTESTATION_KEY + events
    )
    assert announcements_hash([ANNOUNCEMENT, later]) != announcements_hash([later, ANNOUNCEMENT])
    with pytest.raises(ValueError, match="exactly one oracle"):
        announcements_hash([])
    with pytest.raises(ValueError, match="exactly one oracle"):
        announcements_hash([ANNOUNCEMENT, evolve(later, key=ANNOUNCEMENT_KEY)])


# --- attestations


def test_not_yet_attested() -> None:
    assert parse_attestation(RAW, ANNOUNCEMENT) is None


@pytest.mark.parametrize(
    ("price", "digits"),
    [
        (49_262, "00001100000001101110"),
        (0, "0" * 20),
        (2**20 - 1, "1" * 20),
        (2**20, "1" * 20),
        (10**9, "1" * 20),
    ],
)
def test_an_attested_price(price: int, digits: str) -> None:
    attestation = attested(ANNOUNCEMENT, price)
    assert attestation.price == min(price, 2**20 - 1)
    assert price_digits(price) == digits
    assert attestation.id == ANNOUNCEMENT.id


def test_a_body_without_the_member_is_not_attested() -> None:
    assert parse_attestation(b"{}", ANNOUNCEMENT) is None


def claim(**changes: object) -> bytes:
    body: Json = json.loads(OLIVIA.attest(ID, NONCES, ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, 49_262))
    return json.dumps({"attestation": body["attestation"] | changes}).encode()


def scalars(change: Callable[[list[str]], object]) -> bytes:
    body: Json = json.loads(claim())
    old = body["attestation"]["schemes"]["olivia-v1"]["scalars"]
    return claim(schemes={"olivia-v1": {"scalars": change(old)}})


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "refused"),
        pytest.param(b"[" * 100_000, "refused", id="nested"),
        (b'{"attestation": 5}', "attestation is 5"),
        (claim(outcome="49263"), "scalar 19 is not that of price 49263"),
        (claim(outcome="49262.8"), "allowed is a whole number"),
        (claim(outcome="-1"), "allowed is a whole number"),
        (claim(outcome="049262"), "allowed is a whole number"),
        pytest.param(claim(outcome="9" * 5_000), "allowed is a whole number", id="long"),
        (claim(outcome=49262), "outcome is 49262, allowed is a string"),
        (claim(schemes={}), "schemes.olivia-v1 is None"),
        (scalars(lambda old: old[:-1]), "a list of 20"),
        (scalars(lambda old: [old[1], old[0], *old[2:]]), "scalar 0 is not that of price 49262"),
        (scalars(lambda old: ["00" * 32, *old[1:]]), "scalar 0 is not that of price 49262"),
        (scalars(lambda old: [*old[:-1], "ff" * 32]), "scalar 19 is not that of price 49262"),
        (scalars(lambda old: ["zz" * 32, *old[1:]]), "64 hex digits"),
    ],
)
def test_attestations_are_verified_in_full(raw: bytes, sentence: str) -> None:
    with pytest.raises(WorldError) as refused:
        parse_attestation(raw, ANNOUNCEMENT)
    assert refused.value.code == "bad_attestation"
    assert sentence in refused.value.sentence
    assert len(refused.value.sentence) < 400


def test_the_oracle_attests_no_negative_price() -> None:
    with pytest.raises(ValueError, match="price is -1"):
        OLIVIA.attest(ID, NONCES, ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, -1)


def test_an_attestation_of_another_event_is_refused() -> None:
    raw = OLIVIA.attest(ID, NONCES[::-1], ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, 49_262)
    with pytest.raises(WorldError, match="scalar 0 is not"):
        parse_attestation(raw, ANNOUNCEMENT)


# --- anticipation


@given(st.integers(0, 2**20 - 1), st.integers(1, 20))
def test_what_was_anticipated_opens(price: int, length: int) -> None:
    digits = price_digits(price)[:length]
    scalar = opening_scalar(attested(ANNOUNCEMENT, price), ANNOUNCEMENT, digits)
    assert keys.pubkey_from_prvkey(scalar) == ANTICIPATION.point(digits)


ANTICIPATION = Anticipation(ANNOUNCEMENT)


def test_points_do_not_depend_on_what_was_asked_before() -> None:
    digits = price_digits(49_262)
    forwards, backwards = Anticipation(ANNOUNCEMENT), Anticipation(ANNOUNCEMENT)
    points = [forwards.point(digits[:length]) for length in range(1, 21)]
    assert [backwards.point(digits[:length]) for length in range(20, 0, -1)] == points[::-1]
    assert len(set(points)) == 20


@pytest.mark.parametrize("digits", ["", "2", "0" * 21, " 1", "01\n"])
def test_digits_that_are_none(digits: str) -> None:
    with pytest.raises(ValueError, match="digits are"):
        ANTICIPATION.point(digits)


@pytest.mark.parametrize("digits", ["", "1", "00001100000001101111"])
def test_nothing_opens_for_another_price(digits: str) -> None:
    with pytest.raises(ValueError, match="does not begin with the digits"):
        opening_scalar(attested(ANNOUNCEMENT, 49_262), ANNOUNCEMENT, digits)


def test_weights_are_those_of_the_specification() -> None:
    event = ATTESTATION_KEY + b"".join(ANNOUNCEMENT.nonces)
    for index in (0, 7, 19):
        weight = int.from_bytes(tagged_hash("cfd/olivia-digit", event + bytes([index])), "big")
        assert OLIVIA.weight(ANNOUNCEMENT, index) == weight % ORDER


# --- the real event, and the forgery that weights stop


@pytest.fixture(scope="module")
def real() -> Json:
    event: Json = json.loads(vector("olivia_bxbt.json").read_text())
    return event


@pytest.fixture(scope="module")
def real_announcement(real: Json) -> Announcement:
    said = {
        "id": real["id"],
        "expected-outcome-time": "2021-10-05T02:00:00",
        "descriptor": {"type": "digit-decomposition", "is_signed": False, "n_digits": 20, "unit": None},
        "schemes": {"olivia-v1": {"nonces": real["nonces"]}, "ecdsa-v1": {}},
    }
    return announced(signed(said), bytes.fromhex(real["oracle_key"]))


@pytest.fixture(scope="module")
def real_attestation(real: Json, real_announcement: Announcement) -> Attestation:
    schemes = {"olivia-v1": {"scalars": real["scalars"]}, "ecdsa-v1": {"signature": "00"}}
    body = {"attestation": {"outcome": str(real["price"]), "schemes": schemes, "time": "2021-10-05T02:00:20.1"}}
    attestation = parse_attestation(json.dumps(body).encode(), real_announcement)
    assert attestation is not None
    return attestation


def test_the_real_event_verifies_and_opens(real_announcement: Announcement, real_attestation: Attestation) -> None:
    assert (real_attestation.price, real_attestation.id) == (49_262, real_announcement.id)
    anticipation = Anticipation(real_announcement)
    digits = price_digits(49_262)
    for length in range(1, 21):
        scalar = opening_scalar(real_attestation, real_announcement, digits[:length])
        assert keys.pubkey_from_prvkey(scalar) == anticipation.point(digits[:length])


def plain_point(announcement: Announcement, digits: str) -> bytes:
    """What a CET would be encrypted to if the digits had no weights."""
    points = [OLIVIA.digit_point(announcement, index, int(digit)) for index, digit in enumerate(digits)]
    return keys.pubkey_combine([keys.serialize(point) for point in points])


HALF = pow(2, -1, ORDER)


def combined(factors: Iterable[int], scalars: Iterable[int]) -> bytes:
    """The point of a combination of revealed scalars."""
    return keys.pubkey_from_prvkey(sum(f * s for f, s in zip(factors, scalars, strict=True)) % ORDER)


def test_plain_sums_open_another_price(real_announcement: Announcement, real_attestation: Attestation) -> None:
    revealed = [int.from_bytes(scalar, "big") for scalar in real_attestation.scalars]
    weights = [OLIVIA.weight(real_announcement, index) for index in range(20)]
    attested_digits = price_digits(49_262)[:12]
    forged = price_digits(65_536)[:12]
    assert forged == price_digits(65_791)[:12] != attested_digits
    # s = p + (b+1)·r, scaled so that its r part is that of the forged digit; the p parts add up to 12·p all the same
    factors = [{("0", "1"): 2, ("1", "0"): HALF}.get(pair, 1) for pair in zip(attested_digits, forged, strict=True)]
    assert combined(factors, revealed[:12]) == plain_point(real_announcement, forged)
    weighted = [weight * scalar for weight, scalar in zip(weights, revealed, strict=True)]
    assert combined(factors, weighted[:12]) != Anticipation(real_announcement).point(forged)


def all_digits(length: int) -> Iterator[str]:
    return map("".join, product("01", repeat=length))


def test_weights_open_nothing_by_any_scaling(real_announcement: Announcement, real_attestation: Attestation) -> None:
    # all 3⁶ scalings of the first six scalars, against all 2⁶ prefixes: of 49 262 they are 000011
    length = 6
    revealed = [int.from_bytes(scalar, "big") for scalar in real_attestation.scalars[:length]]
    weighted = [OLIVIA.weight(real_announcement, index) * scalar for index, scalar in enumerate(revealed)]
    scalings = list(product((1, 2, HALF), repeat=length))
    anticipation = Anticipation(real_announcement)
    plain = {combined(factors, revealed) for factors in scalings}
    heavy = {combined(factors, weighted) for factors in scalings}
    opened_plain = {digits for digits in all_digits(length) if plain_point(real_announcement, digits) in plain}
    opened = {digits for digits in all_digits(length) if anticipation.point(digits) in heavy | plain}
    assert opened_plain == {"000011", "100000", "010000", "001000", "000100"}
    assert opened == {"000011"}
