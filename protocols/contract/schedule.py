"""Which oracle events a contract names: hourly without gap, the last one settles (contract.md)."""

import itertools
from collections.abc import Sequence

from ..errors import RemoteProtocolError
from .announcements import Scheme
from .terms import CONTRACT_HOURS

HOUR = 3600
LEAD = 120
"""Seconds by which the first event lies ahead, so that its outcome is not known while the contract is signed."""


def first_event(now: int) -> int:
    """The first full hour later than now + 2 min. All times are the oracle's calendar, seconds since 1970."""
    return (now + LEAD) // HOUR * HOUR + HOUR


def expiry(now: int) -> int:
    """24 h from now, ceiled to the full hour."""
    return -(-(now + CONTRACT_HOURS * HOUR) // HOUR) * HOUR


def contract_events(symbol: str, now: int, scheme: Scheme) -> tuple[str, ...]:
    """The events that the maker lists for a contract made now: 24 or 25 ids."""
    return tuple(scheme.event_id(symbol, time) for time in range(first_event(now), expiry(now) + 1, HOUR))


def check_events(symbol: str, event_ids: Sequence[str], scheme: Scheme, *, asked_at: int, now: int) -> tuple[int, ...]:
    """The times of the events that a maker listed between `asked_at` and `now`, by the taker's calendar.

    An hour may have begun in between, and no more: the first event is still later than two minutes after the order
    was sent, the last lies within [23 h, 25 h]. Raises RemoteProtocolError naming the rule that is broken.
    """
    try:
        symbols, times = zip(*map(scheme.parse_event, event_ids), strict=True) if event_ids else ((), ())
    except ValueError as error:
        raise _bad(str(error)) from None
    if not times:
        raise _bad("event_ids is empty, allowed are 24 or 25 events")
    if set(symbols) != {symbol}:
        raise _bad(f"event_ids are of {' and '.join(sorted(set(symbols)))}, allowed is {symbol}")
    if any(later - earlier != HOUR for earlier, later in itertools.pairwise(times)):
        raise _bad("event_ids are not hourly without a gap")
    if times[0] % HOUR:
        raise _bad(f"the first event, {event_ids[0]}, is not on a full hour")
    earliest = first_event(asked_at)
    if not earliest <= times[0] <= earliest + HOUR:
        allowed = f"{scheme.event_id(symbol, earliest)} or one hour later"
        raise _bad(f"the first event is {event_ids[0]}, allowed is {allowed}")
    if not asked_at + (CONTRACT_HOURS - 1) * HOUR <= times[-1] <= now + (CONTRACT_HOURS + 1) * HOUR:
        raise _bad(f"the last event, {event_ids[-1]}, is not between 23 h and 25 h from now")
    return times


def _bad(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_events", sentence)
