"""A disk that outlives the node that writes to it, may be full, and may be the last thing that a node ever does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import outcome
from attrs import define, field

from node.eventstore.interface import ArchivedStream, Backend, Cursor, NewEvent, Recorded, Snapshot
from node.eventstore.memory import MemoryBackend
from node.position.events import STREAM
from protocols.errors import WorldError
from tests.simulation.faults import DISK, Fault, Faults
from tests.simulation.wire import Owner


class PowerCut(WorldError):
    """The node died while it wrote: what it does from here on reaches nobody."""

    def __init__(self) -> None:
        super().__init__("power_cut", "the power was cut")


@define(eq=False)
class Disk(Backend):
    """The disk as one life of a node sees it. What is on it stays in `platters`."""

    platters: MemoryBackend
    owner: Owner
    faults: Faults
    last_id: int = field(init=False)

    @last_id.default
    def _last_id(self) -> int:
        return self.platters.last_id

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        return [outcome.capture(one) for one in group]

    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]:
        self._check()
        fault = None
        if stream.startswith(STREAM):
            _, fault = self.faults.at(self.owner.name, DISK, "+".join(event.name for event in events))
        if fault is Fault.DISK_FULL:
            raise WorldError("disk_full", "no space is left on the disk")
        if fault is Fault.CRASH_BEFORE:
            self.owner.crash()
            self._check()
        recorded = self.platters.append(stream, expected_version, events, cursor)
        self.last_id = self.platters.last_id
        if fault is Fault.CRASH_AFTER:
            self.owner.crash()
            self._check()
        return recorded

    def ack(self, cursor: Cursor) -> None:
        self._check()
        self.platters.ack(cursor)

    def prune(self, stream: str, kinds: Iterable[str]) -> None:
        self._check()
        self.platters.prune(stream, kinds)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        self._check()
        self.platters.keep_snapshot(snapshot)

    def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes]) -> None:
        self._check()
        self.platters.archive(stream, expected_version, summary, marks)

    def load(self, stream: str, after: int) -> list[Recorded]:
        return self.platters.load(stream, after)

    def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]:
        return self.platters.tails(after)

    def read(self, after_id: int, limit: int) -> list[Recorded]:
        return self.platters.read(after_id, limit)

    def streams(self) -> list[str]:
        return self.platters.streams()

    def blob(self, stream: str, kind: str) -> bytes | None:
        return self.platters.blob(stream, kind)

    def cursor(self, name: str) -> int | None:
        return self.platters.cursor(name)

    def contents(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        return self.platters.contents(hashes)

    def snapshots(self, prefix: str) -> list[Snapshot]:
        return self.platters.snapshots(prefix)

    def archived(self, prefix: str, before: int | None, limit: int) -> list[ArchivedStream]:
        return self.platters.archived(prefix, before, limit)

    def load_archived(self, stream: str) -> list[Recorded]:
        return self.platters.load_archived(stream)

    def marked(self, marks: Collection[bytes]) -> frozenset[bytes]:
        return self.platters.marked(marks)

    def keep_copy(self, why: str) -> str:
        return self.platters.keep_copy(why)

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if not self.owner.alive:
            raise PowerCut
