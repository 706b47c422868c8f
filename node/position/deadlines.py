"""What must not stay half done: a close whose signature left, and a rollover whose commit signature left.

The first is an option for the peer until the lock is spent (money safety rule 4), the second until both have revoked
the old contract (rule 3). When the peer does not finish, the commit is published, and the oracle's price settles.
"""

from __future__ import annotations

import structlog
import trio
from attrs import frozen

from node.chain.monitor import Monitor
from node.clock import Clock
from node.health import UNREPORTED, Report
from node.position.book import Positions
from node.position.commands import Command, force_close
from node.position.events import Event
from node.position.observing import lock_spender
from node.position.state import Position, State, watched_scripts
from node.supervision import Service
from protocols.errors import LocalError

CLOSE_WITHIN = 600.0
"""Seconds after our signature of a close left; when nothing that spends the lock is in a mempool then, the commit is
published."""
ROLL_WITHIN = 3600.0
"""Seconds after our commit signature of a rollover left in which it must be finished."""
BEFORE_EXPIRY = 1800
"""Seconds of the oracle's calendar before the old contract's expiry by which it must be finished."""
LOOK_EVERY = 30.0

_log = structlog.get_logger(__name__)


@frozen
class DeadlineKeeper:
    """A service: looks every 30 s, since the wall clock may be set.

    At the first look that shows something it publishes nothing: what was half done when the node went down is resumed
    by others first, if the peer is there.
    """

    positions: Service[Positions]
    monitor: Monitor
    clock: Clock
    report: Report = UNREPORTED
    close_within: float = CLOSE_WITHIN
    roll_within: float = ROLL_WITHIN
    every: float = LOOK_EVERY
    """Seconds between two looks."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        half_done: dict[tuple[bytes, int], float] = {}
        """By position and its last attempt: since when it was seen so, by trio's clock. The wall clock may be set back,
        by years."""
        with self.positions.lent() as positions:
            task_status.started()
            while True:
                now, problems = trio.current_time(), list[str]()
                live = {(each.id, len(each.attempts)): each for each in positions.all() if _half_done(each)}
                half_done = {key: half_done.get(key, now) for key in live}
                async with trio.open_nursery() as nursery:
                    for key, position in live.items():
                        nursery.start_soon(self._look, positions, position, now - half_done[key], problems)
                if problems:
                    self.report.degraded("; ".join(sorted(problems)))
                else:
                    self.report.recovered()
                self.report.beat()
                await trio.sleep(min(self.every, self.clock.wall_seconds(BEFORE_EXPIRY) / 2))

    async def _look(self, positions: Positions, position: Position, waited: float, problems: list[str]) -> None:
        try:
            closing = position.state is State.CLOSING
            reason = await self._unclosed(position, waited) if closing else self._overdue(position, waited)
            if reason is not None and waited > 0:
                after = await positions.execute(position.id, publish_unchanged(position, reason))
                if after.publishing is not None:
                    _log.warning("publishing the commit", order=position.id.hex(), reason=reason)
        except LocalError as error:
            problems.append(f"position {position.id.hex()}: {error.sentence}")

    def _overdue(self, position: Position, waited: float) -> str | None:
        """Why the commit must go out for a rollover's sake."""
        following = position.attempts[-1]
        if max(self.clock.now() - following.held_at, waited) >= self.roll_within:
            return f"the rollover to contract {following.index} was not finished within {self.roll_within:g} s"
        expiry = position.plan(following.index - 1).announcements[-1].time
        if self.clock.calendar() >= expiry - BEFORE_EXPIRY:
            return f"the rollover to contract {following.index} was not finished {BEFORE_EXPIRY} s before expiry"
        return None

    async def _unclosed(self, position: Position, waited: float) -> str | None:
        """Why the commit must go out for a close's sake."""
        assert position.lock is not None
        if max(self.clock.now() - position.closing_since, waited) < self.close_within:
            return None
        with trio.move_on_after(self.every), self.monitor.follow(watched_scripts(position)) as views:
            view = await anext(views)
            if lock_spender(position, view) is None:
                return f"nothing spent the lock within {self.close_within:g} s after our signature of the close"
        return None  # also while the chain cannot be looked at: a commit would not reach it either


def _half_done(position: Position) -> bool:
    if position.publishing is not None or position.recovered:
        return False
    return position.state in (State.CLOSING, State.ROLLING_OVER)


def publish_unchanged(seen: Position, reason: str) -> Command:
    """Unless it went on since it was seen."""

    def decide(position: Position) -> list[Event]:
        unchanged = (position.state, position.attempts) == (seen.state, seen.attempts)
        return force_close(reason)(position) if unchanged else []

    return decide
