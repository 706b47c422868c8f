"""What an oracle says, whatever its scheme: event ids, announcements, attestations, and what a scheme must offer.

Public keys and nonces of an oracle are x-only (32 bytes) and mean the point with even y. All of it is public: an
attestation's scalars are secret until the oracle publishes them, and then known to everyone.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from attrs import field, frozen

from .numbers import DIGITS, PRICE_LIMIT, tagged_hash

Point = Any
"""A libsecp256k1 public key object; cffi's types have no names that a type checker knows."""

_ID = re.compile(
    rf"/x/BitMEX/BXBT/(\d{{4}})-(\d{{2}})-(\d{{2}})T(\d{{2}}):(\d{{2}}):(\d{{2}})\.price\?n={DIGITS}", re.ASCII
)


@frozen
class Announcement:
    """An oracle's signed promise to attest a price at a time; made by a scheme's `parse_announcement` only."""

    scheme: str
    id: str
    """Also the path of the event at the oracle's HTTP server."""
    time: int
    """Seconds since 1970."""
    key: bytes
    """The oracle's attestation key, x-only."""
    nonces: tuple[bytes, ...]
    """One x-only point per binary digit of the price, highest first."""
    data: bytes = field(repr=False)
    """What the oracle signed, byte for byte; two announcements of an event are the same if this is."""
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


def event_id(time: int) -> str:
    """The id of the BTCUSD price event at `time`, seconds since 1970 (UTC)."""
    return f"/x/BitMEX/BXBT/{timestamp(time)}.price?n={DIGITS}"


def event_time(event: str) -> int:
    """Seconds since 1970 of an event id. Raises `ValueError` for anything that `event_id` does not write."""
    if match := _ID.fullmatch(event):
        year, month, day, hours, minutes, seconds = map(int, match.groups())
        if year >= 1970 and 1 <= month <= 12:
            time = ((_days(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds
            # there and back again: refuses the 31st of June and the 61st second
            if event_id(time) == event:
                return time
    raise ValueError(f"event id is {event[:80]!r}, allowed is one such as {event_id(1633384800)}")


def timestamp(time: int) -> str:
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


def price_digits(price: int) -> str:
    """The binary digits that an oracle attests for a price, highest first."""
    if price < 0:
        raise ValueError(f"price is {price}, allowed is 0 or more")
    return f"{min(price, PRICE_LIMIT - 1):0{DIGITS}b}"


def announcements_hash(announcements: Sequence[Announcement]) -> bytes:
    """What peers compare to know that they use the same announcements: of one oracle, in the contract's order."""
    if len({(a.scheme, a.key) for a in announcements}) != 1:
        raise ValueError("announcements of exactly one oracle are hashed together")
    first = announcements[0]
    events = b"".join(len(a.data).to_bytes(4, "big") + a.data for a in announcements)
    return tagged_hash("cfd/announcements", first.scheme.encode() + first.key + events)
