"""The node's two clocks, as one injected object.

`now` is the wall clock in seconds since 1970: staleness, timeouts between people and peers. `calendar` is the time
that the oracle's events live in: the same, except on a regtest world whose hours pass faster (``cfdnode regtest
--hour SECONDS``), where ``calendar = anchor + (now − anchor) · 3600 / hour``. Deadlines of tasks belong to trio's own
clock, which tests replace.
"""

import time
from collections.abc import Callable

from attrs import frozen


@frozen
class Clock:
    hour: float = 3600.0
    """Seconds that an hour of the calendar takes."""
    anchor: float = 0.0
    """The moment (seconds since 1970) at which calendar and wall clock agree."""
    wall: Callable[[], float] = time.time

    def now(self) -> float:
        """Seconds since 1970 on the wall clock."""
        return self.wall()

    def calendar(self) -> int:
        """Whole seconds since 1970 in the oracle's calendar."""
        return int(self.anchor + (self.wall() - self.anchor) * (3600.0 / self.hour))

    def wall_seconds(self, calendar_seconds: float) -> float:
        """How many wall-clock seconds a span of the calendar takes."""
        return calendar_seconds * self.hour / 3600.0


SHORTEST = 0.001
"""Seconds; a pause that is shorter than the clocks' resolution would be no pause at all."""


def step(left: float, longest: float) -> float:
    """Seconds to sleep on the way to a moment that is `left` seconds away: the wall clock may be set, so it is looked
    at again after `longest` at the latest, and `longest` after the moment as well."""
    return min(max(left, SHORTEST), longest) if left > 0 else longest
