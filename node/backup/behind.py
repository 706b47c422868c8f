"""Sees whether the backup knows more than the store, which then learns it before anything is signed or published.

It does when an old copy of the data directory was put back: what the store takes for the present contract may be
revoked since. Then what is missing is taken from the backup, and the position is *recovered* as after any restore
(design.md, rule 7).

It also does when the node was killed between the backup's write and the store's. That is told by there being one write
missing, and nothing else: what leaves after a write only leaves once the store has it, so nothing of it has left, and
the position goes on as if the node had been killed a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field, frozen
from attrs import evolve as changed

from node.backup.format import Contents, Kept, Record
from node.backup.pruning import is_pruned
from node.backup.service import Backup
from node.errors import Disconnected
from node.eventstore.codec import BadEvent
from node.eventstore.interface import Blob, Conflict, EventStore, NewEvent, Recorded
from node.health import UNREPORTED, UP, Report, State
from node.position.commands import recover
from node.position.events import CODEC, stream_of
from node.position.evolve import evolve, replay
from node.position.state import Position
from node.supervision import Service
from protocols.errors import WorldError

if TYPE_CHECKING:
    from node.position.book import Positions

_log = structlog.get_logger(__name__)

WITHIN = 10.0
"""Seconds that a start waits for the backup. Without it contracts are watched, but no commit of ours is published."""
AGAIN = 10.0
"""Seconds until what could not be compared, or taken over, is tried again."""
OLDER = "older-than-backup"
"""Part of the name of the copy that is kept of such a store."""


@frozen
class Lack:
    """What the backup says of a position, and the store does not."""

    record: Record
    events: tuple[Kept, ...]
    """Those of the record from the first on that differs."""
    version: int
    """The store's."""
    interrupted: bool
    """One write that the node did not come to, rather than an older store."""


def lack(record: Record, recorded: Sequence[Recorded]) -> Lack | None:
    """None when the store has all that the record has."""
    common = 0
    for kept, there in zip(record.events, recorded, strict=False):
        same = (kept.name, kept.version, kept.data) == (there.name, there.version, there.data)
        if not (same or is_pruned(kept, there)):
            break
        common += 1
    events = record.events[common:]
    if not events:
        return None
    one_write = len({each.recorded_at for each in events}) == 1
    return Lack(record, events, len(recorded), one_write and common == len(recorded) > 0)


@define(eq=False)
class Comparison:
    """One life of the positions', which begins with it."""

    backup: Service[Backup]
    store: Service[EventStore]
    behind: frozenset[bytes] | None = None
    """Positions of which the backup knows more, and the store could not learn it yet; None while nobody knows."""
    taken: dict[bytes, str] = field(factory=dict)
    """Those that became recovered in this life, each with what is said of it."""
    trouble: str = ""
    """Why the rest could not be compared, or taken over."""

    def unsure_of(self, order_id: bytes) -> bool:
        """Whether the record of this position may be older than what was signed."""
        return self.behind is None or order_id in self.behind

    @property
    def problems(self) -> list[str]:
        found = list(self.taken.values())
        if self.behind is None:
            found.append(f"until the backup can be compared with the store, no commit is published: {self.trouble}")
        elif self.behind:
            named = ", ".join(each.hex() for each in sorted(self.behind))
            found.append(f"the backup knows more of {named}, of which no commit is published: {self.trouble}")
        return found

    @property
    def remedy(self) -> str:
        """For these problems."""
        if self.behind is None or self.behind:
            return f"see to the backup's path and to room on the disk; it is tried again every {AGAIN:g} seconds"
        return "close them together with the peer; what else can be done is told with each position"

    async def first(self, positions: Positions, report: Report = UNREPORTED) -> None:
        """Compare before anything is done, if the backup is there in time."""
        report.beat()
        with trio.move_on_after(WITHIN):
            await self.backup.until(*(set(State) - {State.STARTING}))
        await self._compare(positions)

    async def run(self, positions: Positions) -> None:
        """Compare, and take over, until there is nothing left that the store lacks."""
        while self.behind is None or self.behind:
            await self.backup.until(*UP)
            await self._compare(positions, all_of_it=self.behind is None)
            positions.tell()
            await trio.sleep(AGAIN)

    async def _compare(self, positions: Positions, *, all_of_it: bool = False) -> None:
        """A store that was written to meanwhile (`all_of_it`) is compared by what it says, not by how much."""
        try:
            found = await self._lacks(all_of_it)
        except (Disconnected, WorldError) as error:
            if isinstance(error, Disconnected) and error.service == self.store.name:
                raise
            self.trouble = error.sentence
            return
        self.behind = frozenset(each.record.order_id for each, _ in found)
        older = [each for each, _ in found if not each.interrupted]
        if older:
            _log.warning("the store is older than its backup: an old copy of the data directory", positions=len(older))
        try:
            if any(each.version for each in older) and positions.read_only is None:
                copy = await self.store.call(EventStore.keep_copy, OLDER)
                _log.warning("the older store is kept aside", copy=copy)
            for each, contents in found:
                await self._take_up(positions, each, contents)
        except (BadEvent, Conflict, WorldError) as error:
            self.trouble = error.sentence
            _log.warning("the store cannot learn what the backup knows", reason=error.sentence)

    async def _lacks(self, all_of_it: bool) -> list[tuple[Lack, Contents]]:
        with self.backup.lent() as backup:
            versions = {each: backup.version(each) or 0 for each in backup.order_ids()}
        after = {stream_of(each): 0 if all_of_it else version - 1 for each, version in versions.items()}
        tails = await self.store.call(EventStore.tails, after)
        asked = [each for each in versions if all_of_it or not tails.get(stream_of(each))]
        found = []
        for contents in await self.backup.call(Backup.read, asked):
            for record in contents.records:
                stream = stream_of(record.order_id)
                lacking = lack(record, await self.store.call(EventStore.load, stream))
                if lacking is not None and not await self.store.call(EventStore.load_archived, stream):
                    found.append((lacking, contents))
        return found

    async def _take_up(self, positions: Positions, missing: Lack, contents: Contents) -> None:
        order_id = missing.record.order_id
        async with positions.turn(order_id):
            position = await _append(self.store, missing, contents)
            version = (await positions.reload(order_id)).version
        assert positions.backup is not None
        positions.backup.moved(order_id, version)
        assert self.behind is not None
        self.behind -= {order_id}
        _log.warning(
            "taken from the backup", order=order_id.hex(), events=len(missing.events), recovered=position.recovered
        )
        if not missing.interrupted:
            self.taken[order_id] = (
                f"position {order_id.hex()}: this data directory was older than the backup, from which"
                f" {len(missing.events)} events were taken; it is recovered"
            )


async def _append(store: Service[EventStore], missing: Lack, contents: Contents) -> Position:
    """Raises `BadEvent`, `Conflict` or `WorldError`: then nothing was written."""
    order_id, blobs = missing.record.order_id, missing.record.blobs
    stream = stream_of(order_id)
    there = await store.call(EventStore.load, stream)
    missed = [
        Recorded(0, stream, at, kept.name, kept.version, kept.data, kept.recorded_at)
        for at, kept in enumerate(missing.events, missing.version + 1)
    ]
    needs = frozenset().union(*map(CODEC.needs, (*there, *missed)))
    pieces = contents.pieces | await store.call(EventStore.contents, needs)
    events = [CODEC.decode(each, pieces) for each in (*there, *missed)]
    position = replay(order_id, events, [each.recorded_at for each in (*there, *missed)])
    new = []
    for each in missed:
        shared = tuple(pieces[name] for name in sorted(CODEC.needs(each)))
        new.append(NewEvent(each.name, each.version, each.data, contents=shared, recorded_at=each.recorded_at))
    lost = [Blob(kind, data) for kind, data in blobs.items() if not await store.call(EventStore.blob, stream, kind)]
    new[0] = changed(new[0], blobs=tuple(lost))
    if not missing.interrupted:
        when = datetime.fromtimestamp(contents.head.made_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        for event in recover(f"the data directory was older than its backup of {when}")(position):
            position = evolve(position, event)
            new.append(CODEC.encode(event))
    await store.call(EventStore.append, stream, missing.version, new)
    return position
