"""Proof that an oracle attested two outcomes of one event, which anybody can check who has nothing but its keys.

An oracle that does so has used its nonces twice, and its attestation key follows from the proof: in both schemes every
scalar is linear in that key and in the digit's nonce, so that a second scalar over the same nonces leaves one unknown.
Whoever holds such a proof can attest any price of any of its announced events; hence no new contract with that oracle.

What is attested shows in two ways: as the oracle's answer, with one scalar for each digit, and on the chain: the CET
that the peer publishes gives away the weighted sum of the scalars that opened it (`signing.recover_opening`), although
the oracle may have told them to the peer alone.
"""

import json
from collections.abc import Mapping
from typing import TypeAlias

from attrs import field, frozen
from btclib_secp256k1 import keys

from ..errors import WorldError
from .announcements import Announcement, Attestation, price_digits
from .numbers import DIGITS
from .oracle import SCHEMES, Anticipation, parse_announcement, parse_attestation

FORMAT = "oracle-contradiction/1"
MAX_PROOF = 512 * 1024
"""Bytes of a proof as it is exported."""


@frozen
class Opening:
    """What opens the signatures of one outcome; its scalar was verified against the outcome's point."""

    digits: str
    """One to twenty binary digits that the price begins with."""
    scalar: bytes = field(repr=False)

    @classmethod
    def checked(cls, announcement: Announcement, digits: str, scalar: bytes) -> "Opening":
        """Raises `ValueError` unless the scalar opens what is encrypted to a price that begins with these digits."""
        point = Anticipation(announcement).point(digits)
        if not keys.prvkey_verify(scalar) or keys.pubkey_from_prvkey(scalar) != point:
            raise ValueError(f"the scalar is not that of prices that begin with {digits}")
        return cls(digits, scalar)


Attested: TypeAlias = Attestation | Opening


@frozen
class Contradiction:
    """Two outcomes of one event, both attested. Made by `contradiction` and `read_proof` only."""

    announcement: Announcement
    announcement_key: bytes
    """The oracle's, x-only: by it the announcement is signed."""
    first: Attestation
    second: Attested

    @property
    def sentence(self) -> str:
        return f"the oracle attested {self.announcement.id} as {shown(self.first)}, and also as {shown(self.second)}"


def contradiction(
    announcement: Announcement, announcement_key: bytes, first: Attestation, second: Attested
) -> Contradiction | None:
    """None unless the two, each verified for this announcement, cannot both be true."""
    if digits_of(first).startswith(digits_of(second)):
        return None
    return Contradiction(announcement, announcement_key, first, second)


def digits_of(attested: Attested) -> str:
    """The digits that were attested; of a CET's opening not all of them."""
    return price_digits(attested.price) if isinstance(attested, Attestation) else attested.digits


def price_range(attested: Attested) -> tuple[int, int]:
    """The lowest and the highest price that it may mean."""
    digits = digits_of(attested)
    return int(digits.ljust(DIGITS, "0"), 2), int(digits.ljust(DIGITS, "1"), 2)


def shown(attested: Attested) -> str:
    low, high = price_range(attested)
    return f"{low}" if low == high else f"{low} to {high}"


def write_proof(found: Contradiction) -> bytes:
    """JSON with everything that `read_proof` checks; the oracle's answers are in it byte for byte, in hex."""
    announcement, second = found.announcement, found.second
    other = (
        {"attestation": second.raw.hex()}
        if isinstance(second, Attestation)
        else {"digits": second.digits, "scalar": second.scalar.hex()}
    )
    proof = {
        "format": FORMAT,
        "sentence": found.sentence,
        "scheme": announcement.scheme,
        "announcement_key": found.announcement_key.hex(),
        "attestation_key": announcement.key.hex(),
        "event": announcement.id,
        "announcement": announcement.raw.hex(),
        "first": {"attestation": found.first.raw.hex()},
        "second": other,
    }
    return json.dumps(proof, indent=1).encode()


def read_proof(raw: bytes) -> Contradiction:
    """What a proof proves, all of it verified, of the oracle whose keys it names: the caller compares those.

    Raises `WorldError` (bad_proof).
    """
    try:
        if len(raw) > MAX_PROOF:
            raise ValueError(f"it has {len(raw)} bytes, allowed are {MAX_PROOF}")
        return _read(json.loads(raw))
    except (ValueError, RecursionError, WorldError) as error:
        raise WorldError("bad_proof", f"the proof against the oracle does not hold: {error}") from None


def _read(proof: object) -> Contradiction:
    members = _object(proof, "the proof")
    if (form := _text(members, "format")) != FORMAT:
        raise ValueError(f"format is {form[:80]!r}, allowed is {FORMAT!r}")
    announcement_key = _bytes(members, "announcement_key")
    announcement = parse_announcement(
        _bytes(members, "announcement"),
        announcement_key=announcement_key,
        attestation_key=_bytes(members, "attestation_key"),
        scheme=_scheme(members),
    )
    if (event := _text(members, "event")) != announcement.id:
        raise ValueError(f"event is {event[:80]!r}, the announcement is that of {announcement.id}")
    first = _attestation(_object(members.get("first"), "first"), announcement)
    other = _object(members.get("second"), "second")
    second: Attested
    if "attestation" in other:
        second = _attestation(other, announcement)
    else:
        second = Opening.checked(announcement, _text(other, "digits"), _bytes(other, "scalar"))
    found = contradiction(announcement, announcement_key, first, second)
    if found is None:
        raise ValueError(f"{shown(first)} and {shown(second)} may both be true")
    return found


def _attestation(members: Mapping[str, object], announcement: Announcement) -> Attestation:
    attestation = parse_attestation(_bytes(members, "attestation"), announcement)
    if attestation is None:
        raise ValueError("attestation is an answer without one")
    return attestation


def _scheme(members: Mapping[str, object]) -> str:
    if (scheme := _text(members, "scheme")) not in SCHEMES:
        raise ValueError(f"scheme is {scheme[:80]!r}, known are {', '.join(SCHEMES)}")
    return scheme


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {str(value)[:80]!r}, allowed is an object")
    return value


def _text(members: Mapping[str, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {str(value)[:80]!r}, allowed is a string")
    return value


def _bytes(members: Mapping[str, object], name: str) -> bytes:
    try:
        return bytes.fromhex(_text(members, name))
    except ValueError as error:
        raise ValueError(f"{name} is not hex: {error}") from None
