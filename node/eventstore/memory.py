"""The event store in memory, for tests and the simulator. The backend is the disk, and outlives the nodes on it."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import TypeVar

import outcome
import trio

from node.clock import Clock
from node.eventstore.interface import (
    AlreadyHandled,
    Archived,
    ArchivedStream,
    Backend,
    BlobExists,
    Conflict,
    Cursor,
    EventStore,
    NewEvent,
    Recorded,
    Snapshot,
    serve,
)
from node.health import UNREPORTED, Report

R = TypeVar("R")


class MemoryBackend(Backend):
    def __init__(self, clock: Clock | None = None) -> None:
        self.last_id = 0
        self._clock = clock or Clock()
        self._events: list[Recorded] = []
        self._streams: dict[str, list[Recorded]] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._cursors: dict[str, int] = {}
        self._contents: dict[bytes, bytes] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._archive: dict[str, tuple[ArchivedStream, list[Recorded]]] = {}
        self._marks: set[bytes] = set()

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        return [outcome.capture(one) for one in group]

    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]:
        self._check(stream, expected_version)
        actual = expected_version
        if cursor is not None and self._cursors.get(cursor.name, -1) >= cursor.id:
            raise AlreadyHandled(cursor, self._cursors[cursor.name])
        blobs: dict[tuple[str, str], bytes] = {}
        for blob in (blob for event in events for blob in event.blobs):
            key = stream, blob.kind
            if key in self._blobs or key in blobs:
                raise BlobExists(stream, blob.kind)
            blobs[key] = blob.data
        now = self._clock.now()
        recorded = [
            Recorded(
                self.last_id + i,
                stream,
                actual + i,
                event.name,
                event.version,
                event.data,
                now if event.recorded_at is None else event.recorded_at,
            )
            for i, event in enumerate(events, start=1)
        ]
        # nothing can fail from here on
        self._blobs |= blobs
        self._contents |= {sha256(piece).digest(): piece for event in events for piece in event.contents}
        if cursor is not None:
            self._cursors[cursor.name] = cursor.id
        if recorded:
            self._streams.setdefault(stream, []).extend(recorded)
            self._events.extend(recorded)
            self.last_id = recorded[-1].id
        return recorded

    def _check(self, stream: str, expected_version: int) -> None:
        if stream in self._archive:
            raise Archived(stream)
        actual = len(self._streams.get(stream, ()))
        if actual != expected_version:
            raise Conflict(stream, expected_version, actual)

    def ack(self, cursor: Cursor) -> None:
        self._cursors[cursor.name] = max(cursor.id, self._cursors.get(cursor.name, 0))

    def prune(self, stream: str, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._blobs.pop((stream, kind), None)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.stream in self._streams:
            self._snapshots[snapshot.stream] = snapshot

    def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes]) -> None:
        self._check(stream, expected_version)
        put_away = ArchivedStream(len(self._archive) + 1, stream, summary, self._clock.now())
        self._archive[stream] = put_away, self._streams.pop(stream, [])
        self._events = [recorded for recorded in self._events if recorded.stream != stream]
        self._blobs = {key: data for key, data in self._blobs.items() if key[0] != stream}
        self._snapshots.pop(stream, None)
        self._marks |= set(marks)

    def load(self, stream: str, after: int) -> list[Recorded]:
        return self._streams.get(stream, [])[after:]

    def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]:
        return {stream: self.load(stream, position) for stream, position in after.items()}

    def read(self, after_id: int, limit: int) -> list[Recorded]:
        start = bisect_right(self._events, after_id, key=lambda recorded: recorded.id)
        return self._events[start : start + limit]

    def streams(self) -> list[str]:
        return sorted(self._streams)

    def blob(self, stream: str, kind: str) -> bytes | None:
        return self._blobs.get((stream, kind))

    def cursor(self, name: str) -> int | None:
        return self._cursors.get(name)

    def contents(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        return {name: self._contents[name] for name in hashes if name in self._contents}

    def snapshots(self, prefix: str) -> list[Snapshot]:
        return [kept for stream, kept in sorted(self._snapshots.items()) if stream.startswith(prefix)]

    def archived(self, prefix: str, before: int | None, limit: int) -> list[ArchivedStream]:
        newest_first = sorted((each for each, _ in self._archive.values()), key=lambda each: -each.id)
        below = [each for each in newest_first if before is None or each.id < before]
        return [each for each in below if each.stream.startswith(prefix)][:limit]

    def load_archived(self, stream: str) -> list[Recorded]:
        return self._archive[stream][1] if stream in self._archive else []

    def marked(self, marks: Collection[bytes]) -> frozenset[bytes]:
        return frozenset(self._marks.intersection(marks))

    def keep_copy(self, why: str) -> str:
        return "nowhere"

    def close(self) -> None:
        pass


async def inline(function: Callable[[], R], /) -> R:
    """`RunBlocking` without threads: for a clock that jumps, and for replay by seed."""
    await trio.lowlevel.checkpoint()
    return function()


async def run_memory_store(
    disk: Backend, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[EventStore] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a store over this memory, for ever; the started value is the `EventStore`."""
    await serve(disk, inline, report=report, task_status=task_status)
