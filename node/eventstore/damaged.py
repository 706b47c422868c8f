"""What can still be read of a damaged file, in memory, for people to see; nothing is written, not even the file's log.

Rows are read in the order of their ids from both ends, past pages that cannot be read. A stream of which any event is
missing is left out: half of what happened to a position is no position.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import outcome
import structlog

from node.errors import NeedsUser
from node.eventstore.interface import Recorded, StoreReadOnly
from node.eventstore.memory import MemoryBackend

_log = structlog.get_logger(__name__)

NAMED = 20
"""Streams that are named, of those which are left out; the log names all."""
STEP = 256
"""Rows that are given up at most when one cannot be read."""


class Salvaged(MemoryBackend):
    """The readable part of a damaged file. It is read as any other store; each write is refused."""

    def __init__(self, damage: NeedsUser) -> None:
        super().__init__()
        self._damage = damage
        self.left_out: list[str] = []
        """Streams of which an event is missing."""

    def write(self, group: Sequence[Callable[[], object]]) -> list[outcome.Outcome[object]]:
        refusal = f"the event store is damaged and is not written to: {self._damage.remedy}"
        return [outcome.Error(StoreReadOnly("store_read_only", refusal)) for _ in group]

    def take(self, connection: sqlite3.Connection) -> None:
        """Everything that `connection` can read. Raises sqlite3.Error when that is nothing."""
        found: dict[str, dict[int, Recorded]] = {}
        for row in _rows(connection, "events"):
            recorded = Recorded(*row)
            found.setdefault(recorded.stream, {})[recorded.position] = recorded
        for stream, by_position in sorted(found.items()):
            if sorted(by_position) != list(range(1, len(by_position) + 1)):
                _log.error("a stream of the damaged store has gaps and is left out", stream=stream)
                self.left_out.append(stream)
                continue
            self._streams[stream] = [by_position[position] for position in sorted(by_position)]
        self._events = sorted((each for stream in self._streams.values() for each in stream), key=lambda each: each.id)
        self.last_id = self._events[-1].id if self._events else 0
        for table, keep in (
            ("blobs", lambda stream, kind, _, data: self._blobs.__setitem__((stream, kind), data)),
            ("cursors", self._cursors.__setitem__),
            ("contents", self._contents.__setitem__),
        ):
            with contextlib.suppress(sqlite3.Error):
                for row in _rows(connection, table):
                    keep(*row)


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """All rows that can be read."""
    (last,) = connection.execute(f"SELECT max(rowid) FROM {table} NOT INDEXED").fetchone()  # noqa: S608
    after = 0
    while last is not None and after < last:
        try:
            query = f"SELECT rowid, * FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT {STEP}"  # noqa: S608
            rows = connection.execute(query, (after,)).fetchall()
        except sqlite3.DatabaseError:
            yield from _one_by_one(connection, table, after)
            after += STEP
            continue
        for row in rows:
            yield row[1:]
        after = rows[-1][0] if rows else last


def _one_by_one(connection: sqlite3.Connection, table: str, after: int) -> Iterator[tuple[Any, ...]]:
    for rowid in range(after + 1, after + STEP + 1):
        with contextlib.suppress(sqlite3.DatabaseError):
            query = f"SELECT * FROM {table} NOT INDEXED WHERE rowid = ?"  # noqa: S608
            yield from connection.execute(query, (rowid,)).fetchall()


def salvaged(path: Path, damage: NeedsUser) -> Salvaged:
    """What can be read of the file. Raises `damage` when that is nothing."""
    backend = Salvaged(damage)
    # `immutable` leaves the log unread, and is for where the log itself is in the way
    for how in ("mode=ro", "mode=ro&immutable=1"):
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as connection:
                backend.take(connection)
        except sqlite3.Error as error:
            _log.warning("the damaged store cannot be read", file=str(path), how=how, reason=str(error))
        else:
            return backend
    raise damage


def told(backend: Salvaged) -> str:
    """What of it is left out, for people; empty when nothing is."""
    names = [stream.removeprefix("position/") for stream in backend.left_out]
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"; {len(names)} incomplete and left out: {', '.join(names[:NAMED])}{more}"
