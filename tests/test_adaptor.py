"""Schnorr signatures, plain (BIP340) and adaptor: contract.md, "Schnorr adaptor signatures"."""

import csv

import pytest
from btclib_ecc.curves import secp256k1
from btclib_ecc.curves.sec_point import point_from_octets_var
from btclib_ecc.ecc import ssa_adaptor
from btclib_secp256k1 import keys as curve
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.contract import adaptor, schnorr
from protocols.contract.keys import negated
from protocols.contract.numbers import ORDER, tagged_hash

from .deals import digest, x_only
from .vectors import vector

scalars = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
messages = st.binary(min_size=32, max_size=32)

SECRET, MESSAGE, HIDDEN = digest("secret"), digest("message"), digest("hidden")
KEY, POINT = x_only(SECRET), curve.pubkey_from_prvkey(HIDDEN)


# BIP340


def test_bip340_vectors() -> None:
    with vector("bip340.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 19
    for row in rows:
        key, message, signature = (bytes.fromhex(row[name]) for name in ("public key", "message", "signature"))
        assert schnorr.verify(key, message, signature) is (row["verification result"] == "TRUE"), row
        if row["secret key"]:
            assert schnorr.sign(bytes.fromhex(row["secret key"]), message, bytes.fromhex(row["aux_rand"])) == signature


def test_a_plain_signature_can_be_made_again() -> None:
    signature = schnorr.sign(SECRET, MESSAGE)
    assert signature == schnorr.sign(SECRET, MESSAGE, tagged_hash("cfd/aux", SECRET))
    assert schnorr.verify(KEY, MESSAGE, signature)


@pytest.mark.parametrize("malformed", [b"", bytes(63), bytes(65)])
def test_a_plain_signature_of_another_size_is_not_valid(malformed: bytes) -> None:
    assert not schnorr.verify(KEY, MESSAGE, malformed)
    assert not schnorr.verify(b"\x02" + KEY, MESSAGE, schnorr.sign(SECRET, MESSAGE))


# Adaptor signatures


@given(scalars, messages, scalars)
def test_sign_verify_decrypt_recover(secret: bytes, message: bytes, hidden: bytes) -> None:
    key, point = x_only(secret), curve.pubkey_from_prvkey(hidden)
    signature = adaptor.sign(secret, message, point)
    assert len(signature) == adaptor.SIZE
    assert adaptor.verify(key, message, point, signature)
    decrypted = adaptor.decrypt(signature, hidden)
    assert schnorr.verify(key, message, decrypted)
    assert adaptor.recover(signature, decrypted, point) == hidden
    # nothing else opens it, the scalar of −T included
    assert not schnorr.verify(key, message, adaptor.decrypt(signature, curve.prvkey_negate(hidden)))
    assert not schnorr.verify(key, message, signature[1:])


@settings(max_examples=25)
@given(scalars, messages, scalars)
def test_an_independent_library_agrees(secret: bytes, message: bytes, hidden: bytes) -> None:
    key, point = x_only(secret), curve.pubkey_from_prvkey(hidden)
    ours = adaptor.sign(secret, message, point)
    theirs = ssa_adaptor.presign(message, int.from_bytes(secret, "big"), point)
    assert ssa_adaptor.verify(ours, message, key, point)
    assert adaptor.verify(key, message, point, theirs)
    for signature in (ours, theirs):
        extracted = ssa_adaptor.extract(signature, message, key)
        assert extracted == point_from_octets_var(point, secp256k1)
        completed = ssa_adaptor.adapt(signature, int.from_bytes(hidden, "big"))
        assert adaptor.decrypt(signature, hidden) == completed.serialize()
        assert ssa_adaptor.extract_adaptor(completed, signature) == int.from_bytes(hidden, "big")


def test_both_parities_of_the_nonce_occur() -> None:
    first_bytes = set()
    for number in range(32):
        signature = adaptor.sign(SECRET, digest(number), POINT)
        first_bytes.add(signature[0])
        assert schnorr.verify(KEY, digest(number), adaptor.decrypt(signature, HIDDEN))
    assert first_bytes == {2, 3}


def test_a_signature_can_be_made_again() -> None:
    signer = adaptor.Signer(SECRET)
    first = signer.sign(MESSAGE, POINT)
    signer.sign(digest("in between"), POINT)
    assert first == signer.sign(MESSAGE, POINT) == adaptor.sign(SECRET, MESSAGE, POINT)


def test_no_nonce_serves_two_messages_or_points_or_keys() -> None:
    """R − T is the nonce's point: it must differ whenever anything does, and from that of a plain signature."""

    def nonce(secret: bytes, message: bytes, point: bytes) -> bytes:
        r = adaptor.sign(secret, message, point)[:33]
        return curve.pubkey_combine([r, negated(point)])[1:]

    other = curve.pubkey_from_prvkey(digest("other"))
    nonces = {
        nonce(SECRET, MESSAGE, POINT),
        nonce(SECRET, MESSAGE, negated(POINT)),
        nonce(SECRET, MESSAGE, other),
        nonce(SECRET, digest("other"), POINT),
        nonce(digest("other"), MESSAGE, POINT),
        schnorr.sign(SECRET, MESSAGE)[:32],
    }
    assert len(nonces) == 6


@given(st.integers(0, 65 * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    signature = bytearray(adaptor.sign(SECRET, MESSAGE, POINT))
    signature[bit // 8] ^= 1 << bit % 8
    assert not adaptor.verify(KEY, MESSAGE, POINT, bytes(signature))


def test_a_signature_is_bound_to_key_message_and_point() -> None:
    signature = adaptor.sign(SECRET, MESSAGE, POINT)
    assert not adaptor.verify(x_only(digest("other")), MESSAGE, POINT, signature)
    assert not adaptor.verify(KEY, digest("other"), POINT, signature)
    assert not adaptor.verify(KEY, MESSAGE, negated(POINT), signature)
    assert not adaptor.verify(KEY, MESSAGE, curve.pubkey_from_prvkey(digest("other")), signature)


def _with_scalar(s: int) -> bytes:
    return adaptor.sign(SECRET, MESSAGE, POINT)[:33] + s.to_bytes(32, "big")


MALFORMED = {
    "empty": b"",
    "a byte short": adaptor.sign(SECRET, MESSAGE, POINT)[:-1],
    "a byte long": adaptor.sign(SECRET, MESSAGE, POINT) + b"\x00",
    "R at infinity": bytes(33) + adaptor.sign(SECRET, MESSAGE, POINT)[33:],
    "R not on the curve": b"\x02" + bytes(31) + b"\x05" + adaptor.sign(SECRET, MESSAGE, POINT)[33:],
    "R beyond the field": b"\x02" + b"\xff" * 32 + adaptor.sign(SECRET, MESSAGE, POINT)[33:],
    "s is zero": _with_scalar(0),
    "s is the order": _with_scalar(ORDER),
    "s is beyond the order": _with_scalar(2**256 - 1),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_signature_is_not_valid(case: str) -> None:
    assert not adaptor.verify(KEY, MESSAGE, POINT, MALFORMED[case])


def test_a_scalar_has_one_encoding() -> None:
    """ŝ and ŝ + n are equal modulo n; only the first may pass, or one message would have two signatures."""
    small = 5  # so that ŝ + n has 32 bytes too; T = R − ŝ·G + e·P makes any ŝ valid
    r = b"\x02" + x_only(digest("nonce"))
    challenge = tagged_hash("BIP0340/challenge", r[1:] + KEY + MESSAGE)
    point = curve.pubkey_combine(
        [r, negated(curve.pubkey_from_prvkey(small)), curve.pubkey_tweak_mul(b"\x02" + KEY, challenge)]
    )
    assert adaptor.verify(KEY, MESSAGE, point, r + small.to_bytes(32, "big"))
    assert not adaptor.verify(KEY, MESSAGE, point, r + (small + ORDER).to_bytes(32, "big"))


def test_a_nonce_at_infinity_is_not_valid() -> None:
    """R = T: then ŝ = e·x alone, and the signature would give the key away."""
    challenge = int.from_bytes(tagged_hash("BIP0340/challenge", POINT[1:] + KEY + MESSAGE), "big")
    even = int.from_bytes(SECRET, "big")
    even = even if curve.pubkey_from_prvkey(SECRET)[0] == 2 else ORDER - even
    signature = POINT + (challenge * even % ORDER).to_bytes(32, "big")
    assert not adaptor.verify(KEY, MESSAGE, POINT, signature)


BAD_POINTS = {
    "infinity": bytes(33),
    "not on the curve": b"\x02" + bytes(31) + b"\x05",
    "x only": POINT[1:],
    "none": b"",
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_a_bad_adaptor_point_is_refused(case: str) -> None:
    with pytest.raises(ValueError) as caught:
        adaptor.sign(SECRET, MESSAGE, BAD_POINTS[case])
    assert SECRET.hex() not in str(caught.value)
    assert not adaptor.verify(KEY, MESSAGE, BAD_POINTS[case], adaptor.sign(SECRET, MESSAGE, POINT))


@pytest.mark.parametrize(
    "key", [b"", bytes(31) + b"\x05", b"\xff" * 32, b"\x02" + KEY], ids=["none", "off", "big", "33"]
)
def test_a_bad_key_verifies_nothing(key: bytes) -> None:
    assert not adaptor.verify(key, MESSAGE, POINT, adaptor.sign(SECRET, MESSAGE, POINT))


def test_recovery_checks_what_it_finds() -> None:
    signature = adaptor.sign(SECRET, MESSAGE, POINT)
    decrypted = adaptor.decrypt(signature, HIDDEN)
    with pytest.raises(ValueError, match="not the adaptor point's"):
        adaptor.recover(signature, decrypted, negated(POINT))
    with pytest.raises(ValueError, match="not completed from"):
        adaptor.recover(signature, schnorr.sign(SECRET, MESSAGE), POINT)
    with pytest.raises(ValueError, match="65 bytes"):
        adaptor.recover(signature[1:], decrypted, POINT)
    with pytest.raises(ValueError, match="65 bytes"):
        adaptor.decrypt(b"\x04" + signature[1:], HIDDEN)
    for scalar in (bytes(32), ORDER.to_bytes(32, "big"), HIDDEN[1:]):
        with pytest.raises(ValueError):
            adaptor.decrypt(signature, scalar)
