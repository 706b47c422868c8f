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
from typing import Protocol, TypeVar

from attrs import field, frozen

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


class EventStore(ABC):
    """What every store does; tests/test_eventstore.py is the conformance suite."""

    @property
    @abstractmethod
    def last_id(self) -> int:
        """The id of the newest event (0 before the first); every event up to it can be read."""
        raise NotImplementedError

    @abstractmethod
    async def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], *, cursor: Cursor | None = None
    ) -> list[Recorded]:
        """Write all of `events`, their blobs and `cursor`, or nothing; durable before it returns.

        `expected_version` is the position of the last event that the caller knows of, 0 for a new stream.
        With a `cursor` the reaction to an event is written exactly once, also if it is no events at all.
        Raises `Conflict`, `AlreadyHandled`, `BlobExists`, or as the module says.
        """
        raise NotImplementedError

    @abstractmethod
    async def load(self, stream: str, after: int = 0) -> list[Recorded]:
        """The events of a stream whose position is greater than `after`, in order; empty for an unknown stream."""
        raise NotImplementedError

    @abstractmethod
    async def read(self, after_id: int = 0, limit: int = 1000) -> list[Recorded]:
        """At most `limit` events of all streams with an id greater than `after_id`, in order."""
        raise NotImplementedError

    @abstractmethod
    async def streams(self) -> list[str]:
        """The names of all streams, sorted."""
        raise NotImplementedError

    @abstractmethod
    async def blob(self, stream: str, kind: str) -> bytes | None:
        """A blob's data; None when it was never written or is pruned."""
        raise NotImplementedError

    @abstractmethod
    async def prune(self, stream: str, kinds: Iterable[str]) -> None:
        """Delete these blobs of a stream; those that do not exist are no error, so it may be repeated."""
        raise NotImplementedError

    @abstractmethod
    async def cursor(self, name: str) -> int | None:
        """The id up to which the subscription `name` has dealt with events; None before its first word."""
        raise NotImplementedError

    @abstractmethod
    async def ack(self, cursor: Cursor) -> None:
        """Move a cursor forward (never back) after a reaction in the world outside: at least once."""
        raise NotImplementedError

    @abstractmethod
    async def wait_beyond(self, after_id: int) -> None:
        """Wait until there is an event with an id greater than `after_id`."""
        raise NotImplementedError
