"""All positions of this node: commands go in, events are on disk, and whoever waits for changes is told.

The only writer of positions. What it holds in memory is what the store said, folded, so memory never runs ahead of the
disk. After an append whose outcome is unknown it may lag behind: such a position goes on being shown, and its coins
being reserved, as last known, and is read again before anything else is decided about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NoReturn

import structlog
import trio
from attrs import evolve as changed

from node.backup.keeping import BackupKeeper
from node.backup.service import Backup
from node.chain.latest import Latest
from node.errors import Disconnected
from node.eventstore.codec import BadEvent
from node.eventstore.interface import Blob, Conflict, EventStore, NewEvent
from node.health import UNREPORTED, Report
from node.position.commands import Command, fail_setup
from node.position.events import (
    CODEC,
    AttemptStarted,
    Buried,
    CommitSignatureGiven,
    Event,
    RevocationReceived,
    RolloverBegun,
    RolloverHeld,
    signatures_blob,
)
from node.position.evolve import evolve, replay
from node.position.facts import command_of, decode_signatures
from node.position.state import Position, State
from node.supervision import Service
from protocols.contract.funding import OutPoint
from protocols.contract.keys import Points, negated
from protocols.contract.signing import Signatures
from protocols.dialogue import Fact
from protocols.errors import LocalError, WorldError

_log = structlog.get_logger(__name__)

CONFLICT_TRIES = 5
AGAIN = 10.0
"""Seconds until a disk that refused to take something is asked again."""
STREAM = "position/"
"""What the names of positions' streams begin with; the order id follows in hex."""


def _stream(order_id: bytes) -> str:
    return STREAM + order_id.hex()


class Positions:
    """Loaded whole at the start of its life; see `run_positions`."""

    def __init__(self, store: Service[EventStore], backup: Service[Backup] | None = None) -> None:
        self._store = store
        self.backup = None if backup is None else BackupKeeper(backup, store)
        self._positions: dict[bytes, Position] = {}
        self._stale: set[bytes] = set()
        """Positions of which the disk may know more."""
        self._points: set[bytes] = set()
        self._locks: dict[bytes, trio.Lock] = defaultdict(trio.Lock)
        self._owed: list[tuple[bytes, Command]] = []
        """What the disk did not take yet, though nobody waits for it."""
        self.unreadable: dict[bytes, str] = {}
        """Positions whose record is damaged, with what is wrong: the disk must be mended."""
        self.changed = Latest(0)
        """Rises with every change of any position: what waits for one loops over its `changes`."""

    async def load(self) -> None:
        for stream in await self._store.call(EventStore.streams):
            if stream.startswith(STREAM):
                order_id = bytes.fromhex(stream.removeprefix(STREAM))
                try:
                    await self._reload(order_id)
                except BadEvent as error:
                    # one damaged record must not keep the others from being watched
                    self.unreadable[order_id] = error.sentence
                    _log.exception("a position cannot be read", order=order_id.hex())

    async def _reload(self, order_id: bytes) -> Position:
        recorded = await self._store.call(EventStore.load, _stream(order_id))
        events = [CODEC.decode(each) for each in recorded]
        position = replay(order_id, events, [each.recorded_at for each in recorded])
        self._take(position, events)
        return position

    def _take(self, position: Position, events: Iterable[Event]) -> None:
        self._stale.discard(position.id)
        if not position.version or position == self._positions.get(position.id):
            return
        self._positions[position.id] = position
        for event in events:
            for party in _parties(event):
                self._points |= {point for _, point in party.each()}
        self.changed.set(self.changed.value + 1)

    # What is asked of it

    def all(self) -> tuple[Position, ...]:
        """In the order in which they came to be known."""
        return tuple(self._positions.values())

    def get(self, order_id: bytes) -> Position | None:
        return self._positions.get(order_id)

    def known_points(self, points: Points) -> frozenset[bytes]:
        """Those points of any attempt of any position that are equal to one of these or its negative."""
        asked = {form for _, point in points.each() for form in (point, negated(point))}
        return frozenset(asked & self._points)

    def reserved(self) -> frozenset[OutPoint]:
        """Coins of ours that positions hold."""
        return frozenset(outpoint for position in self._positions.values() for outpoint in position.inputs_held)

    async def signatures(self, order_id: bytes, index: int) -> Signatures:
        """The peer's refund and CET signatures of an attempt."""
        data = await self._store.call(EventStore.blob, _stream(order_id), signatures_blob(index))
        if data is None:
            raise LocalError("no_signatures", f"no signatures of attempt {index} of {order_id.hex()} are stored")
        return decode_signatures(data)

    # What changes it

    async def execute(self, order_id: bytes, command: Command, blobs: Sequence[Blob] = ()) -> Position:
        """Decide, write, and only then let anyone see it. Returns the position as it is afterwards.

        Raises what the command refuses with (LocalError), or WorldError; on `Disconnected` the outcome is unknown and
        the position is read again before the next command. Not cancelled half-way: it either happened or it did not.
        """
        position: Position
        try:
            async with self._locks[order_id]:
                with trio.CancelScope(shield=True):
                    position = await self._execute(order_id, command, blobs)
        finally:
            # a refused order leaves nothing behind: its id was the taker's choice, and there is no end of them
            if order_id not in self._positions and not self._locks[order_id].locked():
                del self._locks[order_id]
        return position

    async def record(self, order_id: bytes, command: Command) -> None:
        """As `execute`, for what has happened whether or not it can be written: a disk that is full is asked again.

        `Disconnected` is the caller's: the next life of the positions begins with what is on disk.
        """
        try:
            await self.execute(order_id, command)
        except Disconnected:
            raise
        except WorldError as error:
            _log.warning("not on record yet", order=order_id.hex(), reason=error.sentence)
            self._owed.append((order_id, command))

    async def keep_record(self, report: Report = UNREPORTED) -> NoReturn:
        """Write what `record` could not, as soon as the disk takes it."""
        while True:
            report.beat()
            await trio.sleep(AGAIN)
            owed, self._owed = self._owed, []
            for order_id, command in owed:
                try:
                    await self.record(order_id, command)
                except LocalError as refusal:  # the position has gone on since
                    _log.info("not recorded any more", order=order_id.hex(), reason=refusal.sentence)

    async def _execute(self, order_id: bytes, command: Command, blobs: Sequence[Blob]) -> Position:
        for _ in range(CONFLICT_TRIES):
            position = self._positions.get(order_id)
            if position is None or order_id in self._stale:
                position = await self._reload(order_id)
            events = command(position)
            if not events:
                return position
            new = [CODEC.encode(event) for event in events]
            if blobs:
                new[0] = changed(new[0], blobs=tuple(blobs))
            await self._before(position, events, new, blobs)
            try:
                recorded = await self._store.call(EventStore.append, _stream(order_id), position.version, new)
            except Conflict:
                self._stale.add(order_id)
                continue
            except BaseException:
                # whether it was written is unknown: what is in memory must not be decided upon again
                self._stale.add(order_id)
                raise
            for event, each in zip(events, recorded, strict=True):
                position = evolve(position, event, each.recorded_at)
            self._take(position, events)
            self._after(position, events)
            await self._prune(position, events)
            return position
        raise LocalError("conflict", f"position {order_id.hex()} was changed by another writer again and again")

    async def _before(
        self, position: Position, events: Sequence[Event], new: Sequence[NewEvent], blobs: Sequence[Blob]
    ) -> None:
        """The last moment at which nothing is written yet. Raises `WorldError` when it had better not be."""
        if self.backup is not None:
            await self.backup.before(position, events, new, blobs)

    def _after(self, position: Position, events: Sequence[Event]) -> None:
        """They are on disk, and the position is what it is now."""
        if self.backup is not None:
            self.backup.after(position, events)

    def turn(self, order_id: bytes) -> trio.Lock:
        """Held while a command on the position is carried out."""
        return self._locks[order_id]

    async def _prune(self, position: Position, events: Iterable[Event]) -> None:
        """Drop the signatures of contracts that the peer has revoked, since one that it publishes is punished instead;
        and all of them once nothing is watched any more."""
        indices: set[int] = set()
        for event in events:
            match event:
                case RevocationReceived(index):
                    indices.add(index)
                case Buried():
                    indices.update(attempt.index for attempt in position.attempts)
                case _:
                    pass
        if indices:
            try:
                await self._store.call(EventStore.prune, _stream(position.id), map(signatures_blob, sorted(indices)))
            except WorldError as error:  # what is left behind takes room and nothing else
                _log.info("signatures are not pruned", order=position.id.hex(), reason=error.sentence)

    async def remember(self, fact: Fact, peer: bytes) -> None:
        """A protocol's `Persist`."""
        order_id, command, blobs = command_of(fact, peer)
        await self.execute(order_id, command, blobs)


def _parties(event: Event) -> list[Points]:
    match event:
        case AttemptStarted():
            return [event.own.points, *([event.peer.points] if event.peer else [])]
        case CommitSignatureGiven():
            return [event.peer.points]
        case RolloverBegun():
            return [event.own, *([event.following.peer] if event.following else [])]
        case RolloverHeld():
            return [event.following.peer] if event.following else []
        case _:
            return []


async def run_positions(
    store: Service[EventStore],
    backup: Service[Backup] | None = None,
    *,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[Positions] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The service: loads all positions, then serves until cancelled or until the store goes down.

    Each life of the store has positions of its own, read from it: what the last one left unknown is known then.
    """
    with store.lent():
        positions = Positions(store, backup)
        await positions.load()
        for position in positions.all():
            # A setup is never resumed; a dialogue that still runs is refused its next fact.
            if position.state in (State.ORDERED, State.SETTING_UP):
                interrupted = fail_setup("interrupted", "the node stopped before the setup was complete")
                await positions.execute(position.id, interrupted)
        if positions.unreadable:
            report.degraded("; ".join(positions.unreadable.values()))
        async with trio.open_nursery() as nursery:
            if positions.backup is not None:
                nursery.start_soon(positions.backup.run, positions)
            task_status.started(positions)
            await positions.keep_record(report)
