"""The event store: streams of events, appended with the version they were decided on, and read in one total order.

A stream holds the events of one position. Within it they are numbered 1, 2, 3 … (`position`); over all streams every
event has an `id`, and ids only grow and are never used again. Whatever can be read is durable: it survives the loss of
power, and no subscriber ever sees an event that could still be lost.

Errors: `Conflict` and the other refusals (`LocalError`) mean that nothing was written. `WorldError` (disk full, disk
error) means that nothing was written and nobody was told; only if the machine dies before the next append succeeds
may the refused events still be found at the next start, which is why a node acts on what it loads, not on what it
remembers. `trio.ClosedResourceError` means that the store went down: whether the events were written is unknown,
reload and compare. The same is true of a cancelled `append`: callers for whom that is not good enough shield it.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar, cast

import outcome
import trio
from attrs import define, field, frozen

from node.errors import NeedsUser
from node.health import UNREPORTED, Report
from protocols.errors import LocalError, WorldError

IDLE = 20.0
"""Seconds without a write after which the way to the disk is tried."""

R = TypeVar("R")


class RunBlocking(Protocol):
    """Runs a blocking function to its end and gives back what it returned: `trio.to_thread.run_sync`, or inline.

    Once begun, the function is never abandoned, whatever becomes of the caller.
    """

    def __call__(self, function: Callable[[], R], /) -> Awaitable[R]: ...


@frozen
class Blob:
    """A large part of an event, kept beside it under (stream, kind): written once, pruned when nobody needs it."""

    kind: str
    data: bytes = field(repr=False)


@frozen
class NewEvent:
    """An event to append: what `codec.EventCodec.encode` makes. `data` may hold secrets and is never shown."""

    name: str
    version: int
    data: bytes = field(repr=False)
    blobs: tuple[Blob, ...] = ()
    contents: tuple[bytes, ...] = field(default=(), repr=False)
    """Large parts that other events have in common with this one; `data` names each by its SHA-256."""
    recorded_at: float | None = None
    """Of an event that another store had recorded; None: now."""


@frozen
class Recorded:
    """An event as it stands in the store; `recorded_at` is in seconds since 1970."""

    id: int
    stream: str
    position: int
    name: str
    version: int
    data: bytes = field(repr=False)
    recorded_at: float


@frozen
class Snapshot:
    """What a stream's events up to `position` add up to. `form` says to whom it means something; never the truth, only
    quicker than the events."""

    stream: str
    position: int
    form: bytes
    data: bytes = field(repr=False)


@frozen
class ArchivedStream:
    """A stream that nobody appends to any more; ids grow in the order of archiving."""

    id: int
    stream: str
    summary: bytes = field(repr=False)
    archived_at: float
    """Seconds since 1970."""


@frozen
class Cursor:
    """ "The subscription `name` has dealt with everything up to the event `id`", to be written with an append."""

    name: str
    id: int


class Conflict(LocalError):
    """The stream is not at the version that the events were decided on: reload, decide again."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__("conflict", f"stream {stream} is at version {actual}, not at {expected} as expected")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class AlreadyHandled(LocalError):
    """The subscription has dealt with this event before; nothing was written a second time. Go on to the next."""

    def __init__(self, cursor: Cursor, actual: int) -> None:
        super().__init__(
            "already_handled", f"subscription {cursor.name} stands at event {actual}, so {cursor.id} was handled before"
        )
        self.cursor = cursor
        self.actual = actual


class BlobExists(LocalError):
    """Blobs are written once: replacing one could lose the signatures that protect our money."""

    def __init__(self, stream: str, kind: str) -> None:
        super().__init__("blob_exists", f"stream {stream} already has a blob {kind}")
        self.stream = stream
        self.kind = kind


class Archived(LocalError):
    """The stream was archived: nothing is ever appended to it again."""

    def __init__(self, stream: str) -> None:
        super().__init__("archived", f"stream {stream} is archived, and complete")
        self.stream = stream


class Unreadable(LocalError):
    """Something in the store cannot be read, and the rest of it can."""


class StoreReadOnly(WorldError):
    """The store is damaged: it is read as far as it can be, and nothing is written."""


class Backend(ABC):
    """Where the events are kept: plain blocking calls, which `EventStore` makes.

    At any time it makes at most one call to `write`, and beside it at most one call that reads. What reads sees what
    was written by the writes that returned, and no part of one that has not. Reading and opening raise `WorldError`, or
    `NeedsUser` when the store cannot go on without its user.
    """

    last_id: int
    """The id of the newest event that is durable; ids stay used when their events are archived."""

    # Writing, within `write`

    @abstractmethod
    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        """Run these calls of what follows, up to `archive`, and make what they did durable, together.

        Gives what each returned or raised, in order: each happens whole or not at all, and one that fails does not take
        another with it. Raises only when the store cannot go on.
        """

    @abstractmethod
    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]: ...

    @abstractmethod
    def ack(self, cursor: Cursor) -> None: ...

    @abstractmethod
    def prune(self, stream: str, kinds: Iterable[str]) -> None: ...

    @abstractmethod
    def keep_snapshot(self, snapshot: Snapshot) -> None: ...

    @abstractmethod
    def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes]) -> None: ...

    # Reading

    @abstractmethod
    def load(self, stream: str, after: int) -> list[Recorded]: ...

    @abstractmethod
    def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]: ...

    @abstractmethod
    def read(self, after_id: int, limit: int) -> list[Recorded]: ...

    @abstractmethod
    def streams(self) -> list[str]: ...

    @abstractmethod
    def blob(self, stream: str, kind: str) -> bytes | None: ...

    @abstractmethod
    def cursor(self, name: str) -> int | None: ...

    @abstractmethod
    def contents(self, hashes: Collection[bytes]) -> dict[bytes, bytes]: ...

    @abstractmethod
    def snapshots(self, prefix: str) -> list[Snapshot]: ...

    @abstractmethod
    def archived(self, prefix: str, before: int | None, limit: int) -> list[ArchivedStream]: ...

    @abstractmethod
    def load_archived(self, stream: str) -> list[Recorded]: ...

    @abstractmethod
    def marked(self, marks: Collection[bytes]) -> frozenset[bytes]: ...

    @abstractmethod
    def keep_copy(self, why: str) -> str: ...

    @abstractmethod
    def close(self) -> None: ...


@define(eq=False)
class _Wish:
    """A write that a task waits for."""

    write: Callable[[], object]
    result: outcome.Outcome[object] | None = None
    done: trio.Event = field(factory=trio.Event)


class EventStore:
    """The store as its users see it, over a `Backend`. Made and run by `serve`.

    Appends of many tasks that come while one commit is under way go into the next commit together, and share its fsync.
    """

    def __init__(self, backend: Backend, run_blocking: RunBlocking, report: Report = UNREPORTED) -> None:
        self._backend = backend
        self._run_blocking = run_blocking
        self._report = report
        self._last_id = backend.last_id
        self._moved = trio.Event()  # set and replaced when `last_id` grows, or the store closes
        self._wishes: list[_Wish] = []
        self._wanted = trio.Event()  # there are wishes, or damage was found
        self._reading = trio.Lock()
        self._damage: NeedsUser | None = None
        self._closed = False
        self.appended = 0
        """Events, in this life."""
        self.appended_bytes = 0
        """Of these, with their blobs."""

    # Writing

    async def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], *, cursor: Cursor | None = None
    ) -> list[Recorded]:
        """Write all of `events`, their blobs and `cursor`, or nothing; durable before it returns.

        `expected_version` is the position of the last event that the caller knows of, 0 for a new stream.
        With a `cursor` the reaction to an event is written exactly once, also if it is no events at all.
        Raises `Conflict`, `AlreadyHandled`, `BlobExists`, `Archived`, or as the module says.
        """
        recorded = await self._write(partial(self._backend.append, stream, expected_version, tuple(events), cursor))
        self.appended += len(recorded)
        self.appended_bytes += sum(len(event.data) + sum(len(blob.data) for blob in event.blobs) for event in events)
        return recorded

    async def ack(self, cursor: Cursor) -> None:
        """Move a cursor forward (never back) after a reaction in the world outside: at least once."""
        await self._write(partial(self._backend.ack, cursor))

    async def prune(self, stream: str, kinds: Iterable[str]) -> None:
        """Delete these blobs of a stream; those that do not exist are no error, so it may be repeated."""
        await self._write(partial(self._backend.prune, stream, tuple(kinds)))

    async def keep_snapshot(self, stream: str, position: int, form: bytes, data: bytes) -> None:
        """Keep what the stream's events up to `position` add up to, in the place of the last one."""
        await self._write(partial(self._backend.keep_snapshot, Snapshot(stream, position, form, data)))

    async def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes] = ()) -> None:
        """Put a stream that is complete away: `streams`, `load` and `read` do not show it any more, its blobs and its
        snapshot are gone, appending to it is refused (`Archived`). `marks` are remembered for ever.

        Raises `Conflict` when there are other events than the caller knows of.
        """
        await self._write(partial(self._backend.archive, stream, expected_version, summary, tuple(marks)))

    async def _write(self, write: Callable[[], R]) -> R:
        self._check_open()
        wish = _Wish(write)
        self._wishes.append(wish)
        self._wanted.set()
        try:
            await wish.done.wait()
        except trio.Cancelled:
            if wish in self._wishes:
                self._wishes.remove(wish)
            raise
        if wish.result is None:
            raise trio.ClosedResourceError("the event store went down; whether this was written is unknown")
        return cast(R, wish.result.unwrap())

    # Reading

    async def load(self, stream: str, after: int = 0) -> list[Recorded]:
        """The events of a stream whose position is greater than `after`, in order; empty for an unknown stream."""
        return await self._read(partial(self._backend.load, stream, after))

    async def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]:
        """By stream what `load` gives after this position: many streams in one call."""
        return await self._read(partial(self._backend.tails, dict(after)))

    async def read(self, after_id: int = 0, limit: int = 1000) -> list[Recorded]:
        """At most `limit` events of all streams with an id greater than `after_id`, in order."""
        return await self._read(partial(self._backend.read, after_id, limit))

    async def streams(self) -> list[str]:
        """The names of all streams, sorted."""
        return await self._read(self._backend.streams)

    async def blob(self, stream: str, kind: str) -> bytes | None:
        """A blob's data; None when it was never written or is pruned."""
        return await self._read(partial(self._backend.blob, stream, kind))

    async def cursor(self, name: str) -> int | None:
        """The id up to which the subscription `name` has dealt with events; None before its first word."""
        return await self._read(partial(self._backend.cursor, name))

    async def contents(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        """Those of these contents that are there, by their SHA-256."""
        return await self._read(partial(self._backend.contents, tuple(hashes)))

    async def snapshots(self, prefix: str = "") -> list[Snapshot]:
        """Of the live streams whose name begins so; each has one at most."""
        return await self._read(partial(self._backend.snapshots, prefix))

    async def archived(self, prefix: str = "", before: int | None = None, limit: int = 100) -> list[ArchivedStream]:
        """At most `limit` archived streams whose name begins so and whose id is below `before`, the newest first."""
        return await self._read(partial(self._backend.archived, prefix, before, limit))

    async def load_archived(self, stream: str) -> list[Recorded]:
        """The events of an archived stream, in order; empty for an unknown one."""
        return await self._read(partial(self._backend.load_archived, stream))

    async def marked(self, marks: Collection[bytes]) -> frozenset[bytes]:
        """Those of these that `archive` was given some time."""
        return await self._read(partial(self._backend.marked, tuple(marks)))

    async def _read(self, read: Callable[[], R]) -> R:
        async with self._reading:
            self._check_open()
            try:
                return await self._run_blocking(read)
            except NeedsUser as error:
                self._damage = error
                self._wanted.set()
                raise trio.BrokenResourceError("the event store is damaged") from error

    async def keep_copy(self, why: str) -> str:
        """Keep all that is written now beside the store, for whoever wants to look; gives the place. `why` is part of
        its name."""
        return await self._read(partial(self._backend.keep_copy, why))

    @property
    def last_id(self) -> int:
        """The id of the newest event (0 before the first); every event up to it can be read."""
        return self._last_id

    async def wait_beyond(self, after_id: int) -> None:
        """Wait until there is an event with an id greater than `after_id`."""
        await trio.lowlevel.checkpoint()
        while self._last_id <= after_id:
            self._check_open()
            await self._moved.wait()

    # Life

    async def run(self) -> None:
        """Commit group after group, for ever; while there are none, see from time to time that it could be done."""
        while True:
            with trio.move_on_after(IDLE):
                await self._wanted.wait()
            self._wanted = trio.Event()
            if self._damage is not None:
                raise self._damage
            group, self._wishes = self._wishes, []
            try:
                results = await self._run_blocking(partial(self._backend.write, [wish.write for wish in group]))
            except BaseException:
                self._wishes = group + self._wishes  # `close` answers them
                raise
            self._report.beat()
            for wish, result in zip(group, results, strict=True):
                wish.result = result
                wish.done.set()
            if self._backend.last_id > self._last_id:
                self._last_id = self._backend.last_id
                self._wake()

    async def close(self) -> None:
        """Answer everybody who waits, then close the backend."""
        self._closed = True
        self._wake()
        for wish in self._wishes:
            wish.done.set()
        async with self._reading:
            await self._run_blocking(self._backend.close)

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the event store is down")


async def serve(
    backend: Backend,
    run_blocking: RunBlocking,
    *,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[EventStore],
) -> None:
    """Run a store over an open backend, for ever, and close the backend in the end."""
    store = EventStore(backend, run_blocking, report)
    try:
        task_status.started(store)
        await store.run()
    finally:
        with trio.CancelScope(shield=True):
            await store.close()
