"""The event store in memory, for tests and the simulator. The backend is the disk, and outlives the nodes on it."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import outcome
import trio
from node.clock import Clock
from node.health import UNREPORTED, Report

from node.eventstore.interface import (
    AlreadyHandled,
    Backend,
    BlobExists,
    Conflict,
    Cursor,
    EventStore,
    NewEvent,
    Recorded,
    serve,
)

R = TypeVar("R")


class MemoryBackend(Backend):
    def __init__(self, clock: Clock | None = None) -> None:
        self.last_id = 0
        self._clock = clock or Clock()
        self._events: list[Recorded] = []
        self._streams: dict[str, list[Recorded]] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._cursors: dict[str, int] = {}

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        return [outcome.capture(one) for one in group]

    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]:
        actual = len(self._streams.get(stream, ()))
        if actual != expected_version:
            raise Conflict(stream, expected_version, actual)
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
            Recorded(self.last_id + i, stream, actual + i, event.name, event.version, event.data, now)
            for i, event in enumerate(events, start=1)
        ]
        # nothing can fail from here on
        self._blobs |= blobs
        if cursor is not None:
            self._cursors[cursor.name] = cursor.id
        if recorded:
            self._streams.setdefault(stream, []).extend(recorded)
            self._events.extend(recorded)
            self.last_id = recorded[-1].id
        return recorded

    def ack(self, cursor: Cursor) -> None:
        self._cursors[cursor.name] = max(cursor.id, self._cursors.get(cursor.name, 0))

    def prune(self, stream: str, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._blobs.pop((stream, kind), None)

    def load(self, stream: str, after: int) -> list[Recorded]:
        return self._streams.get(stream, [])[after:]

    def read(self, after_id: int, limit: int) -> list[Recorded]:
        start = bisect_right(self._events, after_id, key=lambda recorded: recorded.id)
        return self._events[start : start + limit]

    def streams(self) -> list[str]:
        return sorted(self._streams)

    def blob(self, stream: str, kind: str) -> bytes | None:
        return self._blobs.get((stream, kind))

    def cursor(self, name: str) -> int | None:
        return self._cursors.get(name)

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
