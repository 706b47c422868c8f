"""What an oracle says, whatever its scheme: announcements, attestations, and what a scheme must offer.

Public keys and nonces of an oracle are x-only (32 bytes) and mean the point with even y. All of it is public: an
attestation's scalars are secret until the oracle publishes them, and then known to everyone.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from attrs import field, frozen
from btclib_secp256k1 import keys

from ..errors import WorldError
from .numbers import DIGITS, PRICE_LIMIT, tagged_hash

Point = Any
"""A libsecp256k1 public key object; cffi's types have no names that a type checker knows."""


@frozen(cache_hash=True)  # the points of its digits are kept by it
class Announcement:
    """An oracle's signed promise to attest a price at a time; made by a scheme's `parse_announcement` only."""

    scheme: str
    id: str
    time: int
    """Seconds since 1970."""
    key: bytes
    """The oracle's attestation key, x-only."""
    nonces: tuple[bytes, ...]
    """One x-only point per binary digit of the price, highest first."""
    data: bytes = field(repr=False)
    """What peers hash, byte for byte: Olivia's signed string, the other schemes' whole record. Two announcements of an
    event are the same if this is."""
    raw: bytes = field(repr=False, eq=False)
    """The whole answer as it was received, to be kept for ever."""

    @property
    def digits(self) -> int:
        return len(self.nonces)


@frozen
class Attestation:
    """The price of an event, with the scalars that open what was encrypted to it; every scalar was verified."""

    id: str
    price: int
    """A whole number within the digits; a market price above them is attested as their highest value."""
    scalars: tuple[bytes, ...] = field(repr=False)
    raw: bytes = field(repr=False, eq=False)


class Scheme(Protocol):
    """How an oracle commits to digits and reveals them: all that differs from one kind of oracle to the next."""

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...

    @property
    def media_type(self) -> str:
        """Of the oracle's answers over HTTP."""
        ...

    def event_id(self, symbol: str, time: int) -> str:
        """The id of a contract symbol's price event at `time`, seconds since 1970 (UTC)."""
        ...

    def parse_event(self, event: str) -> tuple[str, int]:
        """The symbol and the time of an event id. Raises `ValueError` for anything that `event_id` does not write."""
        ...

    def path(self, event: str) -> str:
        """Where an oracle's HTTP server answers for the event of this id."""
        ...

    def parse_announcement(self, raw: bytes, *, announcement_key: bytes, attestation_key: bytes) -> Announcement:
        """The announcement in an oracle's answer; raises `WorldError` (bad_announcement) unless all of it holds."""
        ...

    def read_attestation(self, raw: bytes, announcement: Announcement) -> tuple[int, tuple[bytes, ...]] | None:
        """The price and scalars that the answer claims, not yet verified; None if it holds no attestation yet."""
        ...

    def digit_point(self, announcement: Announcement, index: int, digit: int) -> Point:
        """S(i, b), new: the point whose logarithm the oracle reveals if digit `index` is `digit`."""
        ...

    def weight(self, announcement: Announcement, index: int) -> int:
        """h_i: what S(i, b) and its scalar are multiplied by before they are summed."""
        ...

    def announce(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes
    ) -> bytes:
        """A regtest oracle's answer for the event of this id before it is attested.

        Secrets are 32-byte scalars; the nonces are one per digit, and serve no other event and no other scheme.
        """
        ...

    def attest(
        self, event: str, nonces: Sequence[bytes], attestation_secret: bytes, announcement_secret: bytes, price: int
    ) -> bytes:
        """The same answer with the attested `price`, USD ≥ 0; at or above 2²⁰ the digits are those of 2²⁰ − 1.

        Attesting two prices of one event gives the attestation secret away.
        """
        ...


@lru_cache(maxsize=1024)
def lift(x: bytes) -> Point:
    """The point with this x and even y; shared, so not to be changed. Raises `ValueError` if there is none."""
    return keys.parse(b"\x02" + x)


def price_digits(price: int) -> str:
    """The binary digits that an oracle attests for a price, highest first."""
    if price < 0:
        raise ValueError(f"price is {price}, allowed is 0 or more")
    return f"{min(price, PRICE_LIMIT - 1):0{DIGITS}b}"


def check_nonces(announcements: Sequence[Announcement]) -> None:
    """Refuse events of one contract that share a nonce: what opens a digit of the one would open it in the other.

    Raises `WorldError` (bad_announcement).
    """
    named: dict[bytes, str] = {}
    for announcement in announcements:
        for nonce in announcement.nonces:
            other = named.setdefault(nonce, announcement.id)
            if other != announcement.id:
                sentence = f"the oracle uses one nonce for {other} and {announcement.id}"
                raise WorldError("bad_announcement", sentence)


def announcements_hash(announcements: Sequence[Announcement]) -> bytes:
    """What peers compare to know that they use the same announcements: of one oracle, in the contract's order."""
    if len({(a.scheme, a.key) for a in announcements}) != 1:
        raise ValueError("announcements of exactly one oracle are hashed together")
    first = announcements[0]
    events = b"".join(len(a.data).to_bytes(4, "big") + a.data for a in announcements)
    return tagged_hash("cfd/announcements", first.scheme.encode() + first.key + events)
