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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeVar, cast

import outcome
import trio
from attrs import define, field, frozen
from node.errors import NeedsUser
from node.health import UNREPORTED, Report
from protocols.errors import LocalError

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


class Backend(ABC):
    """Where the events are kept: plain blocking calls, which `EventStore` makes.

    At any time it makes at most one call to `write`, and beside it at most one call that reads. What reads sees what
    was written by the writes that returned, and no part of one that has not. Reading and opening raise `WorldError`, or
    `NeedsUser` when the store cannot go on without its user.
    """

    last_id: int
    """The id of the newest event that is durable; ids stay used when their events are archived."""

    @abstractmethod
    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        """Run these calls of `append`, `ack` and `prune` and make what they did durable, together.

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
    def load(self, stream: str, after: int) -> list[Recorded]: ...

    @abstractmethod
    def read(self, after_id: int, limit: int) -> list[Recorded]: ...

    @abstractmethod
    def streams(self) -> list[str]: ...

    @abstractmethod
    def blob(self, stream: str, kind: str) -> bytes | None: ...

    @abstractmethod
    def cursor(self, name: str) -> int | None: ...

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
        self._report = report
        self._run_blocking = run_blocking
        self._last_id = backend.last_id
        self._moved = trio.Event()  # set and replaced when `last_id` grows, or the store closes
        self._wishes: list[_Wish] = []
        self._wanted = trio.Event()  # there are wishes, or damage was found
        self._reading = trio.Lock()
        self._damage: NeedsUser | None = None
        self._closed = False

    # Writing

    async def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], *, cursor: Cursor | None = None
    ) -> list[Recorded]:
        """Write all of `events`, their blobs and `cursor`, or nothing; durable before it returns.

        `expected_version` is the position of the last event that the caller knows of, 0 for a new stream.
        With a `cursor` the reaction to an event is written exactly once, also if it is no events at all.
        Raises `Conflict`, `AlreadyHandled`, `BlobExists`, or as the module says.
        """
        return await self._write(partial(self._backend.append, stream, expected_version, tuple(events), cursor))

    async def ack(self, cursor: Cursor) -> None:
        """Move a cursor forward (never back) after a reaction in the world outside: at least once."""
        await self._write(partial(self._backend.ack, cursor))

    async def prune(self, stream: str, kinds: Iterable[str]) -> None:
        """Delete these blobs of a stream; those that do not exist are no error, so it may be repeated."""
        await self._write(partial(self._backend.prune, stream, tuple(kinds)))

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

    async def _read(self, read: Callable[[], R]) -> R:
        async with self._reading:
            self._check_open()
            try:
                return await self._run_blocking(read)
            except NeedsUser as error:
                self._damage = error
                self._wanted.set()
                raise trio.BrokenResourceError("the event store is damaged") from error

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
            with trio.move_on_after(self._report.beat_every):
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
