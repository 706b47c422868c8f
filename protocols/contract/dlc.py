"""The oracle scheme of the DLC specification (dlcspecs, Oracle.md), both halves: what a node checks, and what the
regtest oracle serves.

The oracle promises one nonce R per binary digit and reveals BIP340 signatures of the digits "0" and "1": s = r + e·p,
so S(i, b) = R_i + H(x(R_i) ‖ x(P) ‖ m_b)·P. Its answer is one oracle_announcement record (type 55332), followed by one
oracle_attestation record (type 55400) once the event is attested.

The specification hashes with tags; the libraries in use and the published vectors do not, and they differ in what they
hash and in two lengths. Both dialects are here, and none is guessed: the configuration names the scheme.
"""

import hashlib
import re
from collections.abc import Sequence

from attrs import frozen
from btclib_secp256k1 import ffi, keys, lib, xonly
from btclib_secp256k1.context import ctx

from ..errors import WorldError
from . import schnorr, tlv
from .announcements import Announcement, Point, lift, price_digits
from .numbers import DIGITS, ORDER, tagged_hash
from .symbols import SYMBOLS

ANNOUNCEMENT, EVENT, DIGIT_DECOMPOSITION, ATTESTATION = 55332, 55330, 55306, 55400

_SYMBOLS = {symbol.name.lower(): symbol for symbol in SYMBOLS.values()}
_ID = re.compile(rf"({'|'.join(_SYMBOLS)})(0|[1-9][0-9]{{0,9}})", re.ASCII)


@frozen
class Descriptor:
    """A digit_decomposition_event_descriptor: the outcome is the number of these digits, times 10 to the precision."""

    base: int
    is_signed: bool
    unit: str
    precision: int
    digits: int


@frozen
class Event:
    """An oracle_event."""

    nonces: tuple[bytes, ...]
    maturity: int
    """Seconds since 1970; the oracle attests no earlier."""
    descriptor: Descriptor
    id: str


@frozen
class Signed:
    """An oracle_announcement."""

    signature: bytes
    key: bytes
    """x-only, of the attestation; in the specification it signs the announcement, too."""
    event: Event
    event_value: bytes
    """The bytes of the event's record, without its type and length."""


@frozen
class Dlc:
    """The scheme as `announcements.Scheme` wants it, in one of its dialects."""

    name: str
    tagged: bool
    """As in the specification: BIP340's tagged hashes, over an event's whole record. Else as in the libraries: SHA-256,
    over the record's value; a base of two bytes, and a count before the outcomes."""
    media_type: str = "application/octet-stream"

    def event_id(self, symbol: str, time: int) -> str:
        return f"{symbol.lower()}{time}"

    def parse_event(self, event: str) -> tuple[str, int]:
        match = _ID.fullmatch(event)
        if match is None or int(match[2]) >= 1 << 32:
            raise ValueError(
                f"event id is {event[:80]!r}, allowed is one such as {self.event_id('BTCUSD', 1633384800)}"
            )
        return _SYMBOLS[match[1]].name, int(match[2])

    def path(self, event: str) -> str:
        return f"/dlc/{event}"

    # --- what a node checks

    def parse_announcement(self, raw: bytes, *, announcement_key: bytes, attestation_key: bytes) -> Announcement:
        """Checks the signature, the id against the time, the descriptor, and every nonce.

        The specification has the attestation key sign announcements: such an oracle is configured with that key twice.
        """
        try:
            record, _ = _records(raw)
            signed = self.read_announcement(record)
            self._check(signed, announcement_key, attestation_key)
            _, time = self.parse_event(signed.event.id)
            if signed.event.maturity != time:
                raise ValueError(f"event_maturity_epoch is {signed.event.maturity}, allowed is {time}")
        except ValueError as error:
            raise WorldError("bad_announcement", f"the oracle's announcement is refused: {error}") from None
        data = tlv.record(ANNOUNCEMENT, record.data)
        event = signed.event
        return Announcement(self.name, event.id, time, attestation_key, event.nonces, data, raw)

    def _check(self, signed: Signed, announcement_key: bytes, attestation_key: bytes) -> None:
        if signed.key != attestation_key:
            raise ValueError(f"oracle_public_key is {signed.key.hex()}, allowed is {attestation_key.hex()}")
        if not schnorr.verify(announcement_key, self.announcement_digest(signed.event_value), signed.signature):
            raise ValueError("its signature is not by the oracle's announcement key")
        event, said = signed.event, signed.event.descriptor
        for field, value, allowed in (
            ("base", said.base, 2),
            ("is_signed", said.is_signed, False),
            ("precision", said.precision, 0),
            ("nb_digits", said.digits, DIGITS),
            ("nb_nonces", len(event.nonces), DIGITS),
        ):
            if value != allowed:
                raise ValueError(f"{field} is {value}, allowed is {allowed}")
        for name, x in (("attestation key", attestation_key), *(("nonce", nonce) for nonce in event.nonces)):
            if not xonly.pubkey_verify(x):
                raise ValueError(f"{name} {x.hex()} is not the x of a point")
        # a nonce used twice, or the key itself as one, gives the key away with the first attestation
        if len({*event.nonces, attestation_key}) != DIGITS + 1:
            raise ValueError("its nonces are not distinct")

    def read_attestation(self, raw: bytes, announcement: Announcement) -> tuple[int, tuple[bytes, ...]] | None:
        try:
            _, attestation = _records(raw)
            return None if attestation is None else self._attested(attestation, announcement)
        except ValueError as error:
            raise WorldError(
                "bad_attestation", f"the oracle's attestation of {announcement.id} is refused: {error}"
            ) from None

    def _attested(self, attestation: tlv.Reader, announcement: Announcement) -> tuple[int, tuple[bytes, ...]]:
        event = attestation.text("event_id")
        if event != announcement.id:
            raise ValueError(f"event_id is {event[:80]!r}, allowed is {announcement.id!r}")
        key = attestation.take(32, "oracle_public_key")
        if key != announcement.key:
            raise ValueError(f"oracle_public_key is {key.hex()}, allowed is {announcement.key.hex()}")
        _count(attestation, "nb_signatures")
        signatures = [attestation.take(64, f"signature {index}") for index in range(DIGITS)]
        for index, (signature, nonce) in enumerate(zip(signatures, announcement.nonces, strict=True)):
            if signature[:32] != nonce:
                raise ValueError(f"signature {index} is not made with the announced nonce")
        if not self.tagged:
            _count(attestation, "nb_outcomes")
        outcomes = [attestation.text(f"outcome {index}") for index in range(DIGITS)]
        for index, outcome in enumerate(outcomes):
            if outcome not in ("0", "1"):
                raise ValueError(f"outcome {index} is {outcome[:80]!r}, allowed is 0 or 1")
        attestation.end("oracle_attestation")
        return int("".join(outcomes), 2), tuple(signature[32:] for signature in signatures)

    def digit_point(self, announcement: Announcement, index: int, digit: int) -> Point:
        return signature_point(announcement.key, announcement.nonces[index], self.outcome_digest(str(digit)))

    def weight(self, announcement: Announcement, index: int) -> int:
        """None is needed: the challenge binds the nonce, so no combination of scalars opens another digit."""
        return 1

    # --- records

    def read_announcement(self, record: tlv.Reader) -> Signed:
        """The value of an oracle_announcement, with any number of digits. Raises `ValueError`; checks no signature."""
        signature = record.take(64, "announcement_signature")
        key = record.take(32, "oracle_public_key")
        event = record.record(EVENT, "oracle_event")
        record.end("oracle_announcement")
        nonces = tuple(event.take(32, f"nonce {index}") for index in range(event.uint(2, "nb_nonces")))
        maturity = event.uint(4, "event_maturity_epoch")
        said = event.record(DIGIT_DECOMPOSITION, "event_descriptor")
        descriptor = Descriptor(
            base=said.bigsize("base") if self.tagged else said.uint(2, "base"),
            is_signed=said.flag("is_signed"),
            unit=said.text("unit"),
            precision=said.int32("precision"),
            digits=said.uint(2, "nb_digits"),
        )
        said.end("event_descriptor")
        name = event.text("event_id")
        event.end("oracle_event")
        return Signed(signature, key, Event(nonces, maturity, descriptor, name), event.data)

    def write_event(self, event: Event) -> bytes:
        """The value of an oracle_event."""
        said = event.descriptor
        descriptor = (
            (tlv.bigsize(said.base) if self.tagged else said.base.to_bytes(2, "big"))
            + bytes([said.is_signed])
            + tlv.text(said.unit)
            + said.precision.to_bytes(4, "big", signed=True)
            + said.digits.to_bytes(2, "big")
        )
        return (
            len(event.nonces).to_bytes(2, "big")
            + b"".join(event.nonces)
            + event.maturity.to_bytes(4, "big")
            + tlv.record(DIGIT_DECOMPOSITION, descriptor)
            + tlv.text(event.id)
        )

    def announcement_digest(self, event_value: bytes) -> bytes:
        """What an announcement's signature signs."""
        if self.tagged:
            return tagged_hash("DLC/oracle/announcement/v0", tlv.record(EVENT, event_value))
        return hashlib.sha256(event_value).digest()

    def outcome_digest(self, outcome: str) -> bytes:
        """What an attestation's signature of an outcome signs; `outcome` is in normal form C."""
        data = outcome.encode()
        return tagged_hash("DLC/oracle/attestation/v0", data) if self.tagged else hashlib.sha256(data).digest()

    # --- what the oracle of a regtest world serves

    def announce(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes
    ) -> bytes:
        symbol, time = self.parse_event(event)
        if len(nonces) != DIGITS:
            raise ValueError(f"an event has {DIGITS} nonces, not {len(nonces)}")
        value = self.write_event(
            Event(
                nonces=tuple(xonly.from_prvkey(nonce)[0] for nonce in nonces),
                maturity=time,
                descriptor=Descriptor(base=2, is_signed=False, unit=SYMBOLS[symbol].unit, precision=0, digits=DIGITS),
                id=event,
            )
        )
        signature = schnorr.sign(announcement_secret, self.announcement_digest(value))
        key = xonly.from_prvkey(attestation_secret)[0]
        return tlv.record(ANNOUNCEMENT, signature + key + tlv.record(EVENT, value))

    def attest(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes, price: int
    ) -> bytes:
        digits = price_digits(price)
        signatures = [
            sign_with_nonce(attestation_secret, nonce, self.outcome_digest(digit))
            for nonce, digit in zip(nonces, digits, strict=True)
        ]
        count = DIGITS.to_bytes(2, "big")
        value = (
            tlv.text(event)
            + xonly.from_prvkey(attestation_secret)[0]
            + count
            + b"".join(signatures)
            + (b"" if self.tagged else count)
            + b"".join(map(tlv.text, digits))
        )
        announcement = self.announce(event, nonces, attestation_secret, announcement_secret)
        return announcement + tlv.record(ATTESTATION, value)


DLC = Dlc("dlc", tagged=True)
DLC_SHA256 = Dlc("dlc-sha256", tagged=False)


def signature_point(key: bytes, nonce: bytes, message: bytes) -> Point:
    """R + H(x(R) ‖ x(P) ‖ m)·P, new: s·G of the BIP340 signature (R, s) of a 32-byte digest by P. All x-only."""
    point = ffi.new("secp256k1_pubkey *", lift(key)[0])
    # variable time is fine: all of it is public
    if lib.secp256k1_ec_pubkey_tweak_mul(ctx, point, _challenge(nonce, key, message)):
        total = ffi.new("secp256k1_pubkey *")
        if lib.secp256k1_ec_pubkey_combine(ctx, total, (lift(nonce), point), 2):
            return total
    raise WorldError("bad_announcement", f"nonce {nonce.hex()} cancels the oracle's key")


def sign_with_nonce(secret: bytes, nonce: bytes, message: bytes) -> bytes:
    """The BIP340 signature of a 32-byte digest with a nonce that was promised; both secrets are taken as of even y.

    A second message with the same nonce gives the secret away.
    """
    key, nonce_point = xonly.from_prvkey(secret)[0], xonly.from_prvkey(nonce)[0]
    product = keys.prvkey_tweak_mul(schnorr.even(secret), _challenge(nonce_point, key, message))
    return nonce_point + keys.prvkey_tweak_add(schnorr.even(nonce), product)


def _records(raw: bytes) -> tuple[tlv.Reader, tlv.Reader | None]:
    """The announcement in an oracle's answer, and the attestation if there is one."""
    answer = tlv.Reader(raw)
    announcement = answer.record(ANNOUNCEMENT, "oracle_announcement")
    attestation = None if answer.done else answer.record(ATTESTATION, "oracle_attestation")
    answer.end("the answer")
    return announcement, attestation


def _challenge(nonce: bytes, key: bytes, message: bytes) -> bytes:
    number = int.from_bytes(tagged_hash("BIP0340/challenge", nonce + key + message), "big")
    return (number % ORDER).to_bytes(32, "big")


def _count(reader: tlv.Reader, field: str) -> None:
    if (count := reader.uint(2, field)) != DIGITS:
        raise ValueError(f"{field} is {count}, allowed is {DIGITS}")
