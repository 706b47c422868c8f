"""The event store on SQLite, as a service: `run_store`.

Appends of many tasks that come while one commit is under way go into the next commit together, and share its fsync.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import outcome
import trio
from attrs import define, field

from node.clock import Clock
from node.errors import NeedsUser
from node.eventstore.database import Database
from node.eventstore.interface import Cursor, EventStore, NewEvent, Recorded, RunBlocking
from node.eventstore.lock import lock_directory
from protocols.errors import WorldError

R = TypeVar("R")


@define(eq=False)
class _Wish:
    """A write that a task waits for."""

    write: Callable[[], object]
    result: outcome.Outcome[object] | None = None
    done: trio.Event = field(factory=trio.Event)


class SqliteStore(EventStore):
    """Made and run by `run_store` alone."""

    def __init__(self, database: Database, run_blocking: RunBlocking) -> None:
        self._database = database
        self._run_blocking = run_blocking
        self._last_id = database.last_id
        self._moved = trio.Event()  # set and replaced when `last_id` grows, or the store closes
        self._wishes: list[_Wish] = []
        self._wanted = trio.Event()  # there are wishes, or damage was found
        self._reading = trio.Lock()
        self._damage: NeedsUser | None = None
        self._closed = False

    # Writing

    async def run(self) -> None:
        """Commit group after group, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._damage is not None:
                raise self._damage
            group, self._wishes = self._wishes, []
            if not group:
                continue
            try:
                results = await self._run_blocking(partial(self._database.write, [wish.write for wish in group]))
            except BaseException:
                self._wishes = group + self._wishes  # `close` answers them
                raise
            for wish, result in zip(group, results, strict=True):
                wish.result = result
                wish.done.set()
            if self._database.last_id > self._last_id:
                self._last_id = self._database.last_id
                self._wake()

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

    async def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], *, cursor: Cursor | None = None
    ) -> list[Recorded]:
        return await self._write(partial(self._database.append, stream, expected_version, tuple(events), cursor))

    async def ack(self, cursor: Cursor) -> None:
        await self._write(partial(self._database.ack, cursor))

    async def prune(self, stream: str, kinds: Iterable[str]) -> None:
        await self._write(partial(self._database.prune, stream, tuple(kinds)))

    # Reading

    async def _read(self, read: Callable[[], R]) -> R:
        async with self._reading:
            self._check_open()
            try:
                return await self._run_blocking(read)
            except NeedsUser as error:
                self._damage = error
                self._wanted.set()
                raise trio.BrokenResourceError("the event store is damaged") from error

    async def load(self, stream: str, after: int = 0) -> list[Recorded]:
        return await self._read(partial(self._database.load, stream, after))

    async def read(self, after_id: int = 0, limit: int = 1000) -> list[Recorded]:
        return await self._read(partial(self._database.read, after_id, limit))

    async def streams(self) -> list[str]:
        return await self._read(self._database.streams)

    async def blob(self, stream: str, kind: str) -> bytes | None:
        return await self._read(partial(self._database.blob, stream, kind))

    async def cursor(self, name: str) -> int | None:
        return await self._read(partial(self._database.cursor, name))

    @property
    def last_id(self) -> int:
        return self._last_id

    async def wait_beyond(self, after_id: int) -> None:
        await trio.lowlevel.checkpoint()
        while self._last_id <= after_id:
            self._check_open()
            await self._moved.wait()

    # Life

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the event store is down")

    async def close(self) -> None:
        """Answer everybody who waits, then close the file."""
        self._closed = True
        self._wake()
        for wish in self._wishes:
            wish.done.set()
        async with self._reading:
            await self._run_blocking(self._database.close)


async def run_store(
    path: Path,
    *,
    clock: Clock = Clock(),  # noqa: B008 - frozen
    run_blocking: RunBlocking = trio.to_thread.run_sync,
    task_status: trio.TaskStatus[EventStore] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the store in the SQLite file `path`, for ever; the started value is the `EventStore`.

    The file is created if there is none, and checked if there is one; its directory is locked against other
    processes. Raises `NeedsUser` when only the user can help, `WorldError` when the disk is in the way.
    """
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(lock_directory(path.parent))
        except OSError as error:
            raise WorldError("disk_error", f"{path.parent}: {error.strerror}") from error
        store = SqliteStore(await run_blocking(partial(Database, path, clock.now)), run_blocking)
        try:
            task_status.started(store)
            await store.run()
        finally:
            with trio.CancelScope(shield=True):
                await store.close()
