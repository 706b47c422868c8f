"""The event store on SQLite: `run_store`, and the backend over two connections to one file.

The writer runs groups of writes: one transaction and so one fsync for the group, a savepoint for each write, so that a
refused one fails alone. The reader sees only what is committed (WAL), and is not held up by the writer.

Nobody else in this process may open and close the file while it is in use: POSIX would drop SQLite's locks on it.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import outcome
import trio
from node.clock import Clock
from node.errors import NeedsUser
from node.eventstore.lock import lock_directory
from node.health import UNREPORTED, Report
from protocols.errors import WorldError

from node.eventstore.interface import (
    AlreadyHandled,
    Backend,
    BlobExists,
    Conflict,
    Cursor,
    EventStore,
    NewEvent,
    Recorded,
    RunBlocking,
    serve,
)

SCHEMA_VERSION = 1
APPLICATION_ID = 0x63666431
SCHEMA = """
-- the columns of events are the fields of Recorded, in their order
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT NOT NULL,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,
    recorded_at REAL NOT NULL,
    UNIQUE (stream, position)
);
CREATE TABLE blobs (
    stream TEXT NOT NULL,
    kind TEXT NOT NULL,
    event INTEGER NOT NULL REFERENCES events (id),
    data BLOB NOT NULL,
    UNIQUE (stream, kind)
);
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    id INTEGER NOT NULL
);
"""

WORLD = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""SQLite's primary error codes that are neither damage nor a bug."""


class SqliteBackend(Backend):
    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        """Open or create the file, and check it. Raises `NeedsUser` or `WorldError`."""
        self.path = path
        self._now = now
        with self._trouble(), contextlib.ExitStack() as opened:
            # created by us so that nobody else may read it; SQLite gives its other files the same mode
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = opened.enter_context(contextlib.closing(self._connect()))
            self._prepare()
            self._reader = opened.enter_context(contextlib.closing(self._connect()))
            self._reader.execute("PRAGMA query_only = ON")
            self.last_id = self._newest(self._reader)
            opened.pop_all()

    def _connect(self) -> sqlite3.Connection:
        # isolation_level None: transactions are begun and ended by this module alone
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        connection = self._writer
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        fresh = (version, application, tables) == (0, 0, 0)
        if not fresh and application != APPLICATION_ID:
            raise NeedsUser(
                f"{self.path} is an SQLite database, but not an event store of this program",
                "give the node a data directory of its own",
                code="not_an_event_store",
            )
        if version > SCHEMA_VERSION:
            raise NeedsUser(
                f"{self.path} has schema version {version}; this program knows versions up to {SCHEMA_VERSION}",
                "run the newer version of this program that wrote it",
                code="store_too_new",
            )
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise WorldError("disk_error", f"{self.path}: its file system cannot hold a write-ahead log")
        if fresh:
            connection.executescript(
                f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise self._corrupt("; ".join(problems))

    def _corrupt(self, problem: str) -> NeedsUser:
        return NeedsUser(
            f"{self.path} is damaged: {problem}",
            "restore a backup, or move the file aside to start without its positions",
            code="store_corrupt",
        )

    def close(self) -> None:
        with self._trouble():
            self._reader.close()
            self._writer.close()  # last, so that the log is folded into the file

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        """Sort SQLite's errors: the world's, damage, and (passed on) bugs."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise WorldError("disk_full", f"{self.path}: the disk is full") from error
            if code in WORLD:
                raise WorldError("disk_error", f"{self.path}: {error}") from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._corrupt(str(error)) from error
            raise
        except OSError as error:
            raise WorldError("disk_error", f"{self.path}: {error.strerror}") from error

    # Writing

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        # if the group's transaction is lost, each gets one of its own: one too large for the disk fails alone
        try:
            with self._trouble():
                return self._transaction(group)
        except WorldError as error:
            if len(group) == 1:
                return [outcome.Error(error)]
        return [self.write([one])[0] for one in group]

    def _transaction(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        results: list[outcome.Outcome[object]] = []
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            for one in group:
                connection.execute("SAVEPOINT one")
                try:
                    with self._trouble():
                        results.append(outcome.Value(one()))
                except NeedsUser:
                    raise
                except Exception as error:  # it goes to the task that asked for this write
                    if not connection.in_transaction:
                        raise  # SQLite gave up the whole transaction
                    connection.execute("ROLLBACK TO one")
                    results.append(outcome.Error(error))
                connection.execute("RELEASE one")
            last_id = self._newest(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")  # a failed COMMIT leaves the transaction open
            raise
        self.last_id = last_id
        return results

    def append(
        self, stream: str, expected_version: int, events: Sequence[NewEvent], cursor: Cursor | None
    ) -> list[Recorded]:
        execute = self._writer.execute
        (actual,) = execute("SELECT coalesce(max(position), 0) FROM events WHERE stream = ?", (stream,)).fetchone()
        if actual != expected_version:
            raise Conflict(stream, expected_version, actual)
        if cursor is not None:
            row = execute("SELECT id FROM cursors WHERE name = ?", (cursor.name,)).fetchone()
            if row is not None and row[0] >= cursor.id:
                raise AlreadyHandled(cursor, row[0])
            self.ack(cursor)
        now = self._now()
        recorded = []
        for position, event in enumerate(events, start=expected_version + 1):
            values = (stream, position, event.name, event.version, event.data, now)
            id_ = execute(
                "INSERT INTO events (stream, position, name, version, data, recorded_at) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
            assert id_ is not None
            for blob in event.blobs:
                if execute("SELECT 1 FROM blobs WHERE stream = ? AND kind = ?", (stream, blob.kind)).fetchone():
                    raise BlobExists(stream, blob.kind)
                execute("INSERT INTO blobs VALUES (?, ?, ?, ?)", (stream, blob.kind, id_, blob.data))
            recorded.append(Recorded(id_, *values))
        return recorded

    def ack(self, cursor: Cursor) -> None:
        self._writer.execute(
            "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET id = max(id, excluded.id)",
            (cursor.name, cursor.id),
        )

    def prune(self, stream: str, kinds: Iterable[str]) -> None:
        self._writer.executemany("DELETE FROM blobs WHERE stream = ? AND kind = ?", [(stream, kind) for kind in kinds])

    # Reading

    @staticmethod
    def _newest(connection: sqlite3.Connection) -> int:
        # not max(id): an id stays used when its event is archived
        newest: int = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
        return newest

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._trouble():
            return self._reader.execute(query, values).fetchall()

    def load(self, stream: str, after: int) -> list[Recorded]:
        query = "SELECT * FROM events WHERE stream = ? AND position > ? ORDER BY position"
        return [Recorded(*row) for row in self._select(query, stream, after)]

    def read(self, after_id: int, limit: int) -> list[Recorded]:
        query = "SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?"
        return [Recorded(*row) for row in self._select(query, after_id, limit)]

    def streams(self) -> list[str]:
        return [row[0] for row in self._select("SELECT DISTINCT stream FROM events ORDER BY stream")]

    def blob(self, stream: str, kind: str) -> bytes | None:
        rows = self._select("SELECT data FROM blobs WHERE stream = ? AND kind = ?", stream, kind)
        return rows[0][0] if rows else None

    def cursor(self, name: str) -> int | None:
        rows = self._select("SELECT id FROM cursors WHERE name = ?", name)
        return rows[0][0] if rows else None


async def run_store(
    path: Path,
    *,
    clock: Clock | None = None,
    run_blocking: RunBlocking = trio.to_thread.run_sync,
    report: Report = UNREPORTED,
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
        backend = await run_blocking(partial(SqliteBackend, path, (clock or Clock()).now))
        await serve(backend, run_blocking, report=report, task_status=task_status)
