"""The event store on SQLite: `run_store`, and the backend over two connections to one file.

The writer runs groups of writes: one transaction and so one fsync for the group, a savepoint for each write, so that a
refused one fails alone. The reader sees only what is committed (WAL), and is not held up by the writer.

A file of an older schema is migrated when it is opened, once a copy of it stands beside it. A damaged one is left as it
is: what can be read of it is served, and nothing is written (:mod:`node.eventstore.damaged`).

Nobody else in this process may open and close the file while it is in use: POSIX would drop SQLite's locks on it.
"""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import outcome
import trio

from node.clock import Clock
from node.errors import NeedsUser
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
    RunBlocking,
    Snapshot,
    serve,
)
from node.eventstore.lock import lock_directory
from node.health import UNREPORTED, Report
from protocols.errors import WorldError

APPLICATION_ID = 0x63666431
MIGRATIONS = (
    """
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
    """,
    """
    CREATE TABLE contents (
        hash BLOB NOT NULL UNIQUE,
        data BLOB NOT NULL
    );
    CREATE TABLE snapshots (
        stream TEXT PRIMARY KEY,
        position INTEGER NOT NULL,
        form BLOB NOT NULL,
        data BLOB NOT NULL
    );
    CREATE TABLE archive (
        id INTEGER PRIMARY KEY,
        stream TEXT NOT NULL UNIQUE,
        summary BLOB NOT NULL,
        archived_at REAL NOT NULL,
        events BLOB NOT NULL
    );
    CREATE TABLE marks (
        mark BLOB PRIMARY KEY
    ) WITHOUT ROWID;
    """,
)
"""What turns schema version n into n + 1; a new file goes through all of them. One that was released never changes."""
SCHEMA_VERSION = len(MIGRATIONS)
AT_ONCE = 500
"""Values in one question: SQLite has a limit."""
DAMAGED = ("move-aside", "restore-backup")
"""The repairs that are offered for a damaged file."""

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
            if not path.exists():
                self._create()
            elif not path.stat().st_size:
                raise self._corrupt("it is empty")
            self._writer = opened.enter_context(contextlib.closing(self._connect(path)))
            self._prepare()
            self._reader = opened.enter_context(contextlib.closing(self._connect(path)))
            self._reader.execute("PRAGMA query_only = ON")
            self.last_id = self._newest(self._reader)
            opened.pop_all()

    def _create(self) -> None:
        """A file with the schema, which comes to stand there whole: an empty one is one that was damaged."""
        made = self.path.with_name(f"{self.path.name}.new")
        made.unlink(missing_ok=True)  # of a start that was interrupted
        # created by us so that nobody else may read it; SQLite gives its other files the same mode
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(self._connect(made)) as connection:
            self._migrate(connection, 0)
        made.rename(self.path)
        _sync(self.path.parent)

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        # isolation_level None: transactions are begun and ended by this module alone
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
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
        if application != APPLICATION_ID:
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
        self._check(connection)
        if version < SCHEMA_VERSION:
            self._copy(connection, f"v{version}")
            self._migrate(connection, version)
            self._check(connection)

    def _check(self, connection: sqlite3.Connection) -> None:
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise self._corrupt("; ".join(problems))

    @staticmethod
    def _migrate(connection: sqlite3.Connection, version: int) -> None:
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; {' '.join(MIGRATIONS[version:])} PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def keep_copy(self, why: str) -> str:
        # VACUUM is refused within a transaction, and on a connection that may only read
        with self._trouble(), contextlib.closing(self._connect(self.path)) as connection:
            return str(self._copy(connection, why))

    def _copy(self, connection: sqlite3.Connection, why: str) -> Path:
        """All of the file as it is; of an older schema, for whoever wants to go back to the program that wrote it."""
        made = self.path.with_name(f"{self.path.name}.copying")
        made.unlink(missing_ok=True)
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            connection.execute("VACUUM INTO ?", (str(made),))
            _sync(made)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
        kept = _free(self.path, why, self._now())
        made.rename(kept)
        _sync(self.path.parent)
        return kept

    def _corrupt(self, problem: str) -> NeedsUser:
        return NeedsUser(
            f"{self.path} is damaged: {problem}",
            "restore a backup, or move the file aside to start without its positions",
            code="store_corrupt",
            repairs=DAMAGED,
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
        self._check_version(stream, expected_version)
        if cursor is not None:
            row = execute("SELECT id FROM cursors WHERE name = ?", (cursor.name,)).fetchone()
            if row is not None and row[0] >= cursor.id:
                raise AlreadyHandled(cursor, row[0])
            self.ack(cursor)
        now = self._now()
        recorded = []
        for position, event in enumerate(events, start=expected_version + 1):
            at = now if event.recorded_at is None else event.recorded_at
            values = (stream, position, event.name, event.version, event.data, at)
            id_ = execute(
                "INSERT INTO events (stream, position, name, version, data, recorded_at) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
            assert id_ is not None
            for blob in event.blobs:
                if execute("SELECT 1 FROM blobs WHERE stream = ? AND kind = ?", (stream, blob.kind)).fetchone():
                    raise BlobExists(stream, blob.kind)
                execute("INSERT INTO blobs VALUES (?, ?, ?, ?)", (stream, blob.kind, id_, blob.data))
            for piece in event.contents:
                execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (sha256(piece).digest(), piece))
            recorded.append(Recorded(id_, *values))
        return recorded

    def _check_version(self, stream: str, expected_version: int) -> None:
        execute = self._writer.execute
        (actual,) = execute("SELECT coalesce(max(position), 0) FROM events WHERE stream = ?", (stream,)).fetchone()
        # a stream that is live is not archived: looking is needed for new ones only
        if not actual and execute("SELECT 1 FROM archive WHERE stream = ?", (stream,)).fetchone():
            raise Archived(stream)
        if actual != expected_version:
            raise Conflict(stream, expected_version, actual)

    def ack(self, cursor: Cursor) -> None:
        self._writer.execute(
            "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET id = max(id, excluded.id)",
            (cursor.name, cursor.id),
        )

    def prune(self, stream: str, kinds: Iterable[str]) -> None:
        self._writer.executemany("DELETE FROM blobs WHERE stream = ? AND kind = ?", [(stream, kind) for kind in kinds])

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        values = (snapshot.stream, snapshot.position, snapshot.form, snapshot.data)
        self._writer.execute(
            "INSERT OR REPLACE INTO snapshots SELECT ?1, ?2, ?3, ?4"
            " WHERE EXISTS (SELECT 1 FROM events WHERE stream = ?1)",
            values,
        )

    def archive(self, stream: str, expected_version: int, summary: bytes, marks: Collection[bytes]) -> None:
        self._check_version(stream, expected_version)
        execute = self._writer.execute
        rows = execute("SELECT * FROM events WHERE stream = ? ORDER BY position", (stream,)).fetchall()
        packed = zlib.compress(msgpack.packb([[row[0], *row[2:]] for row in rows]))
        execute(
            "INSERT INTO archive (stream, summary, archived_at, events) VALUES (?, ?, ?, ?)",
            (stream, summary, self._now(), packed),
        )
        for table in ("blobs", "snapshots", "events"):  # blobs refer to events
            execute(f"DELETE FROM {table} WHERE stream = ?", (stream,))  # noqa: S608
        self._writer.executemany("INSERT OR IGNORE INTO marks VALUES (?)", [(mark,) for mark in marks])

    # Reading

    @staticmethod
    def _newest(connection: sqlite3.Connection) -> int:
        # not max(id): an id stays used when its event is archived
        newest: int = connection.execute(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'"
        ).fetchone()[0]
        return newest

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._trouble():
            return self._reader.execute(query, values).fetchall()

    def load(self, stream: str, after: int) -> list[Recorded]:
        query = "SELECT * FROM events WHERE stream = ? AND position > ? ORDER BY position"
        return [Recorded(*row) for row in self._select(query, stream, after)]

    def tails(self, after: Mapping[str, int]) -> dict[str, list[Recorded]]:
        return {stream: self.load(stream, position) for stream, position in after.items()}

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

    def contents(self, hashes: Collection[bytes]) -> dict[bytes, bytes]:
        return dict(self._select_in("SELECT hash, data FROM contents WHERE hash IN", hashes))

    def snapshots(self, prefix: str) -> list[Snapshot]:
        query = "SELECT * FROM snapshots WHERE substr(stream, 1, ?) = ? ORDER BY stream"
        return [Snapshot(*row) for row in self._select(query, len(prefix), prefix)]

    def archived(self, prefix: str, before: int | None, limit: int) -> list[ArchivedStream]:
        query = (
            "SELECT id, stream, summary, archived_at FROM archive WHERE substr(stream, 1, ?) = ? AND id < ?"
            " ORDER BY id DESC LIMIT ?"
        )
        rows = self._select(query, len(prefix), prefix, 2**62 if before is None else before, limit)
        return [ArchivedStream(*row) for row in rows]

    def load_archived(self, stream: str) -> list[Recorded]:
        rows = self._select("SELECT events FROM archive WHERE stream = ?", stream)
        return [
            Recorded(id_, stream, *rest)
            for (packed,) in rows
            for id_, *rest in msgpack.unpackb(zlib.decompress(packed))
        ]

    def marked(self, marks: Collection[bytes]) -> frozenset[bytes]:
        return frozenset(mark for (mark,) in self._select_in("SELECT mark FROM marks WHERE mark IN", marks))

    def _select_in(self, query: str, values: Collection[bytes]) -> Iterator[tuple[Any, ...]]:
        every = list(values)
        for start in range(0, len(every), AT_ONCE):
            some = every[start : start + AT_ONCE]
            yield from self._select(f"{query} ({', '.join('?' * len(some))})", *some)


def move_aside(path: Path, now: float) -> Path:
    """Give the store's files, damaged or not, another name beside their own, and return it. Nothing is deleted.

    `now` is in seconds since 1970. Raises `WorldError`.
    """
    aside = _free(path, "damaged", now)
    try:
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
        _sync(path.parent)
    except OSError as error:
        raise WorldError("disk_error", f"{path}: cannot be moved aside: {error.strerror}") from error
    return aside


def _free(path: Path, kind: str, now: float) -> Path:
    """A name that nothing has yet."""
    named = f"{path.name}.{kind}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}"
    names = (path.with_name(named if n == 0 else f"{named}.{n}") for n in range(1000))
    return next(name for name in names if not name.exists())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    processes. A damaged one is served as far as it can be read. Raises `NeedsUser` when only the user can help,
    `WorldError` when the disk is in the way.
    """
    now = (clock or Clock()).now
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(lock_directory(path.parent))
        except OSError as error:
            raise WorldError("disk_error", f"{path.parent}: {error.strerror}") from error
        try:
            backend: Backend = await run_blocking(partial(SqliteBackend, path, now))
        except NeedsUser as damage:
            if damage.code != "store_corrupt":
                raise
            from node.eventstore.damaged import salvaged, told

            backend = readable = await run_blocking(partial(salvaged, path, damage))
            said = f"{damage.sentence}; nothing is written{told(readable)}"
            report.degraded(said, damage.remedy, damage.repairs)
        try:
            await serve(backend, run_blocking, report=report, task_status=task_status)
        except NeedsUser as damage:
            if damage.code != "store_corrupt":
                raise
            # found while it was in use: the next life looks at all of it, and serves what can be read
            raise WorldError("store_damaged", damage.sentence) from damage
