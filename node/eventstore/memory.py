"""The event store in memory, for tests and the simulator: a crash of the node leaves it as a disk would be left."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import trio

from node.clock import Clock
from node.eventstore.interface import (
    AlreadyHandled,
    BlobExists,
    Conflict,
    Cursor,
    EventStore,
    NewEvent,
    Recorded,
)


class MemoryStore(EventStore):
    def __init__(self, clock: Clock = Clock()) -> None:  # noqa: B008 - frozen
        self._clock = clock
        self._events: list[Recorded] = []
        self._streams: dict[str, list[Recorded]] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._cursors: dict[str, int] = {}
        self._moved = trio.Event()

    @property
    def last_id(self) -> int:
        return self._events[-1].id if self._events else 0

    async def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], *, cursor: Cursor | None = None
    ) -> list[Recorded]:
        await trio.lowlevel.checkpoint()
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
            Recorded(self.last_id + i, stream, expected_version + i, event.name, event.version, event.data, now)
            for i, event in enumerate(events, start=1)
        ]
        # nothing can fail from here on
        self._blobs |= blobs
        if cursor is not None:
            self._cursors[cursor.name] = cursor.id
        if recorded:
            self._streams.setdefault(stream, []).extend(recorded)
            self._events.extend(recorded)
            self._moved.set()
            self._moved = trio.Event()
        return recorded

    async def load(self, stream: str, after: int = 0) -> list[Recorded]:
        await trio.lowlevel.checkpoint()
        return self._streams.get(stream, [])[after:]

    async def read(self, after_id: int = 0, limit: int = 1000) -> list[Recorded]:
        await trio.lowlevel.checkpoint()
        start = bisect_right(self._events, after_id, key=lambda recorded: recorded.id)
        return self._events[start : start + limit]

    async def streams(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(self._streams)

    async def blob(self, stream: str, kind: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._blobs.get((stream, kind))

    async def prune(self, stream: str, kinds: Iterable[str]) -> None:
        await trio.lowlevel.checkpoint()
        for kind in kinds:
            self._blobs.pop((stream, kind), None)

    async def cursor(self, name: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return self._cursors.get(name)

    async def ack(self, cursor: Cursor) -> None:
        await trio.lowlevel.checkpoint()
        self._cursors[cursor.name] = max(cursor.id, self._cursors.get(cursor.name, 0))

    async def wait_beyond(self, after_id: int) -> None:
        await trio.lowlevel.checkpoint()
        while self.last_id <= after_id:
            await self._moved.wait()
