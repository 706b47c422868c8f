"""The DLC specification's oracle scheme: contract.md, "Oracle" (dlc scheme), and dlcspecs, Oracle.md.

Of the published vectors, `dlc_schnorr_test.json` applies in full. Of the two `single_oracle_numerical` tests the
announcements do, in the dialect that they are written in; they hold no attestation, and their ECDSA adaptor signatures,
P2WSH contracts and payout messages are not this project's. `ecdsa_adaptor.json` does not apply.
"""

import json
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import pytest
from attrs import evolve
from btclib_ecc.ecc import dlc_oracle
from btclib_secp256k1 import keys, ssa, xonly
from hypothesis import given
from hypothesis import strategies as st

from node.config import OracleTable
from protocols.contract import dlc, schnorr, tlv
from protocols.contract.dlc import Descriptor, Dlc, Event
from protocols.contract.numbers import ORDER, tagged_hash
from protocols.contract.oracle import (
    DLC,
    DLC_SHA256,
    SCHEMES,
    Announcement,
    Anticipation,
    Attestation,
    announcements_hash,
    opening_scalar,
    parse_announcement,
    parse_attestation,
    price_digits,
    scheme_named,
)
from protocols.contract.symbols import SYMBOLS
from protocols.errors import LocalError, WorldError

from .vectors import vector

TIME = 1_633_384_800  # 2021-10-04T22:00:00
ID = "btcusd1633384800"
SECRET = tagged_hash("test", b"attestation")
KEY = xonly.from_prvkey(SECRET)[0]
OTHER_KEY = xonly.from_prvkey(tagged_hash("test", b"other"))[0]
NONCES = [tagged_hash("test/nonce", bytes([index])) for index in range(20)]
DIALECTS = pytest.mark.parametrize("scheme", [DLC, DLC_SHA256], ids=lambda scheme: scheme.name)

Json = dict[str, Any]


def announced(raw: bytes, scheme: Dlc = DLC) -> Announcement:
    return parse_announcement(raw, announcement_key=KEY, attestation_key=KEY, scheme=scheme.name)


def attest(price: int, scheme: Dlc = DLC) -> bytes:
    return scheme.attest(ID, NONCES, SECRET, SECRET, price)


def attested(price: int, announcement: Announcement, scheme: Dlc = DLC) -> Attestation:
    attestation = parse_attestation(attest(price, scheme), announcement)
    assert attestation is not None
    return attestation


RAW = DLC.announce(ID, NONCES, SECRET, SECRET)
ANNOUNCEMENT = announced(RAW)
ANTICIPATION = Anticipation(ANNOUNCEMENT)
EVENT = Event(
    nonces=tuple(xonly.from_prvkey(nonce)[0] for nonce in NONCES),
    maturity=TIME,
    descriptor=Descriptor(base=2, is_signed=False, unit="usd/btc", precision=0, digits=20),
    id="btcusd1633384800",
)


# --- published vectors


def test_schnorr_vectors() -> None:
    for case in json.loads(vector("dlcspecs/dlc_schnorr_test.json").read_text()):
        secret, nonce, message = (bytes.fromhex(case["inputs"][name]) for name in ("privKey", "privNonce", "msgHash"))
        key, nonce_point, signature = (bytes.fromhex(case[name]) for name in ("pubKey", "pubNonce", "signature"))
        assert (xonly.from_prvkey(secret)[0], xonly.from_prvkey(nonce)[0]) == (key, nonce_point)
        assert dlc.sign_with_nonce(secret, nonce, message) == signature
        assert keys.serialize(dlc.signature_point(key, nonce_point, message)).hex() == case["sigPoint"]
        assert keys.pubkey_from_prvkey(signature[32:]).hex() == case["sigPoint"]
        assert ssa.verify(message, key, signature)


@pytest.fixture(params=["single_oracle_numerical_test", "single_oracle_numerical_hyperbola_test"])
def published(request: pytest.FixtureRequest) -> tuple[bytes, Json]:
    """The bytes of an offer message from its announcement on, and what they say."""
    offer = json.loads(vector(f"dlcspecs/{request.param}.json").read_text())["offer_message"]
    contract = offer["message"]["contractInfo"]["singleContractInfo"]["contractInfo"]
    serialized = bytes.fromhex(offer["serialized"])
    start = serialized.index(tlv.bigsize(dlc.ANNOUNCEMENT))
    return serialized[start:], contract["oracleInfo"]["single"]["oracleAnnouncement"]


def test_published_announcements(published: tuple[bytes, Json]) -> None:
    serialized, said = published
    signed = DLC_SHA256.read_announcement(tlv.Reader(serialized).record(dlc.ANNOUNCEMENT, "oracle_announcement"))
    event, described = said["oracleEvent"], said["oracleEvent"]["eventDescriptor"]["digitDecompositionEvent"]
    assert signed.signature.hex() == said["announcementSignature"]
    assert signed.key.hex() == said["oraclePublicKey"]
    assert [nonce.hex() for nonce in signed.event.nonces] == event["oracleNonces"]
    assert (signed.event.id, signed.event.maturity) == (event["eventId"], event["eventMaturityEpoch"])
    assert signed.event.descriptor == Descriptor(
        described["base"], described["isSigned"], described["unit"], described["precision"], described["nbDigits"]
    )
    value = DLC_SHA256.write_event(signed.event)
    written = signed.signature + signed.key + tlv.record(dlc.EVENT, value)
    assert serialized.startswith(tlv.record(dlc.ANNOUNCEMENT, written))
    # The vectors are older than the tags: they sign the plain hash of the value alone.
    assert schnorr.verify(signed.key, DLC_SHA256.announcement_digest(value), signed.signature)
    assert not schnorr.verify(signed.key, DLC.announcement_digest(value), signed.signature)


def test_published_announcements_are_of_other_events_than_ours(published: tuple[bytes, Json]) -> None:
    serialized, said = published
    value = tlv.Reader(serialized).record(dlc.ANNOUNCEMENT, "oracle_announcement").data
    key = bytes.fromhex(said["oraclePublicKey"])
    for scheme, reason in (("dlc-sha256", "nb_digits is 10, allowed is 20"), ("dlc", "is_signed is 2")):
        with pytest.raises(WorldError, match=reason):
            parse_announcement(
                tlv.record(dlc.ANNOUNCEMENT, value), announcement_key=key, attestation_key=key, scheme=scheme
            )


def test_plain_digests_are_those_of_the_vectors() -> None:
    for case in json.loads(vector("dlcspecs/dlc_hash_test.json").read_text()):
        text = bytes.fromhex(case["Expected"]).decode()
        assert DLC_SHA256.outcome_digest(text).hex() == case["SHA256"]
        assert DLC.outcome_digest(text) == tagged_hash("DLC/oracle/attestation/v0", text.encode())


# --- events and schemes


def test_event_ids() -> None:
    assert DLC.event_id("BTCUSD", TIME) == "btcusd1633384800"
    assert DLC.path(DLC.event_id("BTCUSD", TIME)) == "/dlc/btcusd1633384800"
    assert DLC.event_id("ETHUSD", TIME) == "ethusd1633384800"
    for each in product(SYMBOLS, (0, TIME, 2**32 - 1)):
        assert DLC.parse_event(DLC.event_id(*each)) == each


@pytest.mark.parametrize(
    "event",
    [
        "",
        "btcusd",
        "btcusd-1",
        "btcusd01",
        "btcusd4294967296",
        "btcusd٣",
        "btcusd1\n",
        "BTCUSD1",
        "/x/BitMEX/BXBT/2021-10-04T22:00:00.price?n=20",
    ],
)
def test_other_ids_are_refused(event: str) -> None:
    with pytest.raises(ValueError, match="allowed is one such as btcusd1633384800"):
        DLC.parse_event(event)


def test_the_configuration_knows_every_scheme() -> None:
    assert set(get_args(OracleTable.model_fields["scheme"].annotation)) == set(SCHEMES)


def test_a_scheme_of_another_name_is_refused() -> None:
    with pytest.raises(LocalError, match="the oracle's scheme is 'ecdsa', known are dlc, dlc-sha256, olivia-v1"):
        scheme_named("ecdsa")


# --- announcements


def signed(event: Event = EVENT, *, key: bytes = KEY, secret: bytes = SECRET, scheme: Dlc = DLC) -> bytes:
    """The announcement of an oracle that signs whatever it likes."""
    return signed_value(scheme.write_event(event), key=key, secret=secret, scheme=scheme)


def signed_value(value: bytes, *, key: bytes = KEY, secret: bytes = SECRET, scheme: Dlc = DLC) -> bytes:
    signature = schnorr.sign(secret, scheme.announcement_digest(value))
    return tlv.record(dlc.ANNOUNCEMENT, signature + key + tlv.record(dlc.EVENT, value))


@DIALECTS
def test_what_the_oracle_announces(scheme: Dlc) -> None:
    raw = scheme.announce(ID, NONCES, SECRET, SECRET)
    assert raw == scheme.announce(ID, NONCES, SECRET, SECRET) == signed(scheme=scheme)
    announcement = announced(raw, scheme)
    assert (announcement.id, announcement.time, announcement.digits) == (EVENT.id, TIME, 20)
    assert (announcement.key, announcement.nonces) == (KEY, EVENT.nonces)
    assert announcement.raw == announcement.data == raw
    assert announced(attest(5, scheme), scheme) == announcement  # the same announcement, attested or not


def test_the_specifications_digest_is_of_the_whole_record() -> None:
    record = tlv.Reader(RAW).record(dlc.ANNOUNCEMENT, "announcement")
    signature, key = record.take(64, "signature"), record.take(32, "key")
    event = tlv.record(dlc.EVENT, record.record(dlc.EVENT, "event").data)
    assert ssa.verify(tagged_hash("DLC/oracle/announcement/v0", event), key, signature)


def test_dialects_are_not_mistaken_for_each_other() -> None:
    for scheme, other in ((DLC, DLC_SHA256), (DLC_SHA256, DLC)):
        with pytest.raises(WorldError) as refused:
            announced(scheme.announce(ID, NONCES, SECRET, SECRET), other)
        assert refused.value.code == "bad_announcement"


def test_an_oracle_with_two_keys() -> None:
    """Not the specification's, but safer: the configuration names both."""
    announcement = parse_announcement(
        DLC.announce(ID, NONCES, SECRET, NONCES[0]),
        announcement_key=EVENT.nonces[0],
        attestation_key=KEY,
        scheme="dlc",
    )
    assert announcement.key == KEY


VALUE = DLC.write_event(EVENT)
DESCRIPTOR = tlv.Reader(VALUE[2 + 20 * 32 + 4 :]).record(dlc.DIGIT_DECOMPOSITION, "").data


def described(**changes: Any) -> Event:
    return evolve(EVENT, descriptor=evolve(EVENT.descriptor, **changes))


def with_nonces(*nonces: bytes) -> Event:
    return evolve(EVENT, nonces=nonces)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (signed(described(base=10)), "base is 10, allowed is 2"),
        (signed(described(is_signed=True)), "is_signed is True"),
        (signed(described(precision=-2)), "precision is -2, allowed is 0"),
        (signed(described(digits=19)), "nb_digits is 19, allowed is 20"),
        (signed(with_nonces(*EVENT.nonces[1:])), "nb_nonces is 19, allowed is 20"),
        (signed(with_nonces(*EVENT.nonces, OTHER_KEY)), "nb_nonces is 21, allowed is 20"),
        (signed(with_nonces(bytes(31) + b"\5", *EVENT.nonces[1:])), "is not the x of a point"),
        (signed(with_nonces(EVENT.nonces[1], *EVENT.nonces[1:])), "not distinct"),
        (signed(with_nonces(KEY, *EVENT.nonces[1:])), "not distinct"),
        (signed(evolve(EVENT, maturity=TIME + 1)), "event_maturity_epoch is 1633384801, allowed is 1633384800"),
        (signed(evolve(EVENT, id="btcusd1633384801")), "event_maturity_epoch is 1633384800"),
        (signed(evolve(EVENT, id="Test")), "event id is 'Test'"),
        (signed(evolve(EVENT, id="x" * 5_000)), "event id is 'xxx"),
        (signed(key=OTHER_KEY), "oracle_public_key is"),
        (signed(secret=NONCES[0]), "not by the oracle's announcement key"),
        (signed_value(VALUE + b"\0"), "oracle_event has 1 bytes too many"),
        (
            signed_value(
                VALUE.replace(
                    tlv.record(dlc.DIGIT_DECOMPOSITION, DESCRIPTOR),
                    tlv.record(dlc.DIGIT_DECOMPOSITION, DESCRIPTOR + b"\0"),
                )
            ),
            "event_descriptor has 1 bytes too many",
        ),
        (signed_value(VALUE.replace(b"\xfd\xd8\x0a", b"\xfd\xd8\x06")), "event_descriptor has type 55302"),
        (b"", "cut short"),
        (RAW + b"\0", "oracle_attestation has type 0"),
        (RAW + RAW, "oracle_attestation has type 55332"),
        (attest(1) + b"\0", "the answer has 1 bytes too many"),
        (b'{"announcement": null}', "oracle_announcement has type 123"),
        (tlv.record(55330, RAW), "oracle_announcement has type 55330"),
        (tlv.record(55332, tlv.Reader(RAW).record(55332, "").data + b"\0"), "oracle_announcement has 1 bytes too many"),
    ],
)
def test_announcements_are_checked_in_full(raw: bytes, sentence: str) -> None:
    with pytest.raises(WorldError) as refused:
        announced(raw)
    assert refused.value.code == "bad_announcement"
    assert sentence in refused.value.sentence
    assert len(refused.value.sentence) < 400


@given(st.data())
def test_no_other_bytes_pass_for_the_answer(data: st.DataObject) -> None:
    answer = attest(49_262)
    at = data.draw(st.integers(0, len(answer) - 1))
    cut = answer[:at]
    changed = cut + bytes([answer[at] ^ data.draw(st.integers(1, 255))]) + answer[at + 1 :]
    for other in (cut, changed):
        try:
            announcement = announced(other)
            attestation = parse_attestation(other, announcement)
        except WorldError:
            continue
        assert other == RAW
        assert attestation is None


def test_the_hash_of_announcements_is_of_whole_records() -> None:
    assert announcements_hash([ANNOUNCEMENT]) == tagged_hash(
        "cfd/announcements", b"dlc" + KEY + len(RAW).to_bytes(4, "big") + RAW
    )


def test_an_oracle_has_a_nonce_for_every_digit() -> None:
    with pytest.raises(ValueError, match="20 nonces, not 19"):
        DLC.announce(ID, NONCES[1:], SECRET, SECRET)


# --- attestations


@DIALECTS
@pytest.mark.parametrize("price", [0, 49_262, 2**20 - 1, 2**20, 10**9])
def test_an_attested_price(scheme: Dlc, price: int) -> None:
    announcement = announced(scheme.announce(ID, NONCES, SECRET, SECRET), scheme)
    attestation = attested(price, announcement, scheme)
    assert (attestation.price, attestation.id) == (min(price, 2**20 - 1), EVENT.id)
    for nonce, scalar, digit in zip(EVENT.nonces, attestation.scalars, price_digits(price), strict=True):
        assert ssa.verify(scheme.outcome_digest(digit), KEY, nonce + scalar)


def test_not_yet_attested() -> None:
    assert parse_attestation(RAW, ANNOUNCEMENT) is None


DIGITS = price_digits(49_262)


def claim(
    *,
    event: str = EVENT.id,
    key: bytes = KEY,
    signatures: Callable[[list[bytes]], list[bytes]] = lambda old: old,
    outcomes: str | list[str] = DIGITS,
    count: int = 20,
    more: bytes = b"",
    announcement: bytes = RAW,
) -> bytes:
    """An attestation of 49 262 with changes."""
    scalars = attested(49_262, ANNOUNCEMENT).scalars
    made = [nonce + scalar for nonce, scalar in zip(EVENT.nonces, scalars, strict=True)]
    value = tlv.text(event) + key + count.to_bytes(2, "big") + b"".join(signatures(made))
    return announcement + tlv.record(dlc.ATTESTATION, value + b"".join(map(tlv.text, outcomes)) + more)


def test_the_claim_unchanged_holds() -> None:
    assert claim() == attest(49_262)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (claim(event="btcusd1633388400"), "event_id is 'btcusd1633388400', allowed is 'btcusd1633384800'"),
        (claim(key=OTHER_KEY), "oracle_public_key is"),
        (claim(count=19), "nb_signatures is 19, allowed is 20"),
        (claim(signatures=lambda old: old[1:]), "signature 19 is cut short"),
        (claim(signatures=lambda old: [old[1], old[0], *old[2:]]), "signature 0 is not made with the announced nonce"),
        (claim(signatures=lambda old: [*old[:-1], old[-1][:32] + bytes(32)]), "scalar 19 is not that of price 49262"),
        (claim(signatures=lambda old: [*old[:-1], old[-1][:32] + b"\xff" * 32]), "scalar 19 is not that"),
        (claim(outcomes=price_digits(49_263)), "scalar 19 is not that of price 49263"),
        (claim(outcomes=DIGITS[1:]), "outcome 19's length is cut short"),
        (claim(outcomes=["2", *DIGITS[1:]]), "outcome 0 is '2', allowed is 0 or 1"),
        (claim(outcomes=["", *DIGITS[1:]]), "outcome 0 is ''"),
        (claim(outcomes=["٠", *DIGITS[1:]]), "allowed is 0 or 1"),
        (claim(more=b"\0"), "oracle_attestation has 1 bytes too many"),
        (claim() + b"\0", "the answer has 1 bytes too many"),
        (claim(announcement=b""), "oracle_announcement has type 55400"),
        (b"", "cut short"),
    ],
)
def test_attestations_are_verified_in_full(raw: bytes, sentence: str) -> None:
    with pytest.raises(WorldError) as refused:
        parse_attestation(raw, ANNOUNCEMENT)
    assert refused.value.code == "bad_attestation"
    assert sentence in refused.value.sentence
    assert len(refused.value.sentence) < 400


def test_what_opens_is_taken_whatever_is_announced_beside_it() -> None:
    """The peer can open contracts with it, too; the client raises the alarm about the rest."""
    other = signed(evolve(EVENT, descriptor=evolve(EVENT.descriptor, unit="sats")))
    attestation = parse_attestation(claim(announcement=other), ANNOUNCEMENT)
    assert attestation is not None
    assert attestation.price == 49_262


# --- anticipation


@given(st.integers(0, 2**20 - 1), st.integers(1, 20))
def test_what_was_anticipated_opens(price: int, length: int) -> None:
    digits = price_digits(price)[:length]
    scalar = opening_scalar(attested(price, ANNOUNCEMENT), ANNOUNCEMENT, digits)
    assert keys.pubkey_from_prvkey(scalar) == ANTICIPATION.point(digits)


@DIALECTS
def test_points_and_signatures_are_those_of_another_implementation(scheme: Dlc) -> None:
    announcement = announced(scheme.announce(ID, NONCES, SECRET, SECRET), scheme)
    for index, digit in product((0, 1, 19), "01"):
        message = scheme.outcome_digest(digit)
        theirs = dlc_oracle.sign_(message, SECRET, NONCES[index])
        assert dlc.sign_with_nonce(SECRET, NONCES[index], message) == theirs.serialize()
        point = keys.serialize(scheme.digit_point(announcement, index, int(digit)))
        x, y = dlc_oracle.sig_point_(message, KEY, EVENT.nonces[index])
        assert point == bytes([2 + y % 2]) + x.to_bytes(32, "big")


def test_scaled_scalars_open_nothing_else() -> None:
    """The combination that forges plainly summed olivia-v1 events: every revealed scalar times 1, 2 or ½, against every
    prefix as long; and every choice of up to six scalars, summed, against every prefix of up to six digits."""
    length, half = 6, pow(2, -1, ORDER)
    revealed = [int.from_bytes(each, "big") for each in attested(49_262, ANNOUNCEMENT).scalars[:length]]

    def opened(factors: tuple[int, ...]) -> bytes:
        total = sum(factor * scalar for factor, scalar in zip(factors, revealed, strict=True)) % ORDER
        return keys.pubkey_from_prvkey(total)

    points = {
        ANTICIPATION.point(digits): digits
        for size in range(1, length + 1)
        for digits in map("".join, product("01", repeat=size))
    }
    scaled = {opened(factors) for factors in product((1, 2, half), repeat=length)}
    chosen = {opened(factors) for factors in product((0, 1), repeat=length) if any(factors)}
    assert {points[point] for point in points.keys() & scaled} == {"000011"}
    assert sorted(points[point] for point in points.keys() & chosen) == ["0", "00", "000", "0000", "00001", "000011"]
