"""The taker's schedule: every position that may be rolled over is, by itself, and an unfinished rollover is finished.

Times of the schedule are the oracle's calendar; that an unfinished one is tried every minute is the wall clock's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog
import trio
from attrs import Factory, define, field, frozen

from node.clock import Clock, step
from node.config import RolloverTable
from node.errors import Conflict, NotFound
from node.health import UNREPORTED, Report, wait_beating
from node.network.connection import Connection
from node.network.conversation import speak
from node.position.book import Positions
from node.position.commands import RefusedCommand
from node.position.rolling import check_rollable, fail_rollover
from node.position.state import Position, State
from node.rollover import RolloverNode
from protocols import rollover
from protocols.contract.rolling import START_FROM, START_UNTIL, check_start, funding_for
from protocols.contract.schedule import HOUR, expiry
from protocols.contract.transactions import ContractPlan
from protocols.errors import CodedError, LocalError, Refused, WorldError

TRY_EVERY = 300
"""Seconds of the calendar between two tries of a rollover that binds nobody yet."""
FINISH_EVERY = 60.0
"""Seconds on the wall clock between two tries to finish one; another one comes when the maker is back."""
AT_ONCE = 8
"""With one maker, which has a limit of its own."""
LOOK_EVERY = 30.0
"""Seconds at most: the wall clock may be set, or the machine sleep."""

PAUSE = 2.0
"""Seconds between two looks whether the oracle and the exchange are back."""

log = structlog.get_logger("rollover")


@frozen
class Try:
    """The last one of a position."""

    at: float
    """On the wall clock."""
    calendar: int
    connection: Connection


@define(eq=False)
class Schedule:
    node: RolloverNode
    table: RolloverTable
    connection: Callable[[bytes], Connection | None]
    """To a maker, if it is up."""
    finish_every: float = FINISH_EVERY
    _tries: dict[bytes, Try] = field(init=False, factory=dict)
    _delays: dict[bytes, int] = field(init=False, factory=dict)
    """By position how many seconds of the calendar later than it may it begins: many may at the same moment."""
    _turns: defaultdict[bytes, trio.CapacityLimiter] = field(init=False)
    """By maker."""
    _wake: trio.Event = field(init=False, default=Factory(trio.Event))

    def __attrs_post_init__(self) -> None:
        self._turns = defaultdict(lambda: trio.CapacityLimiter(AT_ONCE))

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """A service; its API is where rollovers run."""
        with self.node.setup.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notice, positions)
                task_status.started(nursery)
                while True:
                    self._wake = trio.Event()
                    pause = LOOK_EVERY
                    for position in positions.all():
                        wait = self._wait(position)
                        if wait is not None and wait <= 0:
                            self._start(nursery, position)
                        elif wait is not None:
                            pause = min(pause, step(wait, LOOK_EVERY))
                    await wait_beating(self._wake, report, pause)

    async def _notice(self, positions: Positions) -> None:
        async for _ in positions.changed.changes():
            self.wake()

    def wake(self) -> None:
        """Look again: a maker is back."""
        self._wake.set()

    # --- when -------------------------------------------------------------------------------------------------------

    def _wait(self, position: Position) -> float | None:
        """Seconds on the wall clock until it is to be tried; None while that is not a matter of time."""
        connection, last = self.connection(position.peer), self._tries.get(position.id)
        if connection is None or self.node.under_way(position.id):
            return None
        if position.recovered:
            return None
        if position.state is State.ROLLING_OVER:
            if last is None or last.connection is not connection:
                return 0
            # at the calendar's pace where its hours are short
            every = min(self.finish_every, max(1.0, self._clock.wall_seconds(int(self.finish_every))))
            return last.at + every - self._clock.now()
        if self._hindrance(position) is not None:
            return None
        now, (first, until) = self._clock.calendar(), _window(position)
        at = first + self._delay(position.id)
        if last is not None:
            at = max(at, last.calendar + TRY_EVERY)
        if max(at, now) > until:
            return None
        if at <= now and self._paused(position) is not None:
            return PAUSE
        return self._clock.wall_seconds(at - now)

    def _hindrance(self, position: Position) -> str | None:
        """Why no rollover of this position is begun by itself, but for time and the maker."""
        if not self.table.auto:
            return "positions are not rolled over by themselves: rollover.auto is off"
        try:
            check_rollable(position)
        except RefusedCommand as refusal:
            return refusal.sentence
        return None

    def _paused(self, position: Position) -> str | None:
        """Why a rollover that may begin cannot, for as long as the oracle or the exchange is away."""
        assert position.offer is not None
        try:
            self.node.check_ready(position.offer.symbol)
        except (WorldError, LocalError) as refusal:
            return refusal.sentence
        return None

    def _delay(self, order_id: bytes) -> int:
        if order_id not in self._delays:
            drawn = int.from_bytes(self.node.setup.entropy(4), "big")
            self._delays[order_id] = drawn % TRY_EVERY
        return self._delays[order_id]

    @property
    def _clock(self) -> Clock:
        return self.node.setup.clock

    # --- trying -------------------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, order_id: bytes) -> None:
        """The user's word: now, whatever the schedule says. Raises NotFound, Conflict or WorldError, naming why not."""
        with self.node.setup.positions.lent() as positions:
            position = positions.get(order_id)
        if position is None:
            raise NotFound("no_such_position", f"there is no position {order_id.hex()}")
        if self.node.under_way(order_id):
            raise Conflict("busy", "a rollover of this position is under way already")
        if position.recovered or position.state is not State.ROLLING_OVER:
            try:
                check_rollable(position)
            except RefusedCommand as refusal:
                raise Conflict(refusal.code, refusal.sentence) from refusal
            check_start(_expiry(position), self._clock.calendar(), Conflict)
            assert position.offer is not None
            self.node.check_ready(position.offer.symbol)
        self._start(nursery, position)

    def _start(self, nursery: trio.Nursery, position: Position) -> None:
        connection = self.connection(position.peer)
        if connection is None:
            raise WorldError("maker_away", f"maker {position.peer[:8].hex()} is not connected")
        self._note_try(position.id, connection)
        nursery.start_soon(self._try, position.id, connection)

    def _note_try(self, order_id: bytes, connection: Connection) -> None:
        self._tries[order_id] = Try(self._clock.now(), self._clock.calendar(), connection)

    async def _try(self, order_id: bytes, connection: Connection) -> None:
        try:
            with self.node.alone(order_id):
                async with self._turns[connection.peer.key]:
                    plan = await self._roll(order_id, connection)
            log.info("rolled over", order=order_id.hex(), contract=plan.index, expiry=plan.announcements[-1].time)
        except CodedError as error:
            log.info("not rolled over", order=order_id.hex(), code=error.code, reason=error.sentence)
            await self._failed(order_id, error)
        except Exception:  # a bug that one rollover met must not take the others down
            log.exception("bug in a rollover", order=order_id.hex())
        self._note_try(order_id, connection)  # whoever decides by hand takes its time: the next one counts from its end
        self.wake()

    async def _roll(self, order_id: bytes, connection: Connection) -> ContractPlan:
        with self.node.setup.positions.lent() as positions:
            position = positions.get(order_id)
        assert position is not None, "no position is forgotten until it was over for a while"
        dialogue, host = await self.node.taker(position, self.table.max_rate)
        return await speak(connection, rollover.PROTOCOL, dialogue, host)

    async def _failed(self, order_id: bytes, error: CodedError) -> None:
        said = fail_rollover(error.code, error.sentence, rejected=isinstance(error, Refused))
        try:
            await self.node.setup.positions.call(Positions.execute, order_id, said)
        except WorldError as down:
            log.warning("a failed rollover is not on record", order=order_id.hex(), reason=down.sentence)

    # --- what the user is shown ---------------------------------------------------------------------------------------

    def view(self, position: Position) -> dict[str, Any]:
        """When it may be rolled over (calendar), when it is tried next (wall clock), why not, and what it would cost by
        the last known rate."""
        if position.contract is None or position.ended:
            return dict.fromkeys(("from", "until", "next_try", "reason", "estimate"))
        first, until = _window(position)
        wait = self._wait(position)
        return {
            "from": first,
            "until": until,
            "next_try": self._clock.now() + max(wait, 0) if wait is not None else None,
            "reason": self._reason(position, until),
            "estimate": _estimate(position, max(first, self._clock.calendar())),
        }

    def _reason(self, position: Position, until: int) -> str | None:
        """Why nothing is tried any more, or not now; None if it is only a matter of time."""
        if position.recovered or position.state is not State.ROLLING_OVER:
            if hindrance := self._hindrance(position):
                return hindrance
            if self._clock.calendar() > until:
                return "the contract expires too soon for another rollover"
            if paused := self._paused(position):
                return paused
        return None if self.connection(position.peer) else f"maker {position.peer[:8].hex()} is not connected"


def _expiry(position: Position) -> int:
    """Of the contract that stands, on the calendar."""
    assert position.contract is not None
    return position.plan(position.contract.index).announcements[-1].time


def _window(position: Position) -> tuple[int, int]:
    return _expiry(position) - START_FROM, _expiry(position) - START_UNTIL


def _estimate(position: Position, now: int) -> dict[str, Any]:
    """Satoshis that the taker is paid (negative: pays) for a rollover at that time of the calendar."""
    assert position.contract is not None
    assert position.offer is not None
    rate = position.contract.funding_rate or position.offer.funding_rate
    hours = (expiry(now) - _expiry(position)) // HOUR
    return {"funding_rate": rate, "hours": hours, "funding": -funding_for(position.contract.terms, rate, hours)}
