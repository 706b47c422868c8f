"""Keeps the backup at what the positions are: before anything leaves that binds us, and behind everything else.

A file may say more than what happened: it is written before the events are, and they may be refused then. That is
harmless, since what is restored from it is *recovered*: it publishes nothing by itself, and goes by what the chain and
the peer show. A record that claims a revocation that never left only forgoes a commit, and one that claims a commit
signature that never left only watches for one. It must never say less: a restored node that does not know what it has
given away would give away something else. So when a file cannot be written, nothing is appended, and nothing leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio
from attrs import define, field

from node.backup.behind import Comparison
from node.backup.format import Kept, Record
from node.backup.pruning import pruned
from node.backup.service import LOOK_EVERY, REMEDY, Backup
from node.errors import Disconnected
from node.eventstore.interface import Blob, EventStore, NewEvent, Recorded
from node.position.events import (
    CODEC,
    CloseFailed,
    CloseProposed,
    CloseRejected,
    CloseSigned,
    CommitSignatureGiven,
    ContractSigned,
    Event,
    Revoking,
    RolloverBegun,
    RolloverFailed,
    RolloverHeld,
    RolloverRejected,
    SpendSigned,
    signatures_blob,
)
from node.position.evolve import evolve
from node.position.state import Position
from node.supervision import Service
from protocols.errors import WorldError

if TYPE_CHECKING:
    from node.position.book import Positions

_log = structlog.get_logger(__name__)

BINDING = (CommitSignatureGiven, ContractSigned, RolloverHeld, Revoking, CloseSigned, SpendSigned)
"""A signature or a secret leaves once these are recorded. All of them come of a dialogue, none of what the chain shows:
a full disk never keeps the node from seeing what happens there."""
PASSING = (RolloverBegun, RolloverRejected, RolloverFailed, CloseProposed, CloseRejected, CloseFailed)
"""Nothing can be claimed with these."""
AGAIN = 10.0
"""Seconds until a place that took nothing is asked again."""


def matters(position: Position) -> bool:
    """Whether a backup must hold it: from the first signature that left until nothing is watched any more."""
    return any(attempt.signatures_held for attempt in position.attempts) and not position.over


@define(eq=False)
class BackupKeeper:
    """One life of the positions'. `before` and `after` are called with the position's lock held, around an append."""

    backup: Service[Backup]
    store: Service[EventStore]
    comparison: Comparison = field(init=False)
    """Nothing of the backup is replaced before it was compared with the store."""
    _counted: dict[bytes, int] = field(factory=dict)
    """By order id the version with the last event that can be claimed with, as far as this life saw it."""
    _bell: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.comparison = Comparison(self.backup, self.store)

    async def before(
        self, position: Position, events: Sequence[Event], new: Sequence[NewEvent], blobs: Sequence[Blob]
    ) -> None:
        """Have the events in place that are about to be appended, if anything leaves after them.

        Raises `WorldError` (``backup_failed``) when that cannot be: then nothing may be appended.
        """
        if not any(isinstance(event, BINDING) for event in events):
            return
        after = reduce(evolve, events, position)
        if not matters(after):
            return
        if self.comparison.unsure_of(position.id):
            raise WorldError(
                "backup_failed",
                "the backup may know more of this position than the store, so nothing was signed: "
                f"{self.comparison.trouble or 'they are being compared'}",
            )
        try:
            with self.backup.lent() as backup:
                now = backup.clock.now()
            record, pieces = await self._record(after, new, now, blobs)
            await self.backup.call(Backup.write, record, pieces)
        except Disconnected as error:
            # not of the positions' own store: nothing was written, and whoever asked may ask again
            raise WorldError(
                "backup_failed", f"no backup can be written, so nothing was signed: {error.sentence}"
            ) from error
        except WorldError as error:
            raise WorldError(
                error.code, f"the backup cannot be written, so nothing was signed: {error.sentence}"
            ) from error

    def after(self, position: Position, events: Iterable[Event]) -> None:
        """They are appended; `position` is what it is now."""
        if all(isinstance(event, PASSING) for event in events):
            return
        self.moved(position.id, position.version)

    def moved(self, order_id: bytes, version: int) -> None:
        """So many events of it are on disk now."""
        self._counted[order_id] = version
        self._bell.set()

    def refused(self) -> None:
        """What `before` put in place was not appended, or nobody knows: it is brought to what the store says."""
        self._bell.set()

    async def run(self, positions: Positions) -> NoReturn:
        """Bring up whatever is behind, again and again, until it is; take away what is over."""
        for position in positions.all():
            self._counted[position.id] = position.version
        while True:
            self._bell = trio.Event()
            done = await self._bring_up(positions)
            with trio.move_on_after(LOOK_EVERY if done else AGAIN):
                if done:
                    await self._bell.wait()
                else:
                    await trio.sleep_forever()

    async def _bring_up(self, positions: Positions) -> bool:
        """Whether all is in place now, or nothing of it can be."""
        if self.comparison.behind is None:
            return False  # it may hold more than the store
        try:
            await self.backup.call(Backup.check)
            for position in positions.all():
                if self._wanted(position) is not None:
                    await self._see_to(positions, position.id)
            with self.backup.lent() as backup:
                strange = backup.order_ids() - {position.id for position in positions.all()}
                backup.check_writable()
            unknown = [order_id for order_id in sorted(strange) if not await self._put_away(order_id)]
        except Disconnected:
            return False  # the store's end is the positions' end, too; the backup tells of its own
        except WorldError as error:
            self.backup.degraded(f"not all positions are backed up: {error.sentence}", REMEDY)
            return False
        if unknown:
            self.backup.degraded(
                f"{len(unknown)} positions in the backup are not known to this node",
                "restore them into a new data directory: cfdnode restore",
            )
        else:
            self.backup.recovered()
            self.backup.fresh()
        return True

    async def _put_away(self, order_id: bytes) -> bool:
        """Whether it is a position that was archived: nothing is claimed of it any more, and its file is removed."""
        archived = bool(await self.store.call(EventStore.load_archived, stream_of(order_id)))
        if archived:
            await self.backup.call(Backup.remove, order_id)
            self._counted.pop(order_id, None)
        return archived

    def _wanted(self, position: Position) -> bool | None:
        """Whether its file is to be written (True) or taken away (False); None when all is as it should be."""
        if self.comparison.unsure_of(position.id):
            return None
        with self.backup.lent() as backup:
            in_place = backup.version(position.id)
        if not matters(position):
            return None if in_place is None else False
        if in_place is not None and self._counted.get(position.id, 0) <= in_place <= position.version:
            return None
        return True

    async def _see_to(self, positions: Positions, order_id: bytes) -> None:
        async with positions.turn(order_id):  # nothing is appended meanwhile
            position = positions.get(order_id)
            wanted = None if position is None else self._wanted(position)
            if position is None or wanted is None:
                return
            if wanted:
                await self.backup.call(Backup.write, *await self._record(position))
            else:
                await self.backup.call(Backup.remove, order_id)
                self._counted.pop(order_id, None)

    def holds(self, order_id: bytes) -> bool:
        """Whether there is a file of it, or may be."""
        try:
            with self.backup.lent() as backup:
                return backup.version(order_id) is not None
        except Disconnected:
            return True

    async def everything(self, positions: Positions) -> tuple[list[Record], dict[bytes, bytes]]:
        """All that a backup must hold."""
        made = [await self._record(each) for each in positions.all() if matters(each)]
        pieces: dict[bytes, bytes] = {}
        for _, those in made:
            pieces |= those
        return [record for record, _ in made], pieces

    async def _record(
        self, position: Position, new: Sequence[NewEvent] = (), now: float = 0.0, blobs: Sequence[Blob] = ()
    ) -> tuple[Record, dict[bytes, bytes]]:
        """The position as it is on disk, and what is about to be there, with what its events share with others."""
        stream = stream_of(position.id)
        recorded = await self.store.call(EventStore.load, stream)
        kept = [Kept(each.name, each.version, each.data, each.recorded_at) for each in recorded]
        kept += [Kept(each.name, each.version, each.data, now) for each in new]
        held = {blob.kind: blob.data for blob in blobs}
        for attempt in position.attempts:
            kind = signatures_blob(attempt.index)
            if attempt.signatures_held and attempt.index >= len(position.peer_secrets) and kind not in held:
                data = await self.store.call(EventStore.blob, stream, kind)
                if data is not None:
                    held[kind] = data
        record = Record(position.id, pruned(position, kept), held)
        wanted = needed(record)
        pieces = {name: piece for each in new for piece in each.contents if (name := sha256(piece).digest()) in wanted}
        if wanted - pieces.keys():
            pieces |= await self.store.call(EventStore.contents, wanted - pieces.keys())
        if lost := len(wanted - pieces.keys()):
            raise WorldError("backup_failed", f"{lost} announcements of {position.id.hex()} are lost from the store")
        return record, pieces


def recorded_of(record: Record) -> list[Recorded]:
    """As a store would give them, but for their ids."""
    return [
        Recorded(0, stream_of(record.order_id), at, kept.name, kept.version, kept.data, kept.recorded_at)
        for at, kept in enumerate(record.events, start=1)
    ]


def needed(record: Record) -> frozenset[bytes]:
    """The SHA-256 of each piece that its events share with others. Raises `BadEvent`."""
    return frozenset().union(*map(CODEC.needs, recorded_of(record)))


def stream_of(order_id: bytes) -> str:
    from node.position.events import STREAM

    return STREAM + order_id.hex()
