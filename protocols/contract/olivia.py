"""The oracle scheme olivia-v1, both halves: what a node checks, and what the regtest oracle serves.

The oracle promises one nonce R per binary digit and reveals s = p + (b + 1)·r, so S(i, b) = P + (b + 1)·R_i. Plain
sums of these are forgeable: scaling revealed scalars by 1, 2 or ½ opens digit prefixes of other prices. Hence every
digit is weighted by a hash of the whole event and its index (contract.md, "Oracle").
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from attrs import frozen
from btclib_secp256k1 import ffi, keys, lib, ssa, xonly
from btclib_secp256k1.context import ctx

from ..errors import WorldError
from . import schnorr
from .announcements import Announcement, Point, lift, price_digits
from .numbers import DIGITS, ORDER, PRICE_LIMIT, tagged_hash
from .symbols import SYMBOLS

_SIGNED = b"DLC/announcement".ljust(64, b"\0")
_HEX32 = re.compile(r"[0-9a-f]{64}")
_SYMBOLS = {symbol.index: symbol.name for symbol in SYMBOLS.values()}
_ID = re.compile(
    rf"/x/BitMEX/({'|'.join(_SYMBOLS)})/(\d{{4}})-(\d{{2}})-(\d{{2}})T(\d{{2}}):(\d{{2}}):(\d{{2}})\.price\?n={DIGITS}",
    re.ASCII,
)


@frozen
class Olivia:
    """The scheme as `announcements.Scheme` wants it."""

    name: str = "olivia-v1"
    media_type: str = "application/json"

    def event_id(self, symbol: str, time: int) -> str:
        return f"/x/BitMEX/{SYMBOLS[symbol].index}/{_timestamp(time)}.price?n={DIGITS}"

    def parse_event(self, event: str) -> tuple[str, int]:
        if match := _ID.fullmatch(event):
            index, *moment = match.groups()
            year, month, day, hours, minutes, seconds = map(int, moment)
            if year >= 1970 and 1 <= month <= 12:
                time = ((_days(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds
                # there and back again: refuses the 31st of June and the 61st second
                if self.event_id(_SYMBOLS[index], time) == event:
                    return _SYMBOLS[index], time
        raise ValueError(f"event id is {event[:80]!r}, allowed is one such as {self.event_id('BTCUSD', 1633384800)}")

    def path(self, event: str) -> str:
        return event

    def parse_announcement(self, raw: bytes, *, announcement_key: bytes, attestation_key: bytes) -> Announcement:
        """Checks the signature, the id against the time, the digits, and every nonce."""
        try:
            return self._announcement(raw, announcement_key, attestation_key)
        except (ValueError, RecursionError) as error:
            raise WorldError("bad_announcement", f"the oracle's announcement is refused: {error}") from None

    def _announcement(self, raw: bytes, announcement_key: bytes, attestation_key: bytes) -> Announcement:
        announcement = _object(_object(json.loads(raw), "the answer")["announcement"], "announcement")
        event = _object(announcement["oracle_event"], "oracle_event")
        _equal("oracle_event.encoding", event["encoding"], "json")
        data = _text(event["data"], "oracle_event.data").encode()
        signature = bytes.fromhex(_text(announcement["signature"], "signature"))
        if not ssa.verify(_SIGNED + data, announcement_key, signature):
            raise ValueError("its signature is not by the oracle's announcement key")
        said = _object(json.loads(data), "oracle_event.data")
        event_name = _text(said["id"], "id")
        _, time = self.parse_event(event_name)
        _equal("expected-outcome-time", said["expected-outcome-time"], _timestamp(time))
        descriptor = _object(said["descriptor"], "descriptor")
        _equal("descriptor.type", descriptor["type"], "digit-decomposition")
        _equal("descriptor.n_digits", descriptor["n_digits"], DIGITS)
        # Olivia writes no base: its digits are binary and unsigned unless it says otherwise
        _equal("descriptor.base", descriptor.get("base", 2), 2)
        _equal("descriptor.is_signed", descriptor.get("is_signed", False), False)
        scheme = _object(_object(said["schemes"], "schemes")[self.name], f"schemes.{self.name}")
        nonces = _hex_list(scheme["nonces"], "nonces")
        for name, x in (("attestation key", attestation_key), *(("nonce", nonce) for nonce in nonces)):
            if not xonly.pubkey_verify(x):
                raise ValueError(f"{name} {x.hex()} is not the x of a point")
        # a nonce used twice, or the key itself as one, gives the key away with the first attestation
        if len({*nonces, attestation_key}) != DIGITS + 1:
            raise ValueError("its nonces are not distinct")
        announced = Announcement(self.name, event_name, time, attestation_key, nonces, data, raw)
        for index in range(DIGITS):
            self.digit_point(announced, index, 1)  # P + 2·R may be infinity; P + R may not, both have an even y
        return announced

    def read_attestation(self, raw: bytes, announcement: Announcement) -> tuple[int, tuple[bytes, ...]] | None:
        try:
            body = _object(json.loads(raw), "the answer")
            if body["attestation"] is None:
                return None
            attestation = _object(body["attestation"], "attestation")
            outcome = _text(attestation["outcome"], "outcome")
            if not re.fullmatch(r"0|[1-9][0-9]{0,14}", outcome, re.ASCII):
                raise ValueError(f"outcome is {outcome[:80]!r}, allowed is a whole number")
            scheme = _object(_object(attestation["schemes"], "schemes")[self.name], f"schemes.{self.name}")
            return min(int(outcome), PRICE_LIMIT - 1), _hex_list(scheme["scalars"], "scalars")
        except (ValueError, RecursionError) as error:
            raise WorldError(
                "bad_attestation", f"the oracle's attestation of {announcement.id} is refused: {error}"
            ) from None

    def digit_point(self, announcement: Announcement, index: int, digit: int) -> Point:
        key, nonce = lift(announcement.key), lift(announcement.nonces[index])
        terms = (key, nonce, nonce) if digit else (key, nonce)
        point = ffi.new("secp256k1_pubkey *")
        if not lib.secp256k1_ec_pubkey_combine(ctx, point, terms, len(terms)):
            raise WorldError("bad_announcement", f"nonce {index} of {announcement.id} cancels the oracle's key")
        return point

    def weight(self, announcement: Announcement, index: int) -> int:
        return _weights(announcement.key, announcement.nonces)[index]

    # --- what the oracle of a regtest world serves

    def announce(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes
    ) -> bytes:
        return self._body(event, nonces, announcement_secret, None)

    def attest(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes, price: int
    ) -> bytes:
        key = schnorr.even(attestation_secret)
        scalars = []
        for nonce, digit in zip(map(schnorr.even, nonces), price_digits(price), strict=True):
            scalar = keys.prvkey_tweak_add(key, nonce)
            scalars.append(keys.prvkey_tweak_add(scalar, nonce) if digit == "1" else scalar)
        attestation: dict[str, object] = {
            "outcome": str(price),
            "schemes": {self.name: {"scalars": [scalar.hex() for scalar in scalars]}},
            "time": _timestamp(self.parse_event(event)[1]),
        }
        return self._body(event, nonces, announcement_secret, attestation)

    def _body(
        self, event: str, nonces: Sequence[bytes], announcement_secret: bytes, attestation: dict[str, object] | None
    ) -> bytes:
        if len(nonces) != DIGITS:
            raise ValueError(f"an event has {DIGITS} nonces, not {len(nonces)}")
        said = {
            "id": event,
            "expected-outcome-time": _timestamp(self.parse_event(event)[1]),
            "descriptor": {"type": "digit-decomposition", "is_signed": False, "n_digits": DIGITS, "unit": None},
            "schemes": {self.name: {"nonces": [xonly.from_prvkey(nonce)[0].hex() for nonce in nonces]}},
        }
        data = json.dumps(said, separators=(",", ":"))
        signature = schnorr.sign(announcement_secret, _SIGNED + data.encode())
        announcement = {"oracle_event": {"encoding": "json", "data": data}, "signature": signature.hex()}
        return json.dumps({"announcement": announcement, "attestation": attestation}, separators=(",", ":")).encode()


OLIVIA = Olivia()


@lru_cache(maxsize=256)
def _weights(key: bytes, nonces: tuple[bytes, ...]) -> tuple[int, ...]:
    event = key + b"".join(nonces)
    hashes = [tagged_hash("cfd/olivia-digit", event + bytes([index])) for index in range(len(nonces))]
    weights = tuple(int.from_bytes(h, "big") % ORDER for h in hashes)
    if 0 in weights:
        raise WorldError("bad_announcement", "a digit's weight is zero")
    return weights


def _timestamp(time: int) -> str:
    """Seconds since 1970 as the oracle writes them, such as 2021-10-04T22:00:00."""
    days, seconds = divmod(time, 86_400)
    year = 1970 + days // 366
    while _days(year + 1, 1, 1) <= days:
        year += 1
    month = max(m for m in range(1, 13) if _days(year, m, 1) <= days)
    day = days - _days(year, month, 1) + 1
    return f"{year:04}-{month:02}-{day:02}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the Gregorian calendar."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    months = (31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    before = year - 1
    return before * 365 + before // 4 - before // 100 + before // 400 - 719_162 + sum(months[: month - 1]) + day - 1


# Reading JSON of unknown shape: every refusal is a ValueError that names the field.


class _Object(dict[str, object]):
    """A JSON object in which a missing member reads as null, so that one check refuses both."""

    def __missing__(self, key: str) -> object:
        return None


def _object(value: object, field: str) -> _Object:
    if not isinstance(value, dict):
        raise ValueError(f"{field} is {_shown(value)}, allowed is an object")
    return _Object(value)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field} is {_shown(value)}, allowed is a string")
    return value


def _equal(field: str, value: object, allowed: object) -> None:
    if value != allowed or type(value) is not type(allowed):
        raise ValueError(f"{field} is {_shown(value)}, allowed is {allowed!r}")


def _hex_list(value: object, field: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) != DIGITS:
        raise ValueError(f"{field} is {_shown(value)}, allowed is a list of {DIGITS}")
    items = [_text(item, field) for item in value]
    for item in items:
        if not _HEX32.fullmatch(item):
            raise ValueError(f"{field} has {_shown(item)}, allowed are 64 hex digits")
    return tuple(map(bytes.fromhex, items))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
