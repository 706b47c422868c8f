"""All positions of this node: commands go in, events are on disk, and whoever waits for changes is told.

The only writer of positions. What it holds in memory is what the store said, folded, so memory never runs ahead of the
disk. After an append whose outcome is unknown it may lag behind: such a position goes on being shown, and its coins
being reserved, as last known, and is read again before anything else is decided about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import NoReturn

import structlog
import trio
from attrs import evolve as changed

from node.backup.keeping import BackupKeeper
from node.backup.service import Backup
from node.chain.latest import Latest
from node.clock import Clock
from node.errors import Disconnected
from node.eventstore.interface import Archived as InArchive
from node.eventstore.interface import Blob, Conflict, EventStore, NewEvent, StoreReadOnly
from node.health import UNREPORTED, Report
from node.position import snapshots
from node.position.archive import Archived, View, archivable, shown, summary
from node.position.commands import Command, fail_setup
from node.position.events import (
    CODEC,
    STREAM,
    Buried,
    ConfirmationLost,
    Confirmed,
    Event,
    RevocationReceived,
    UnknownCommitConfirmed,
    points_of,
    signatures_blob,
    stream_of,
)
from node.position.evolve import evolve
from node.position.facts import command_of, decode_signatures
from node.position.loading import Loaded, load_all, load_one
from node.position.state import Position, State
from node.supervision import Service
from protocols.contract.funding import OutPoint
from protocols.contract.keys import Points, negated
from protocols.contract.signing import Signatures
from protocols.dialogue import Fact
from protocols.errors import LocalError, WorldError

_log = structlog.get_logger(__name__)

UNKNOWN_COMMIT = (
    "its lock is spent by a contract that this record, which is too old, does not know: the peer alone can publish what"
    " pays it out"
)
UNKNOWN_REMEDY = (
    "ask the peer to let its node run until the payout or the refund is out; our part of it then comes to the wallet,"
    " and the position ends. A newer backup, restored into a new data directory, could publish it too"
)
CONFLICT_TRIES = 5
AGAIN = 10.0
"""Seconds until a disk that refused to take something is asked again."""
TIDY_EVERY = 120.0
"""Seconds between two looks for what is to be archived, or to be kept in a snapshot."""
SNAPSHOT_EVERY = 30
"""Events of one position."""

REMEDY = "restore a backup, or move the damaged file aside: the event store offers both"

ARCHIVED_AT_ONCE = 500

Show = Callable[[Position], View]
"""What is kept of an archived position for people to see."""


class Positions:
    """Loaded whole at the start of its life; see `run_positions`."""

    def __init__(
        self,
        store: Service[EventStore],
        backup: Service[Backup] | None = None,
        *,
        clock: Clock | None = None,
        show: Show = shown,
    ) -> None:
        self._store = store
        self.backup = None if backup is None else BackupKeeper(backup, store)
        self._clock = clock or Clock()
        self._show = show
        self._positions: dict[bytes, Position] = {}
        self._stale: set[bytes] = set()
        """Positions of which the disk may know more."""
        self._points: dict[bytes, set[bytes]] = {}
        """By position."""
        self._versions: dict[bytes, Latest[int]] = {}
        """Of those that somebody waits for."""
        self._locks: dict[bytes, trio.Lock] = defaultdict(trio.Lock)
        self._owed: list[tuple[bytes, Command]] = []
        """What the disk did not take yet, though nobody waits for it."""
        self._kept: dict[bytes, int] = {}
        """By position the version that its snapshot is of."""
        self._untidy: set[str] = set()
        """What was said of that which could not be tidied up."""
        self.read_only: StoreReadOnly | None = None
        """Why nothing can be written in this life of the store."""
        self.unreadable: dict[bytes, str] = {}
        """Positions whose record is damaged, with what is wrong: the disk must be mended."""
        self._report = UNREPORTED
        self.changed = Latest(0)
        """Rises with every change of any position: what waits for one loops over its `changes`."""

    async def load(self, report: Report = UNREPORTED) -> None:
        self._report = report
        async with aclosing(load_all(self._store)) as those:
            async for each in those:
                report.beat()
                if isinstance(each, Loaded):
                    self._take(each.position, each.points)
                    self._kept[each.position.id] = each.kept
                else:
                    # one damaged record must not keep the others from being watched
                    self.unreadable[each.order_id] = each.reason
                    _log.error("a position cannot be read", order=each.order_id.hex(), reason=each.reason)

        try:
            await self._store.call(EventStore.prune, STREAM, ())  # a write of nothing
        except StoreReadOnly as error:
            self.read_only = error

    async def reload(self, order_id: bytes) -> Position:
        """As it is on disk, where more may be than what this life wrote."""
        loaded = await load_one(self._store, order_id)
        self._take(loaded.position, loaded.points)
        return loaded.position

    def of(self, order_id: bytes) -> Latest[int]:
        """Rises with every change of this position alone."""
        return self._versions.setdefault(order_id, Latest(0))

    def _take(self, position: Position, points: Iterable[bytes]) -> None:
        self._stale.discard(position.id)
        if not position.version or position == self._positions.get(position.id):
            return
        self._positions[position.id] = position
        self._points.setdefault(position.id, set()).update(points)
        if (waited := self._versions.get(position.id)) is not None:
            waited.set(position.version)
        self.changed.set(self.changed.value + 1)

    # What is asked of it

    def all(self) -> tuple[Position, ...]:
        """In the order in which they came to be known."""
        return tuple(self._positions.values())

    def get(self, order_id: bytes) -> Position | None:
        return self._positions.get(order_id)

    def unsure_of(self, order_id: bytes) -> bool:
        """Whether its record may be older than what was signed, as an old copy of the data directory is: then no commit
        of it is published."""
        return self.backup is not None and self.backup.comparison.unsure_of(order_id)

    def tell(self) -> None:
        """Say what is wrong with them."""
        problems = [(each, REMEDY) for each in self.unreadable.values()]
        if self.read_only is not None:
            problems.insert(0, (self.read_only.sentence, REMEDY))
        if self.backup is not None:
            problems += [(each, self.backup.comparison.remedy) for each in self.backup.comparison.problems]
        for position in self._positions.values():
            if position.unknown_commit is not None and not position.ended:
                problems.append((f"position {position.id.hex()}: {UNKNOWN_COMMIT}", UNKNOWN_REMEDY))
        if problems:
            self._report.degraded("; ".join(sentence for sentence, _ in problems), problems[0][1])
        else:
            self._report.recovered()

    def check_writable(self) -> None:
        """Raises `WorldError` (``store_read_only``) when no command can be recorded: nothing new may be begun then."""
        if self.read_only is not None:
            raise WorldError(
                "store_read_only",
                "no new trades, rollovers or closes until a backup is restored or the file is moved aside: "
                f"{self.read_only.sentence}",
            )

    async def known(self, order_id: bytes) -> bool:
        """Whether there is, or ever was, a position of this order id."""
        return order_id in self._positions or bool(await self._store.call(EventStore.marked, [order_id]))

    async def known_points(self, points: Points) -> frozenset[bytes]:
        """Those points of any attempt of any position that are equal to one of these or its negative."""
        asked = {form for _, point in points.each() for form in (point, negated(point))}
        live = {point for those in self._points.values() for point in asked & those}
        return frozenset(live) | await self._store.call(EventStore.marked, asked)

    def reserved(self) -> frozenset[OutPoint]:
        """Coins of ours that positions hold."""
        return frozenset(outpoint for position in self._positions.values() for outpoint in position.inputs_held)

    async def signatures(self, order_id: bytes, index: int) -> Signatures:
        """The peer's refund and CET signatures of an attempt."""
        data = await self._store.call(EventStore.blob, stream_of(order_id), signatures_blob(index))
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
                position = await self.reload(order_id)
            events = command(position)
            if not events:
                return position
            self.check_writable()
            new = [CODEC.encode(event) for event in events]
            if blobs:
                new[0] = changed(new[0], blobs=tuple(blobs))
            await self._before(position, events, new, blobs)
            try:
                recorded = await self._store.call(EventStore.append, stream_of(order_id), position.version, new)
            except Conflict:
                self._stale.add(order_id)
                continue
            except InArchive:
                raise
            except BaseException:
                # whether it was written is unknown: what is in memory must not be decided upon again
                self._stale.add(order_id)
                if self.backup is not None:
                    self.backup.refused()
                raise
            for event, each in zip(events, recorded, strict=True):
                position = evolve(position, event, each.recorded_at)
            self._take(position, points_of(events))
            self._after(position, events)
            if any(isinstance(event, UnknownCommitConfirmed | Confirmed | ConfirmationLost) for event in events):
                self.tell()
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

    # What is over, and what a start need not replay

    async def keep_tidy(self) -> NoReturn:
        """Archive what is over and write snapshots, one position at a time."""
        while True:
            for order_id in list(self._positions):
                try:
                    await self.tidy(order_id, self._clock.now())
                except Disconnected:
                    raise
                except (LocalError, WorldError) as error:  # it takes room and time, and nothing else
                    if error.sentence not in self._untidy:
                        self._untidy.add(error.sentence)
                        _log.warning("a position is not tidied up", order=order_id.hex(), reason=error.sentence)
            await trio.sleep(TIDY_EVERY)

    async def tidy(self, order_id: bytes, now: float) -> None:
        """Archive this one if it is over, or write its snapshot if that is due."""
        position = self._positions[order_id]
        if self._archivable(position, now):
            async with self._locks[order_id]:
                position = self._positions[order_id]
                if self._archivable(position, now):
                    await self._archive(position)
            if not self._locks[order_id].locked():
                del self._locks[order_id]
        elif position.version >= self._kept.get(order_id, 0) + SNAPSHOT_EVERY:
            data = snapshots.encode(position, self._points[order_id])
            await self._store.call(
                EventStore.keep_snapshot, stream_of(order_id), position.version, snapshots.FORM, data
            )
            self._kept[order_id] = position.version

    def _archivable(self, position: Position, now: float) -> bool:
        if position.id in self._stale or (self.backup is not None and self.backup.holds(position.id)):
            return False
        return archivable(position, now)

    async def _archive(self, position: Position) -> None:
        marks = {position.id, *self._points[position.id]}
        said = summary(position, self._show(position))
        with trio.CancelScope(shield=True):
            await self._store.call(EventStore.archive, stream_of(position.id), position.version, said, marks)
        for those in (self._positions, self._points, self._kept, self._versions):
            those.pop(position.id, None)
        self.changed.set(self.changed.value + 1)

    async def archived(self, before: int | None = None, limit: int = 50) -> list[Archived]:
        """The newest first; `before`: the `id` of the last one that was seen."""
        streams = await self._store.call(EventStore.archived, STREAM, before, limit)
        return [Archived.read(each) for each in streams]

    async def archived_scripts(self) -> frozenset[bytes]:
        """Scripts of ours that archived positions named."""
        scripts: set[bytes] = set()
        page = await self.archived(limit=ARCHIVED_AT_ONCE)
        while page:
            scripts.update(*(each.scripts for each in page))
            page = await self.archived(page[-1].id, ARCHIVED_AT_ONCE)
        return frozenset(scripts)

    async def archived_one(self, order_id: bytes) -> Archived | None:
        streams = await self._store.call(EventStore.archived, stream_of(order_id), None, 1)
        return Archived.read(streams[0]) if streams else None

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
                await self._store.call(EventStore.prune, stream_of(position.id), map(signatures_blob, sorted(indices)))
            except WorldError as error:  # what is left behind takes room and nothing else
                _log.info("signatures are not pruned", order=position.id.hex(), reason=error.sentence)

    async def remember(self, fact: Fact, peer: bytes) -> None:
        """A protocol's `Persist`."""
        order_id, command, blobs = command_of(fact, peer)
        await self.execute(order_id, command, blobs)


async def run_positions(
    store: Service[EventStore],
    backup: Service[Backup] | None = None,
    *,
    clock: Clock | None = None,
    show: Show = shown,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[Positions] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The service: loads all positions, then serves until cancelled or until the store goes down.

    Each life of the store has positions of its own, read from it: what the last one left unknown is known then.
    """
    with store.lent():
        positions = Positions(store, backup, clock=clock, show=show)
        await positions.load(report)
        if positions.backup is not None:
            await positions.backup.comparison.first(positions, report)
        for position in positions.all():
            # A setup is never resumed; a dialogue that still runs is refused its next fact.
            if position.state in (State.ORDERED, State.SETTING_UP) and positions.read_only is None:
                interrupted = fail_setup("interrupted", "the node stopped before the setup was complete")
                await positions.execute(position.id, interrupted)
        positions.tell()
        async with trio.open_nursery() as nursery:
            if positions.backup is not None:
                nursery.start_soon(positions.backup.comparison.run, positions)
                nursery.start_soon(positions.backup.run, positions)
            if positions.read_only is None:
                nursery.start_soon(positions.keep_tidy)
            task_status.started(positions)
            await positions.keep_record(report)
