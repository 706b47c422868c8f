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
from node.position.commands import force_close
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
    """A service: looks every 30 s, since the wall clock may be set."""

    positions: Service[Positions]
    monitor: Monitor
    clock: Clock
    report: Report = UNREPORTED
    close_within: float = CLOSE_WITHIN
    roll_within: float = ROLL_WITHIN

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.positions.lent() as positions:
            task_status.started()
            while True:
                for position in positions.all():
                    try:
                        if (reason := self._overdue(position)) or (reason := await self._unclosed(position)):
                            await positions.execute(position.id, force_close(reason))
                            _log.warning("publishing the commit", order=position.id.hex(), reason=reason)
                    except LocalError as error:
                        self.report.degraded(f"position {position.id.hex()}: {error.sentence}")
                await trio.sleep(LOOK_EVERY)

    def _overdue(self, position: Position) -> str | None:
        """Why the commit must go out for a rollover's sake."""
        if position.state is not State.ROLLING_OVER or position.recovered:
            return None
        following = position.attempts[-1]
        if self.clock.now() - following.held_at >= self.roll_within:
            return f"the rollover to contract {following.index} was not finished within {self.roll_within:g} s"
        expiry = position.plan(following.index - 1).announcements[-1].time
        if self.clock.calendar() >= expiry - BEFORE_EXPIRY:
            return f"the rollover to contract {following.index} was not finished {BEFORE_EXPIRY} s before expiry"
        return None

    async def _unclosed(self, position: Position) -> str | None:
        """Why the commit must go out for a close's sake."""
        if position.state is not State.CLOSING or position.publishing is not None or position.recovered:
            return None
        if self.clock.now() - position.closing_since < self.close_within:
            return None
        assert position.lock is not None
        with self.monitor.follow(watched_scripts(position)) as views:
            view = await anext(views)
        if view.spender(position.lock.txid, 0) is not None:
            return None
        return f"nothing spent the lock within {self.close_within:g} s after our signature of the close"
