"""The oracle as a contract uses it: anticipate what it may attest, check what it did attest, open CETs with it.

Everything here is the same for every scheme; `SCHEMES` names those there are, and each has a module of its own.
"""

from collections.abc import Mapping

from btclib_secp256k1 import ffi, keys, lib
from btclib_secp256k1.context import ctx

from ..errors import LocalError, WorldError
from .announcements import (
    Announcement,
    Attestation,
    Point,
    Scheme,
    announcements_hash,
    check_nonces,
    price_digits,
)
from .dlc import DLC, DLC_SHA256
from .numbers import DIGITS, ORDER
from .olivia import OLIVIA

__all__ = [
    "DLC",
    "DLC_SHA256",
    "OLIVIA",
    "SCHEMES",
    "Announcement",
    "Anticipation",
    "Attestation",
    "Scheme",
    "announcements_hash",
    "check_nonces",
    "opening_scalar",
    "parse_announcement",
    "parse_attestation",
    "price_digits",
    "scheme_named",
]

SCHEMES: Mapping[str, Scheme] = {each.name: each for each in (DLC, DLC_SHA256, OLIVIA)}


def scheme_named(name: str) -> Scheme:
    """Raises `LocalError` for a scheme that this node does not know."""
    if (scheme := SCHEMES.get(name)) is None:
        raise LocalError("unknown_scheme", f"the oracle's scheme is {name[:80]!r}, known are {', '.join(SCHEMES)}")
    return scheme


def parse_announcement(raw: bytes, *, announcement_key: bytes, attestation_key: bytes, scheme: str) -> Announcement:
    """The announcement in an oracle's HTTP answer, checked in full; both keys are x-only, `scheme` is a name.

    The caller compares `id` with the event it asked for. Raises `WorldError` (bad_announcement).
    """
    return scheme_named(scheme).parse_announcement(
        raw, announcement_key=announcement_key, attestation_key=attestation_key
    )


def parse_attestation(raw: bytes, announcement: Announcement) -> Attestation | None:
    """The attestation of an announced event in the oracle's answer; None if it is not attested yet.

    Every scalar is verified against its point, so what is returned opens what it should, whatever else the answer
    says. Raises `WorldError` (bad_attestation).
    """
    scheme = SCHEMES[announcement.scheme]
    claimed = scheme.read_attestation(raw, announcement)
    if claimed is None:
        return None
    price, scalars = claimed
    for index, (scalar, digit) in enumerate(zip(scalars, price_digits(price), strict=True)):
        point = scheme.digit_point(announcement, index, int(digit))
        if not keys.prvkey_verify(scalar) or keys.pubkey_from_prvkey(scalar) != keys.serialize(point):
            raise WorldError(
                "bad_attestation",
                f"the oracle's attestation of {announcement.id} is refused: "
                f"scalar {index} is not that of price {price}",
            )
    return Attestation(announcement.id, price, scalars, raw)


def opening_scalar(attestation: Attestation, announcement: Announcement, digits: str) -> bytes:
    """t = Σ h_i·s_i for the first digits of the attested price: opens what was encrypted to their `point`."""
    if not digits or not price_digits(attestation.price).startswith(digits):
        raise ValueError(f"the attested price {attestation.price} does not begin with the digits {digits!r}")
    scheme = SCHEMES[announcement.scheme]
    total = sum(
        scheme.weight(announcement, index) * int.from_bytes(attestation.scalars[index], "big")
        for index in range(len(digits))
    )
    return (total % ORDER).to_bytes(32, "big")


class Anticipation:
    """The points of one event that CET signatures are encrypted to, each computed once.

    The tables depend on the event alone, so they can be built ahead of any contract. Not for use by two threads at
    once.
    """

    def __init__(self, announcement: Announcement) -> None:
        self.announcement = announcement
        self._scheme = SCHEMES[announcement.scheme]
        self._digit_points: dict[tuple[int, str], Point] = {}
        self._sums: dict[str, Point] = {}
        self._points: dict[str, bytes] = {}

    def point(self, digits: str) -> bytes:
        """T = Σ h_i·S(i, b_i), 33 bytes, for the prices that begin with `digits` (at least one)."""
        point = self._points.get(digits)
        if point is None:
            if not 1 <= len(digits) <= DIGITS or set(digits) - {"0", "1"}:
                raise ValueError(f"digits are {digits!r}, allowed are 1 to {DIGITS} of 0 and 1")
            point = self._points[digits] = keys.serialize(self._sum(digits))
        return point

    def _sum(self, digits: str) -> Point:
        last = self._digit_point(len(digits) - 1, digits[-1])
        if len(digits) == 1:
            return last
        total = self._sums.get(digits)
        if total is None:
            total = self._sums[digits] = ffi.new("secp256k1_pubkey *")
            terms = (self._sum(digits[:-1]), last)
            if not lib.secp256k1_ec_pubkey_combine(ctx, total, terms, 2):
                raise WorldError("bad_announcement", f"the points of {self.announcement.id} cancel each other")
        return total

    def _digit_point(self, index: int, digit: str) -> Point:
        point = self._digit_points.get((index, digit))
        if point is None:
            point = self._scheme.digit_point(self.announcement, index, int(digit))
            weight = self._scheme.weight(self.announcement, index)
            # variable time is fine: weights and points are public
            if weight != 1 and not lib.secp256k1_ec_pubkey_tweak_mul(ctx, point, weight.to_bytes(32, "big")):
                raise WorldError("bad_announcement", f"the weight of digit {index} is zero")
            self._digit_points[index, digit] = point
        return point
